"""`bulkhead evidence verify` and `claims` on generated evidence, in the forms in which files occur."""

import base64
import itertools
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import Encoding

from bulkhead.attestation.collateral import CollateralKind
from bulkhead.attestation.obligations import obligation_of
from bulkhead.cli.collateral_options import FETCHABLE
from bulkhead.cli.evidence_files import NamedBytes
from bulkhead.cli.program import program
from bulkhead.cli.tdx_pieces import TdxPieces
from bulkhead.errors import EvidenceError
from tests.simulator import nvidia_world, snp_machine, tdx_world
from tests.simulator.snp_machine import MEASUREMENT, Machine

TDX_NONCE = tdx_world.REPORT_DATA.hex()
TDX_AT = f"@{tdx_world.NOW_S}"
GPU_NONCE = nvidia_world.NONCE.hex()
GPU_AT = f"@{nvidia_world.NOW_S}"
SNP_POLICY = f'[snp]\nmeasurements = ["{MEASUREMENT.hex()}"]\n[snp.tcb_floors.turin]\nsnp = 4\n'
TDX_POLICY = f'[[tdx.images]]\nmr_td = "{tdx_world.MR_TD.hex()}"\n' + "".join(
    f'rtmr{number} = "{value.hex()}"\n' for number, value in enumerate(tdx_world.RTMRS)
)


@pytest.fixture(autouse=True)
def _world(monkeypatch, tmp_path):
    """Roots of the tests, and a cache of nobody's."""
    monkeypatch.setattr("bulkhead.attestation.snp.verify.amd_roots", snp_machine.snp_roots)
    monkeypatch.setattr("bulkhead.attestation.tdx.verify.intel_roots", tdx_world.roots)
    monkeypatch.setattr("bulkhead.attestation.nvidia.verify.nvidia_roots", lambda: nvidia_world.world().roots)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "snp.toml").write_text(SNP_POLICY)
    (tmp_path / "tdx.toml").write_text(TDX_POLICY)
    (tmp_path / "none.toml").write_text("")


