"""Fetching collateral over TLS from services that answer as the vendors' do, and keeping it."""

import dataclasses
import json
import os
import ssl
import stat
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.x509 import ocsp

from bulkhead.attestation import VerifiedWorker, appraise
from bulkhead.attestation.collateral import CollateralKind, CollateralPolicy
from bulkhead.attestation.collateral.amd import chain_item, crl_item, vcek_item
from bulkhead.attestation.collateral.cache import CollateralCache
from bulkhead.attestation.collateral.https import HttpsFetcher
from bulkhead.attestation.collateral.intel import QE_IDENTITY_ITEM, pck_crl_item, tcb_info_item
from bulkhead.attestation.collateral.kinds import CollateralItem
from bulkhead.attestation.collateral.nvidia import manifest_of, ocsp_item, rim_item
from bulkhead.attestation.collateral.store import MAX_ENTRIES, CollateralStore
from bulkhead.attestation.hardware import HardwareVerifier
from bulkhead.attestation.obligations import obligation_of
from bulkhead.attestation.policy import Technology
from bulkhead.attestation.snp import SigningKey, SnpProduct, read_snp_report
from bulkhead.cli.program import program
from bulkhead.errors import ConnectionFailedError, EvidenceError, EvidenceExpiredError, EvidencePolicyError
from tests.simulator import nvidia_world, tdx_world
from tests.simulator.collateral_server import Reply, as_json, serving
from tests.simulator.hardware_world import CONTEXT, NONCE, NOW_S, HardwareWorld, device, entry, roots
from tests.simulator.snp_machine import Machine

ALL = frozenset(CollateralKind)
RIM = rim_item("NV_GPU_DRIVER_GH100_580.10.01")
TCB = tcb_info_item(tdx_world.FMSPC)


@pytest.fixture
def world(tmp_path):
    """What the vendors publish."""
    return HardwareWorld(directory=tmp_path / "cache", auxiliary=False)


@pytest.fixture
def service(world, tmp_path):
    """The vendors' services."""
    with serving(world, tmp_path) as running:
        yield running


def fetcher(service, **options):
    """A fetcher that asks the local services in place of the vendors'."""
    values = {"allowed": ALL, "mirrors": service.mirrors, "context": service.context, "timeout_s": 5.0}
    return HttpsFetcher(**{**values, **options})


def cache_over(service, directory, *, allowed=ALL, now_s=NOW_S):
    """An empty cache that may fetch."""
    return CollateralCache(
        store=CollateralStore(directory), policy=CollateralPolicy(fetch=allowed), now_s=lambda: now_s,
        fetcher=fetcher(service, allowed=allowed),
    )  # fmt: skip


def question(nonce=bytes(32)):
    """Whether the GPU's boot ROM is revoked."""
    own = device(0)
    return ocsp_item(own[1].certificate, own[2].certificate, nonce=nonce)


@pytest.mark.parametrize("technology", [Technology.SNP, Technology.TDX])
def test_worker_is_verified_with_what_was_fetched(world, service, tmp_path, technology):
    """With nothing at hand everything is fetched once, and a second verification asks nobody."""
    world = dataclasses.replace(world, technology=technology)
    verifier = HardwareVerifier(collateral=cache_over(service, tmp_path / "fetched"), roots=roots())
    policy = world.policy(collateral=CollateralPolicy(fetch=ALL))

    def verify(by):
        return appraise(world.evidence(), nonce=NONCE, context=CONTEXT, trust_policy=policy, now_s=NOW_S, hardware=by)

    assert isinstance(verify(verifier), VerifiedWorker)
    asked = len(service.asked)
    assert isinstance(verify(verifier), VerifiedWorker)
    assert len(service.asked) == asked
    offline = HardwareVerifier(
        collateral=CollateralCache(
            store=CollateralStore(tmp_path / "fetched"), policy=CollateralPolicy(), now_s=lambda: NOW_S
        ),
        roots=roots(),
    )
    assert isinstance(verify(offline), VerifiedWorker)
    assert len(service.asked) == asked


@pytest.mark.parametrize(
    ("product", "path"),
    [
        (SnpProduct.MILAN, "/vcek/v1/Milan/{hwid}?blSPL=04&teeSPL=00&snpSPL=24&ucodeSPL=219"),
        (SnpProduct.GENOA, "/vcek/v1/Genoa/{hwid}?blSPL=09&teeSPL=00&snpSPL=23&ucodeSPL=84"),
        (SnpProduct.TURIN, "/vcek/v1/Turin/{hwid}?fmcSPL=01&blSPL=01&teeSPL=01&snpSPL=04&ucodeSPL=81"),
    ],
)
def test_question_to_amd_by_product(product, path):
    """A VCEK is asked for by chip and by each level of REPORTED_TCB, Turin's with its own."""
    machine = Machine(product=product)
    item = vcek_item(read_snp_report(machine.report()), product)

    assert item.url == "https://kdsintf.amd.com" + path.format(hwid=machine.full_hwid.hex())
    assert crl_item(product, SigningKey.VLEK).path == f"/vlek/v1/{product.value.title()}/crl"
    assert chain_item(product, SigningKey.VCEK).path == f"/vcek/v1/{product.value.title()}/cert_chain"


def test_masked_chip_cannot_be_asked_for():
    """A host that masks CHIP_ID leaves nothing to ask with."""
    claims = read_snp_report(Machine().report(changes=[(0x1A0, bytes(64))]))
    with pytest.raises(EvidenceError, match="masks CHIP_ID"):
        vcek_item(claims, SnpProduct.TURIN)


def test_questions_to_intel_and_nvidia():
    """Intel's and NVIDIA's services are asked at their documented addresses."""
    assert TCB.url == ("https://api.trustedservices.intel.com/tdx/certification/v4/tcb?fmspc=90C06F000000")
    assert QE_IDENTITY_ITEM.path == "/tdx/certification/v4/qe/identity"
    assert pck_crl_item("processor").path == "/sgx/certification/v4/pckcrl?ca=processor&encoding=der"
    assert RIM.url == "https://rim.attestation.nvidia.com/v1/rim/NV_GPU_DRIVER_GH100_580.10.01"
    assert question().url == "https://ocsp.ndis.nvidia.com/"


def test_chain_comes_decoded_from_its_header(service):
    """Intel's issuer chain is URL-encoded in a header, and PEM in the answer's chain."""
    answer = fetcher(service).fetch(TCB)

    assert answer.chain.startswith(b"-----BEGIN CERTIFICATE-----\n")
    assert answer.source == f"{service.url}{TCB.path}"


def test_kind_that_is_not_allowed_is_not_asked_for(service, tmp_path):
    """Neither the cache nor the fetcher asks for a kind that the tenant did not allow."""
    with pytest.raises(EvidencePolicyError):
        fetcher(service, allowed=ALL - {CollateralKind.NVIDIA_RIM}).fetch(RIM)
    with pytest.raises(EvidenceError) as caught:
        cache_over(service, tmp_path / "new", allowed=frozenset({CollateralKind.AMD_CRL})).find(RIM)
    assert (obligation_of(caught.value), caught.value.details["source"]) == ("GPU-11", RIM.url)
    assert service.asked == []


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(b"", 302, {"Location": "https://elsewhere.example/"}), "status 302"),
        (Reply(b"", 301, {"Location": "/v1/rim/other"}), "status 301"),
        (Reply(b"no", 404), "status 404"),
        (Reply(b"slow down", 429), "status 429"),
        (Reply(b"broken", 500), "status 500"),
        (Reply(b"partial", 206), "status 206"),
        (Reply(b""), "empty"),
        (Reply(b"x" * 600_000), "longer than"),
        (Reply(b"short", length=500), "https://"),
    ],
    ids=["redirect", "redirect-here", "404", "429", "500", "206", "empty", "too-long", "cut-short"],
)
def test_answers_that_are_none(service, tmp_path, reply, reason):
    """Redirects, errors, and answers that are empty, too long or cut are one typed error; nothing is kept."""
    service.replies[RIM.path] = reply
    cache = cache_over(service, tmp_path / "new")

    with pytest.raises(ConnectionFailedError, match=reason):
        cache.find(RIM)
    assert [path for _, path in service.asked] == [RIM.path]
    assert not (tmp_path / "new").exists()


def test_answer_without_its_chain(service):
    """A document of Intel's without its issuer's chain cannot be verified, and is no answer."""
    service.replies[TCB.path] = Reply(b"{}")
    with pytest.raises(ConnectionFailedError, match="TCB-Info-Issuer-Chain"):
        fetcher(service).fetch(TCB)