def write(**files):
    """Write files into the working directory and return their names."""
    for name, data in files.items():
        Path(name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return list(files)


def run(*arguments):
    """Run `bulkhead evidence … --json` and return exit code and JSON."""
    result = CliRunner().invoke(program, ["evidence", *arguments, "--json"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, json.loads(result.stdout) if result.stdout else result.stderr


def tdx(*files, policy="tdx.toml", nonce=TDX_NONCE, options=()):
    """Verify a quote."""
    return run("verify", *files, "--policy", policy, "--nonce", nonce, "--at", TDX_AT, *options)


def gpu(*files, nonce=GPU_NONCE, options=()):
    """Verify a GPU's report."""
    return run("verify", *files, "--policy", "none.toml", "--nonce", nonce, "--at", GPU_AT, *options)


def pem(label, data):
    """One PEM block."""
    return f"-----BEGIN {label}-----\n{base64.encodebytes(data).decode()}-----END {label}-----\n"


def tdx_bundle():
    """The JSON bundle of the accepted base case."""
    return tdx_world.bundle(tdx_world.TdxWorld().collateral())


def answer(member, document, signature):
    """What Intel's service answers: the document's bytes as they are, and the signature behind them."""
    return b'{"%s":%s,"signature":"%s"}' % (member.encode(), document, signature.hex().encode())


def test_technology_is_known_by_content():
    """Without --type a file's content says what it is, and the order of files does not matter."""
    machine, world, case = Machine(), tdx_world.TdxWorld(), nvidia_world.GpuCase()
    write(
        report=machine.report(), vcek=machine.leaf().public_bytes(Encoding.DER), quote=world.quote(),
        bundle=json.dumps(tdx_bundle()), gpu=case.report, chain=case.certificates, driver=case.driver_rim,
        vbios=case.vbios_rim, **{f"ocsp{number}": data for number, data in enumerate(case.ocsp_responses)},
    )  # fmt: skip
    ocsp = [f"ocsp{number}" for number in range(len(case.ocsp_responses))]

    at = ("--at", f"@{snp_machine.NOW_S}", "--policy", "snp.toml", "--nonce", snp_machine.REPORT_DATA.hex())
    assert run("verify", "vcek", "report", *at)[1]["type"] == "snp"
    assert tdx("bundle", "quote")[1]["tcb_status"] == "UpToDate"
    code, facts = gpu("vbios", *ocsp, "chain", "driver", "gpu")
    assert (code, facts["type"], facts["measurements_matched"]) == (0, "nvidia", 33)


def test_host_table_of_certificates_counts():
    """The certificate table that a host hands out is read: as a file of its own, and behind the report."""
    machine = Machine()
    der = machine.leaf().public_bytes(Encoding.DER)
    entry = bytes.fromhex("63da758de6644564adc5f4b93be8accd") + (48).to_bytes(4, "little")
    table = entry + len(der).to_bytes(4, "little") + bytes(24) + der
    write(report=machine.report(), table=table, extended=machine.report() + table)
    options = ("--policy", "snp.toml", "--nonce", snp_machine.REPORT_DATA.hex(), "--at", f"@{snp_machine.NOW_S}")

    assert run("verify", "report", "table", *options)[0] == 0
    assert run("verify", "extended", *options)[0] == 0
    write(cut=machine.report() + table[:-1])
    assert run("verify", "cut", *options)[1]["obligation"] == "SNP-4"


@pytest.mark.parametrize(
    "encode",
    [
        lambda quote: quote,
        lambda quote: quote.hex().encode(),
        lambda quote: ("0x" + quote.hex()).encode(),
        base64.encodebytes,
        base64.urlsafe_b64encode,
        lambda quote: json.dumps({"quote": quote.hex(), "event_log": []}).encode(),
        lambda quote: json.dumps({"quote": base64.b64encode(quote).decode()}).encode(),
    ],
    ids=["raw", "hex", "0x", "base64", "base64url", "json-hex", "json-base64"],
)
def test_quote_in_every_form(encode):
    """A quote is accepted raw, in text, and in the JSON that agents in guests write."""
    write(quote=encode(tdx_world.TdxWorld().quote()), bundle=json.dumps(tdx_bundle()))

    assert tdx("quote", "bundle")[0] == 0


def _camel(bundle):
    return {name.split("_")[0] + "".join(part.title() for part in name.split("_")[1:]): bundle[name] for name in bundle}


def _whole_answers(bundle):
    collateral = tdx_world.TdxWorld().collateral()
    info = answer("tcbInfo", collateral.tcb_info, collateral.tcb_info_signature)
    identity = answer("enclaveIdentity", collateral.qe_identity, collateral.qe_identity_signature)
    return {**bundle, "tcb_info": info.decode(), "qe_identity": identity.decode()}


def _byte_lists(bundle):
    lists = {name: list(bytes.fromhex(bundle[name])) for name in bundle if name.endswith(("_crl", "_signature"))}
    return {**bundle, **lists}


def _pem_lists(bundle):
    return {**bundle, **{n: pem("X509 CRL", bytes.fromhex(bundle[n])) for n in ("pck_crl", "root_ca_crl")}}


@pytest.mark.parametrize(
    "change", [dict, _camel, _whole_answers, _byte_lists, _pem_lists, lambda bundle: {"collateral": bundle}]
)
def test_bundle_in_every_form(change):
    """A bundle of collateral is accepted in the spellings in which tools write it."""
    write(quote=tdx_world.TdxWorld().quote(), bundle=json.dumps(change(tdx_bundle())))

    assert tdx("quote", "bundle")[0] == 0
    assert tdx("quote", options=("--collateral", "bundle"))[0] == 0


def test_single_pieces_of_collateral():
    """Intel's own answers, its chain and the two lists, each in a file, are as good as a bundle; each is needed."""
    collateral = tdx_world.TdxWorld().collateral()
    write(
        quote=tdx_world.TdxWorld().quote(),
        tcb=answer("tcbInfo", collateral.tcb_info, collateral.tcb_info_signature),
        qe=answer("enclaveIdentity", collateral.qe_identity, collateral.qe_identity_signature),
        chain=collateral.tcb_info_issuer_chain,
        pck_crl=collateral.pck_crl,
        root_crl=collateral.root_ca_crl.hex(),
    )
    pieces = {"tcb": "TDX-9", "qe": "TDX-10", "chain": "TDX-9", "pck_crl": "TDX-4", "root_crl": "TDX-4"}

    assert tdx("quote", *pieces)[0] == 0
    options = ("--collateral", "tcb", "--collateral", "qe", "--certs", "chain", "--crl", "pck_crl", "--crl", "root_crl")
    assert tdx("quote", options=options)[0] == 0
    for left_out, obligation in pieces.items():
        code, facts = tdx("quote", *(name for name in pieces if name != left_out))
        assert (code, facts["obligation"]) == (1, obligation)
        assert left_out == "chain" or facts["details"]["source"].startswith("https://")


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"tcbInfo":{},"signature":"00"}', b'{"tcbInfo":{"a":', b"junk"])
def test_pieces_that_are_none(data):
    """A file that is no piece of collateral is a typed error with an obligation."""
    with pytest.raises(EvidenceError) as caught:
        TdxPieces().add(NamedBytes(name="file", data=data))
    assert str(obligation_of(caught.value)).startswith("TDX-")


@pytest.mark.parametrize("form", ["raw", "hex", "base64", "json", "json-list", "json-evidence-list"])
def test_gpu_report_in_every_form(form):
    """A GPU's report is accepted raw, in text, and in the JSON of NVIDIA's tools, with its certificates inside."""
    case = nvidia_world.GpuCase()
    member = {
        "arch": "HOPPER",
        "evidence": base64.b64encode(case.report).decode(),
        "certificate": base64.b64encode(case.certificates).decode(),
    }
    forms = {
        "raw": case.report,
        "hex": case.report.hex(),
        "base64": base64.encodebytes(case.report),
        "json": json.dumps(member),
        "json-list": json.dumps([member]),
        "json-evidence-list": json.dumps({"nonce": GPU_NONCE, "evidence_list": [member]}),
    }
    write(gpu=forms[form], chain=case.certificates, driver=case.driver_rim, vbios=case.vbios_rim)
    ocsp = write(**{f"ocsp{number}": data for number, data in enumerate(case.ocsp_responses)})
    certificates = [] if form.startswith("json") else ["chain"]

    options = [item for name in ocsp for item in ("--ocsp", name)]
    assert gpu("gpu", *certificates, options=[*options, "--rim", "vbios", "--rim", "driver"])[0] == 0


def test_manifest_as_the_service_sends_it():
    """A manifest is accepted as XML, in base64, and in the RIM service's answer, whose digest must hold."""
    case = nvidia_world.GpuCase()
    coded = base64.b64encode(case.driver_rim).decode()
    ocsp = write(**{f"ocsp{number}": data for number, data in enumerate(case.ocsp_responses)})
    write(gpu=case.report, chain=case.certificates, vbios=base64.encodebytes(case.vbios_rim))
    write(driver=json.dumps({"id": "NV", "rim": coded}), wrong=json.dumps({"rim": coded, "sha256": "00" * 32}))

    assert gpu("gpu", "chain", *ocsp, "driver", "vbios")[0] == 0
    assert gpu("gpu", "chain", *ocsp, "vbios", options=("--rim", "wrong"))[1]["obligation"] == "GPU-11"


@pytest.mark.parametrize(
    ("left_out", "obligation", "source"),
    [
        ("driver", "GPU-11", "NV_GPU_DRIVER_GH100_580.10.01"),
        ("vbios", "GPU-11", "NV_GPU_VBIOS_G520"),
        ("ocsp", "GPU-7", ""),
    ],
)
def test_missing_piece_is_named_with_its_source(left_out, obligation, source):
    """What is missing is named with the address that gives it; nothing is fetched."""
    case = nvidia_world.GpuCase()
    files = {"gpu": case.report, "chain": case.certificates, "driver": case.driver_rim, "vbios": case.vbios_rim}
    ocsp = {f"ocsp{number}": data for number, data in enumerate(case.ocsp_responses)}
    names = write(**files, **ocsp)

    code, facts = gpu(*(name for name in names if not name.startswith(left_out)))

    assert (code, facts["obligation"]) == (1, obligation)
    assert source in facts["details"]["source"]
    assert facts["details"]["source"].startswith("https://")


def test_chain_that_ends_below_the_root(monkeypatch):
    """A chain without the root, as NVIDIA's attestation service takes it, is as good as one with it."""
    monkeypatch.setattr("bulkhead.cli.evidence_nvidia.nvidia_roots", lambda: nvidia_world.world().roots)
    case = nvidia_world.GpuCase()
    ocsp = write(**{f"ocsp{number}": data for number, data in enumerate(case.ocsp_responses)})
    write(gpu=case.report, driver=case.driver_rim, vbios=case.vbios_rim)
    write(
        chain=nvidia_world.pem(nvidia_world.world().device[:-1]),
        short=nvidia_world.pem(nvidia_world.world().device[:-2]),
    )

    assert gpu("gpu", "chain", *ocsp, "driver", "vbios")[0] == 0
    assert gpu("gpu", "short", *ocsp, "driver", "vbios")[1]["obligation"] == "GPU-2"


def test_chain_of_one_certificate_to_a_file():
    """A device's chain may come in files of one certificate each, in its order."""
    case = nvidia_world.GpuCase()
    ocsp = write(**{f"ocsp{number}": data for number, data in enumerate(case.ocsp_responses)})
    write(gpu=case.report, driver=case.driver_rim, vbios=case.vbios_rim)
    single = write(**{f"c{n}": nvidia_world.pem([signer]) for n, signer in enumerate(nvidia_world.world().device)})

    assert gpu("gpu", *single, *ocsp, "driver", "vbios")[0] == 0
    assert gpu("gpu", *reversed(single), *ocsp, "driver", "vbios")[1]["obligation"] == "GPU-2"


def test_missing_certificates_of_a_gpu_are_named():
    """A report without the device's certificates says where they come from."""
    write(gpu=nvidia_world.GpuCase().report)

    code, facts = gpu("gpu")

    assert (code, facts["obligation"]) == (1, "GPU-2")
    assert "NVML" in facts["message"]


@pytest.mark.parametrize(
    ("technology", "options"),
    [
        ("snp", ("--rim", "x")), ("snp", ("--ocsp", "x")), ("snp", ("--collateral", "x")), ("tdx", ("--rim", "x")),
        ("tdx", ("--product", "milan")), ("nvidia", ("--crl", "x")), ("nvidia", ("--collateral", "x")),
    ],
)  # fmt: skip
def test_option_of_another_technology_is_refused(technology, options):
    """An option that would be ignored is refused: somebody relied on it."""
    write(x="x")

    code, facts = run("verify", "--type", technology, "x", "--nonce", "00" * 32, *options)

    assert (code, facts["code"]) == (1, "INVALID_REQUEST")


def test_two_pieces_of_evidence_are_refused():
    """One run verifies one piece: of two nobody could say which the verdict is of."""
    write(one=Machine().report(), two=Machine().report())

    code, facts = run("verify", "one", "two", "--nonce", "00")

    assert (code, facts["code"]) == (1, "INVALID_REQUEST")


def test_unknown_content_asks_for_the_type():
    """Files that are evidence of nothing end in an error that says what to add."""
    write(x="x")

    result = CliRunner().invoke(program, ["evidence", "verify", "x", "--nonce", "00"])

    assert result.exit_code == 1
    assert "--type snp | tdx | nvidia" in result.stderr


def test_technology_that_the_policy_leaves_out():
    """Evidence of a technology that the policy does not list is refused before anything is read of it."""
    write(report=Machine().report(), only=b'technologies = ["tdx"]')

    code, facts = run("verify", "report", "--policy", "only", "--nonce", "00")

    assert (code, facts["code"]) == (1, "EVIDENCE_POLICY")


def test_words_name_the_obligation_and_the_way_on():
    """Without --json the obligation's sentence follows, and, without a policy, how to get one."""
    machine = Machine()
    write(report=machine.report(), vcek=machine.leaf().public_bytes(Encoding.DER))
    nonce = snp_machine.REPORT_DATA.hex()

    result = CliRunner().invoke(
        program, ["evidence", "verify", "report", "vcek", "--nonce", nonce, "--at", f"@{snp_machine.NOW_S}"]
    )

    assert result.exit_code == 1
    assert "error EVIDENCE_POLICY: SNP-18: " in result.stderr
    assert "SNP-18 demands: The reported, committed and launch TCB each reach" in result.stderr
    assert "bulkhead evidence policy init --from report" in result.stderr


def test_claims_are_shown_and_called_unverified():
    """`claims` shows what each technology's evidence says, and that nobody verified it."""
    write(report=Machine().report(), quote=tdx_world.TdxWorld().quote(), gpu=nvidia_world.GpuCase().report)
    shown = {name: run("claims", name)[1] for name in ("report", "quote", "gpu")}

    assert [facts["type"] for facts in shown.values()] == ["snp", "tdx", "nvidia"]
    assert not any(facts["verified"] for facts in shown.values())
    assert shown["report"]["report_data"] == snp_machine.REPORT_DATA.hex()
    assert shown["quote"]["mr_td"] == tdx_world.MR_TD.hex()
    assert shown["gpu"]["nonce"] == GPU_NONCE


def test_names_of_kinds_are_one_list():
    """What --fetch offers are the kinds that the library knows."""
    assert tuple(kind.value for kind in CollateralKind) == FETCHABLE


@pytest.mark.parametrize(
    ("technology", "content"),
    list(itertools.product(["snp", "tdx", "nvidia"], [b"", b"\0" * 1184, b"{", b"[]", b"\xff" * 99])),
)
def test_any_file_gives_a_typed_verdict(technology, content):
    """Whatever stands in evidence or beside it, the answer is a code, never a stack trace."""
    write(first=content, second=content)

    code, facts = run("verify", "--type", technology, "first", "second", "--nonce", "00" * 32)

    assert (code, facts["verified"]) == (1, False)
    assert facts["code"] in {"EVIDENCE_INVALID", "EVIDENCE_EXPIRED", "EVIDENCE_POLICY"}