@pytest.mark.parametrize("reply", [Reply(b"x", wait_s=3), Reply(b"x" * 100, drip_s=0.1)], ids=["silent", "dripping"])
def test_slow_services_are_cut(service, reply):
    """A service that says nothing, or little by little without end, is left at the time-out."""
    service.replies[RIM.path] = reply
    start_s = time.monotonic()

    with pytest.raises(ConnectionFailedError):
        fetcher(service, timeout_s=0.5, deadline_s=1.0).fetch(RIM)
    assert time.monotonic() - start_s < 2.5


def test_certificate_of_nobody_is_refused(service):
    """A service whose certificate the system's authorities did not issue is not believed, nor asked anything."""
    with pytest.raises(ConnectionFailedError, match="not trusted"):
        fetcher(service, context=ssl.create_default_context()).fetch(RIM)
    assert service.asked == []


def test_certificate_of_another_host_is_refused(world, tmp_path):
    """A certificate for another name is refused, though its authority is trusted."""
    with serving(world, tmp_path, name="other.example") as running:
        with pytest.raises(ConnectionFailedError, match="not trusted"):
            fetcher(running).fetch(RIM)
        assert running.asked == []


def test_nobody_listens_and_nothing_else_than_https(service):
    """A service that is not there, or an address without TLS, is a typed error."""
    mirrors = dict.fromkeys(ALL, "https://localhost:1")
    with pytest.raises(ConnectionFailedError):
        fetcher(service, mirrors=mirrors).fetch(RIM)
    with pytest.raises(ConnectionFailedError, match="only HTTPS"):
        fetcher(service, mirrors=dict.fromkeys(ALL, "http://localhost:1")).fetch(RIM)


def test_page_of_a_portal_displaces_nothing(service, world, tmp_path):
    """What is not of its kind, as a hotel's log-in page, is refused and leaves the copy that is at hand."""
    cache = cache_over(service, tmp_path / "kept")
    kept = cache.find(TCB)
    service.replies[TCB.path] = Reply(b"<html>welcome</html>", headers={"TCB-Info-Issuer-Chain": "x"})

    with pytest.raises(EvidenceError):
        cache.find(TCB, fresh=True)
    assert cache.find(TCB) == kept


def test_copy_past_its_end_is_fetched_anew(service, tmp_path):
    """A document past its nextUpdate is asked for again; offline it is returned, for its verifier to name."""
    directory = tmp_path / "old"
    cache_over(service, directory).find(TCB)
    later = NOW_S + 21 * tdx_world.DAY_S

    cache_over(service, directory, now_s=later).find(TCB)
    assert len(service.asked) == 2
    offline = CollateralCache(store=CollateralStore(directory), policy=CollateralPolicy(), now_s=lambda: later)
    assert offline.find(TCB).data
    older = CollateralPolicy(maximum_age_s={CollateralKind.INTEL_TCB_INFO: 60})
    with pytest.raises(EvidenceExpiredError):
        CollateralCache(store=CollateralStore(directory), policy=older, now_s=lambda: later + 90).find(TCB)


def test_ocsp_answers_the_question(service):
    """OCSP is asked by POST with a nonce, which the answer repeats."""
    answer = fetcher(service).fetch(question(b"\x42" * 32))

    assert service.asked == [("POST", "/")]
    assert ocsp.load_der_ocsp_response(answer.data).certificate_status is ocsp.OCSPCertStatus.GOOD


@pytest.mark.parametrize("nonce", [lambda _: None, lambda _: bytes(32)], ids=["none", "another"])
def test_ocsp_answer_that_is_an_old_one(service, nonce):
    """An answer without the question's nonce may have been recorded before a revocation: it is refused."""
    service.ocsp_nonce = nonce
    with pytest.raises(EvidenceError) as caught:
        fetcher(service).fetch(question(b"\x42" * 32))
    assert obligation_of(caught.value) == "GPU-7"


def test_ocsp_responder_that_refuses(service):
    """A responder that does not know the certificate gives no answer that could count."""
    root = nvidia_world.world().device[-1].certificate
    with pytest.raises(EvidenceError, match="UNAUTHORIZED"):
        fetcher(service).fetch(ocsp_item(root, root, nonce=bytes(32)))


def test_device_on_hold_is_refused(world, service, tmp_path):
    """certificate_hold, fetched a moment ago, refuses the GPU."""
    service.ocsp_status = ocsp.OCSPCertStatus.REVOKED
    verifier = HardwareVerifier(collateral=cache_over(service, tmp_path / "fetched"), roots=roots())
    policy = world.policy(collateral=CollateralPolicy(fetch=ALL))

    with pytest.raises(EvidenceError) as caught:
        appraise(world.evidence(), nonce=NONCE, context=CONTEXT, trust_policy=policy, now_s=NOW_S, hardware=verifier)
    assert obligation_of(caught.value) == "GPU-7"
    assert caught.value.details["reason"] == "certificateHold"


@pytest.mark.parametrize(
    "answer",
    [b"{}", b'{"rim": 1}', b'{"rim": "!"}', as_json({"rim": "AAAA", "sha256": "00" * 32}), b'{"rim"', b"{" * 9999],
)
def test_manifests_answer_that_is_none(answer):
    """A RIM service's answer without a manifest, or with another than its digest says, is a typed error."""
    with pytest.raises(EvidenceError) as caught:
        manifest_of(answer)
    assert obligation_of(caught.value) == "GPU-11"


@pytest.mark.parametrize("name", ["", "../x", "a/b", "x" * 200, "a b", "ä"])
def test_names_of_manifests_are_bounded(name):
    """What a report names is put into an address only if it can be a manifest's name."""
    with pytest.raises(EvidenceError):
        rim_item(name)


def test_files_are_private_and_written_whole(tmp_path):
    """Entries are files of the user's alone, and no part of one is ever seen."""
    store = CollateralStore(tmp_path / "cache")
    store.put(entry(RIM, b"manifest"))
    (path,) = (tmp_path / "cache" / "nvidia-rim").iterdir()

    assert path.name == f"{RIM.name}.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert json.loads(path.read_bytes())["source"] == RIM.url
    assert store.get(RIM.kind, RIM.name) == entry(RIM, b"manifest")


@pytest.mark.parametrize("data", [b"", b"{}", b"junk", b"\0" * 100, b'{"version":1}'])
def test_damaged_entry_is_no_entry(tmp_path, data):
    """A file that is not an entry is as good as none: it is fetched anew where that is allowed."""
    store = CollateralStore(tmp_path)
    store.put(entry(RIM, b"manifest"))
    (tmp_path / "nvidia-rim" / f"{RIM.name}.json").write_bytes(data)

    assert store.get(RIM.kind, RIM.name) is None
    assert list(store.entries()) == []


def test_entry_under_another_name_is_no_entry(tmp_path):
    """A file moved to another piece's name does not become that piece."""
    store = CollateralStore(tmp_path)
    store.put(entry(RIM, b"manifest"))
    folder = tmp_path / "nvidia-rim"
    (folder / f"{RIM.name}.json").rename(folder / "other.json")

    assert store.get(RIM.kind, "other") is None


def test_entries_are_bounded_in_size_and_number(tmp_path, monkeypatch):
    """An entry has a greatest size, a kind a greatest number: the oldest make room."""
    assert MAX_ENTRIES == 1024
    monkeypatch.setattr("bulkhead.attestation.collateral.store.MAX_ENTRIES", 3)
    store = CollateralStore(tmp_path)
    for number in range(5):
        item = CollateralItem(kind=CollateralKind.NVIDIA_RIM, name=f"n{number}", path="/")
        store.put(entry(item, b"x"))
        os.utime(tmp_path / "nvidia-rim" / f"n{number}.json", ns=(number, number))
    assert [item.name for item in store.entries()] == ["n2", "n3", "n4"]
    with pytest.raises(EvidenceError):
        store.put(entry(RIM, bytes(5_000_000)))


@pytest.mark.parametrize("name", ["../escape", "a/b", "", ".", "A", "x" * 300])
def test_names_stay_in_the_directory(tmp_path, name):
    """No name leads out of the cache's directory."""
    store = CollateralStore(tmp_path)
    with pytest.raises(EvidenceError):
        store.put(entry(CollateralItem(kind=CollateralKind.NVIDIA_RIM, name=name, path="/"), b"x"))
    assert store.get(CollateralKind.NVIDIA_RIM, name) is None


def run(*arguments, environment=None):
    """Run `bulkhead evidence …`."""
    result = CliRunner().invoke(program, ["evidence", *map(str, arguments)], env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def mirrored(service, world, tmp_path, monkeypatch):
    """A policy whose mirrors are the local services, and the evidence in files."""
    authority = tmp_path / "authority.pem"
    authority.write_text(
        "".join(ssl.DER_cert_to_PEM_cert(der) for der in service.context.get_ca_certs(binary_form=True))
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    mirrors = "\n".join(f'{kind.value} = "{service.url}"' for kind in CollateralKind)
    (tmp_path / "trust.toml").write_text(f'[collateral]\nfetch = ["nvidia-rim"]\n[collateral.mirrors]\n{mirrors}\n')
    (tmp_path / "report").write_bytes(world.machine.report())
    (tmp_path / "gpu").write_bytes(nvidia_world.report(device(0)[0]))
    (tmp_path / "chain").write_bytes(nvidia_world.pem(device(0)))
    (tmp_path / "quote").write_bytes(world.td.quote())
    return tmp_path


def test_command_fetches_what_is_allowed_and_tells_what_is_not(mirrored, service):
    """`collateral fetch` gets what is allowed, names the rest, and ends with 1 while a piece is missing."""
    fetched = run(
        "collateral", "fetch", mirrored / "gpu", mirrored / "chain", "--policy", mirrored / "trust.toml",
        "--cache", mirrored / "c", "--json",
    )  # fmt: skip
    outcomes = json.loads(fetched.stdout)

    assert fetched.exit_code == 1
    assert [row["outcome"] for row in outcomes if row["kind"] == "nvidia-rim"] == ["fetched", "fetched"]
    assert {row["outcome"] for row in outcomes if row["kind"] == "nvidia-ocsp"} == {"missing"}
    assert {method for method, _ in service.asked} == {"GET"}

    options = ("--policy", mirrored / "trust.toml", "--cache", mirrored / "c", "--fetch", "all")
    complete = run("collateral", "fetch", mirrored / "gpu", mirrored / "chain", *options, "--json")
    rows = json.loads(complete.stdout)
    assert (complete.exit_code, len([row for row in rows if row["kind"] == "nvidia-ocsp"])) == (0, 6)
    assert {row["outcome"] for row in rows if row["kind"] == "nvidia-rim"} == {"at hand"}


def test_command_knows_what_each_technology_needs(mirrored):
    """For a report it is the VCEK, the chain and the list; for a quote the four of Intel's."""
    result = run("collateral", "fetch", mirrored / "report", mirrored / "quote", "--cache", mirrored / "c", "--json")

    assert result.exit_code == 1
    assert [row["kind"] for row in json.loads(result.stdout)] == [
        "amd-vcek", "amd-chain", "amd-crl", "intel-tcb-info", "intel-qe-identity", "intel-pck-crl", "intel-root-crl",
    ]  # fmt: skip


def test_command_shows_what_is_at_hand(mirrored):
    """`collateral show` lists kind, name, age and end, and writes one piece to a file."""
    options = ("--policy", mirrored / "trust.toml", "--cache", mirrored / "c", "--fetch", "intel-tcb-info")
    run("collateral", "fetch", mirrored / "quote", *options)
    listed = run("collateral", "show", "--cache", mirrored / "c", "--json")
    rows = json.loads(listed.stdout)

    assert [(row["kind"], row["name"]) for row in rows] == [("intel-tcb-info", tdx_world.FMSPC.hex())]
    assert rows[0]["end_s"] == NOW_S + 20 * tdx_world.DAY_S
    shown = run("collateral", "show", "intel-tcb-info", "--cache", mirrored / "c", "--out", mirrored / "tcb.json")
    assert shown.exit_code == 0
    assert Path(mirrored / "tcb.json").read_bytes().startswith(b'{"tcbInfo":{')
    assert "no collateral in" in run("collateral", "show", "--cache", mirrored / "none").stdout


def test_verify_fetches_where_it_may(mirrored, service, monkeypatch):
    """`verify --fetch` has the missing pieces fetched; without it the same command names the first."""
    monkeypatch.setattr("bulkhead.attestation.nvidia.verify.nvidia_roots", lambda: nvidia_world.world().roots)
    arguments = (
        "verify", mirrored / "gpu", mirrored / "chain", "--policy", mirrored / "trust.toml", "--cache", mirrored / "c",
        "--nonce", nvidia_world.NONCE.hex(), "--at", f"@{NOW_S}", "--json",
    )  # fmt: skip

    assert json.loads(run(*arguments).stdout)["obligation"] == "GPU-7"
    assert json.loads(run(*arguments, "--fetch", "all").stdout)["verified"] is True
    asked = len(service.asked)
    assert asked > 0
