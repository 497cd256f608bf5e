"""The trust policy's file: read strictly, written with its reasons, explained in words, begun from evidence."""

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from bulkhead.attestation import EvidenceKind, Tier, VerifiedWorker, appraise
from bulkhead.attestation.collateral import CollateralKind, CollateralPolicy
from bulkhead.attestation.nvidia import GpuMode, NvidiaPolicy
from bulkhead.attestation.policy import Technology, TrustPolicy, parse_trust_policy
from bulkhead.attestation.policy_writing import reasons_of, write_trust_policy
from bulkhead.attestation.snp import PlatformInfo, SigningKey, SnpPolicy, SnpProduct, Tcb
from bulkhead.attestation.tdx import TcbStatus, TdImage, TdxPolicy
from bulkhead.cli.policy_words import explain_policy
from bulkhead.cli.program import program
from bulkhead.client.config import load_profile
from bulkhead.errors import ConfigError
from tests.simulator import nvidia_world, tdx_world
from tests.simulator.hardware_world import CONTEXT, NONCE, NOW_S, HardwareWorld
from tests.simulator.snp_machine import MEASUREMENT, Machine

_ONE_IMAGE = (
    f'[[tdx.images]]\nmr_td = "{"11" * 48}"\nrtmr0 = "not compared"\nrtmr1 = "RTMR1"\n'
    f'rtmr2 = "{"11" * 48}"\nrtmr3 = "not compared"'
)
_STATUSES = [status for status in TcbStatus if status is not TcbStatus.REVOKED]
_DIGESTS = st.binary(min_size=48, max_size=48)
_PINS = st.none() | st.frozensets(_DIGESTS, max_size=2)
_NAMES = st.frozensets(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=9).filter("any".__ne__),
    max_size=2,
)


@st.composite
def _policies(draw):
    """Any policy that a file can hold."""
    chips = st.none() | st.frozensets(st.binary(min_size=64, max_size=64), max_size=2)
    register = st.none() | _DIGESTS
    image = st.builds(TdImage, mr_td=_DIGESTS, rtmrs=st.tuples(register, _DIGESTS, _DIGESTS, register))
    level = st.integers(0, 255)
    floor = st.builds(Tcb, bootloader=level, tee=level, snp=level, microcode=level)
    return TrustPolicy(
        accepted_kinds=draw(st.frozensets(st.sampled_from(EvidenceKind))),
        technologies=draw(st.frozensets(st.sampled_from(Technology))),
        operator_keys=tuple(draw(st.lists(st.binary(min_size=32, max_size=32), max_size=2))),
        minimum_tier=draw(st.sampled_from(Tier)),
        regions=draw(st.none() | _NAMES),
        model_digests=draw(st.none() | st.frozensets(st.binary(min_size=32, max_size=32), max_size=2)),
        tenant_roots=draw(st.none() | st.frozensets(st.binary(min_size=32, max_size=32), max_size=2)),
        snp=SnpPolicy(
            products=draw(st.frozensets(st.sampled_from(SnpProduct))),
            tcb_floors=draw(st.dictionaries(st.sampled_from(SnpProduct), floor)),
            measurements=draw(st.frozensets(_DIGESTS, max_size=2)),
            signing_keys=draw(st.frozensets(st.sampled_from([SigningKey.VCEK, SigningKey.VLEK]))),
            csp_ids=draw(st.none() | _NAMES),
            vmpl=draw(st.integers(0, 3)),
            allow_cxl=draw(st.booleans()),
            required_platform_info=PlatformInfo(draw(st.sampled_from([0, 1, 32, 37]))),
            chip_ids=draw(chips),
            id_key_digests=draw(_PINS),
            max_crl_age_s=draw(st.none() | st.integers(1, 10**6)),
        ),
        tdx=TdxPolicy(
            images=tuple(draw(st.lists(image, max_size=2))),
            accepted_statuses=draw(st.frozensets(st.sampled_from(_STATUSES))),
            accepted_advisories=draw(_NAMES),
            optional_attributes=draw(st.sampled_from([0, 1 << 27, 1 << 26 | 1 << 63])),
            allowed_xfam=draw(st.integers(0, 2**64 - 1)) | 3,
            mr_seams=draw(_PINS),
        ),
        nvidia=NvidiaPolicy(
            modes=draw(st.frozensets(st.sampled_from(GpuMode))),
            fwids=draw(_PINS),
            driver_versions=draw(st.frozensets(st.sampled_from(["545.00", "580.10.01"]))),
            minimum_vbios_version=draw(st.sampled_from([None, "96.00.5E.00.01"])),
            revocation_required=draw(st.booleans()),
        ),
        collateral=CollateralPolicy(
            fetch=draw(st.frozensets(st.sampled_from(CollateralKind))),
            mirrors=draw(st.dictionaries(st.sampled_from(CollateralKind), st.just("https://cache.example:8443/v"))),
        ),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(_policies())
def test_what_is_written_is_read_back(policy):
    """Every policy that a file can hold is written so that reading it gives the same policy."""
    assert parse_trust_policy(tomllib.loads(write_trust_policy(policy, remarks=("a", "b")))) == policy


def test_defaults_are_written_with_their_reasons():
    """The file of the strict defaults has each key under the reason that the code states for it."""
    text = write_trust_policy(TrustPolicy())
    one_line = " ".join(line.removeprefix("# ") for line in text.splitlines())

    assert parse_trust_policy(tomllib.loads(text)) == TrustPolicy()
    for policy in (TrustPolicy, SnpPolicy, TdxPolicy, NvidiaPolicy, CollateralPolicy):
        for name, reason in reasons_of(policy).items():
            if name in {"snp", "tdx", "nvidia", "collateral"}:
                assert f"[{name}]" in text
                continue
            assert name in text
            assert reason[-30:].replace("None", '["any"]').replace("True", "true") in one_line
    assert "None" not in one_line


@pytest.mark.parametrize(
    "text",
    [
        '[snp]\nmeasurements = ["any"]',
        "[snp]\nmeasurements = []\ndebug = false",
        '[[tdx.images]]\nmr_td = "any"\nrtmr0 = "any"\nrtmr1 = "any"\nrtmr2 = "any"\nrtmr3 = "any"',
        f'[[tdx.images]]\nmr_td = "{"11" * 48}"',
        _ONE_IMAGE.replace("RTMR1", "not compared"),
        '[tdx]\naccepted_statuses = ["Revoked"]',
        '[tdx]\noptional_attributes = ["bit0"]',
        '[tdx]\noptional_attributes = ["bit29"]',
        '[tdx]\noptional_attributes = ["bit64"]',
        "[tdx]\nallowed_xfam = 3",
        "[tdx]\nmaximum_collateral_age_s = 0",
        '[tdx]\nmr_config_ids = ["any"]',
        '[nvidia]\nminimum_driver_version = "new"',
        '[nvidia]\nmodes = ["off"]',
        '[nvidia]\nproducts = ["*"]',
        "[nvidia]\nmaximum_ocsp_age_s = 99999999",
        'technologies = ["sgx"]',
        '[collateral]\nfetch = ["everything"]',
        '[collateral.mirrors]\namd-vcek = "http://cache.example"',
        '[collateral.mirrors]\namd-vcek = "https://user@cache.example"',
        "[collateral.maximum_age_s]\namd-vcek = 0",
        "[collateral.maximum_age_s]\namd = 5",
        "snp = 1",
        "regions = 'eu'",
    ],
)
def test_wildcards_and_mistakes_are_errors(text):
    """There is no wildcard of measurements, no key for debug, and no key that is unknown."""
    with pytest.raises(ConfigError):
        parse_trust_policy(tomllib.loads(text))


def test_unknown_key_is_named():
    """A misspelt key is told by name."""
    with pytest.raises(ConfigError, match="measurement'"):
        parse_trust_policy({"snp": {"measurement": []}})


def test_registers_that_others_choose_may_be_left_out():
    """RTMR0 and RTMR3 may be left out in words; kernel and command line may not."""
    (image,) = parse_trust_policy(tomllib.loads(_ONE_IMAGE.replace("RTMR1", "22" * 48))).tdx.images

    assert image.rtmrs == (None, b"\x22" * 48, b"\x11" * 48, None)


def test_policy_in_code_has_no_wildcard_either():
    """What a file cannot say, a program cannot construct."""
    for changes in ({"snp": SnpPolicy(measurements=None)}, {"tdx": TdxPolicy(images=None)}):
        with pytest.raises(ConfigError, match="no wildcard"):
            TrustPolicy(**changes)


def test_profile_points_to_a_file_with_every_table(tmp_path):
    """A client's profile names the file, whose tables reach the policy that the SDK uses."""
    policy = write_trust_policy(TrustPolicy(snp=SnpPolicy(measurements=frozenset({MEASUREMENT}))))
    (tmp_path / "trust.toml").write_text(policy)
    (tmp_path / "ca.pem").write_text("ca")
    key = tmp_path / "key"
    key.write_text(f"bhk_{'0' * 26}_{'A' * 43}")
    key.chmod(0o600)
    (tmp_path / "config.toml").write_text(
        '[profile.acme]\naddress = "host.example:1"\nca_file = "ca.pem"\napi_key_file = "key"\n'
        'trust_policy_file = "trust.toml"\n'
    )

    profile = load_profile("acme", path=tmp_path / "config.toml")

    assert profile.trust.snp.measurements == {MEASUREMENT}


def run(*arguments):
    """Run `bulkhead evidence policy … --json`."""
    result = CliRunner().invoke(program, ["evidence", "policy", *map(str, arguments), "--json"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, json.loads(result.stdout) if result.stdout else result.stderr


def check(tmp_path, text):
    """Check a policy's text."""
    path = tmp_path / "check.toml"
    path.write_text(text)
    return run("check", path)


def test_check_says_that_the_defaults_accept_nothing(tmp_path):
    """The empty file refuses every guest, and the words say so and why."""
    code, facts = check(tmp_path, "")

    assert (code, facts["valid"], facts["weaker"]) == (0, True, [])
    refused = " ".join(facts["refuses"])
    assert "Every SEV-SNP guest: [snp] measurements is empty, and there is no wildcard." in refused
    assert "Every TDX guest: there is no [[tdx.images]], and there is no wildcard." in refused
    assert "Fetching: only collateral that is at hand is used." in refused


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('accepted_kinds = ["simulated"]', "SIMULATED"),
        (f'minimum_tier = "gpu"\naccepted_kinds = ["operator"]\noperator_keys = ["{"A" * 43}"]', "Operator evidence"),
        ('minimum_tier = "gpu"', "operator can read prompts"),
        ('[snp]\nproducts = ["milan"]', "milan"),
        ('[snp]\nsigning_keys = ["vlek"]\ncsp_ids = ["any"]', "VLEKs of any provider"),
        ("[snp]\nvmpl = 1", "VMPL 1"),
        ("[snp]\nallow_migration_agent = true", "migration agent"),
        ("[snp]\nallow_cxl = true", "CXL"),
        ("[snp]\nallow_provisional_firmware = true", "roll back"),
        ("[snp]\nrequired_platform_info = []", "ALIAS_CHECK_COMPLETE"),
        ("[snp.tcb_floors.turin]\n", "its TCB floor is zero"),
        ('[tdx]\naccepted_statuses = ["OutOfDate"]', "OutOfDate"),
        ('[tdx]\naccepted_advisories = ["INTEL-SA-1"]', "INTEL-SA-1"),
        ('[tdx]\noptional_attributes = ["bit26"]', "TD attributes"),
        ('[tdx]\nallowed_xfam = "0xffffffff"', "Processor features"),
        ("[nvidia]\nrevocation_required = false", "revocation_required is false"),
        ("[nvidia]\nallow_missing_fwid = true", "allow_missing_fwid"),
        ('[nvidia]\nproducts = ["GB202"]', "GB202"),
        ('[nvidia]\nmodes = ["ppcie"]', "peers and switches"),
    ],
)  # fmt: skip
def test_check_tells_every_weakness(tmp_path, text, word):
    """Whatever is weaker than the strict defaults is told in words."""
    _, facts = check(tmp_path, text)

    assert any(word in sentence for sentence in facts["weaker"])


def test_check_tells_what_a_fetch_discloses(tmp_path):
    """A kind that may be fetched is told with its host and with what that host learns."""
    text = (
        '[collateral]\nfetch = ["amd-vcek", "nvidia-rim"]\n[collateral.mirrors]\nnvidia-rim = "https://mirror.example"'
    )
    _, facts = check(tmp_path, text)

    told = [sentence for sentence in facts["accepts"] if sentence.startswith("Fetching")]
    assert ["https://kdsintf.amd.com" in told[0], "which chip" in told[0]] == [True, True]
    assert "https://mirror.example" in told[1]


def test_check_refuses_what_is_no_policy(tmp_path):
    """A file that is no policy ends with 2 and the reason."""
    code, error = check(tmp_path, "[snp]\nmeasurement = []")

    assert code == 2
    assert "measurement" in error


def test_words_follow_pins():
    """Pins and lists are told with their number, without printing hexadecimal at a reader."""
    words = explain_policy(
        TrustPolicy(
            regions=frozenset({"eu-central"}),
            model_digests=frozenset({bytes(32)}),
            tenant_roots=frozenset({bytes(32), b"\1" * 32}),
            snp=SnpPolicy(
                chip_ids=frozenset({bytes(64)}), require_single_socket=True, allow_smt=False, require_crl=True
            ),
            tdx=TdxPolicy(ppids=frozenset({bytes(16)}), mr_seams=frozenset()),
            nvidia=NvidiaPolicy(fwids=frozenset()),
        )
    )
    refused = " ".join(words.refuses)

    for part in (
        "eu-central",
        "1 pinned",
        "none of 2 named",
        "CHIP_ID",
        "several sockets",
        "SMT",
        "PPID",
        "FWID",
        "TDX modules",
        "revocation list",
    ):
        assert part in refused


@pytest.fixture
def evidence(tmp_path, monkeypatch):
    """Evidence of every technology, in the working directory."""
    monkeypatch.chdir(tmp_path)
    case = nvidia_world.GpuCase()
    Path("snp").write_bytes(Machine().report())
    Path("tdx").write_bytes(tdx_world.TdxWorld().quote())
    Path("gpu").write_bytes(case.report)
    Path("chain").write_bytes(case.certificates)
    return tmp_path


def test_init_accepts_what_it_was_begun_from(evidence):
    """A policy from evidence names its measurement, its TCB as floors, its image and its versions, and nothing else."""
    code, written = run("init", "--from", "snp", "--from", "tdx", "--from", "gpu", "--from", "chain")
    policy = parse_trust_policy(tomllib.loads(written["policy"]))

    assert (code, written["exceptions"]) == (0, [])
    assert policy.technologies == frozenset(Technology)
    assert policy.snp.measurements == {MEASUREMENT}
    assert policy.snp.tcb_floors == {SnpProduct.TURIN: Tcb(fmc=1, bootloader=1, tee=1, snp=4, microcode=81)}
    assert policy.tdx.images == (TdImage(mr_td=tdx_world.MR_TD, rtmrs=tdx_world.RTMRS),)
    assert policy.nvidia.driver_versions == {nvidia_world.DRIVER}
    assert policy.nvidia.products == {"GH100"}
    assert policy.snp.chip_ids is None
    assert policy.minimum_tier is Tier.CONFIDENTIAL


@pytest.mark.parametrize("technology", [Technology.SNP, Technology.TDX])
def test_init_from_a_workers_whole_evidence(evidence, technology):
    """A worker's whole evidence gives a policy that accepts the worker: its processor and all its GPUs."""
    world = HardwareWorld(directory=evidence / "cache", technology=technology)
    Path("worker.json").write_bytes(world.evidence())
    code, written = run("init", "--from", "worker.json", "--pin-machine")
    policy = parse_trust_policy(tomllib.loads(written["policy"]))

    assert (code, policy.technologies) == (0, {technology, Technology.NVIDIA})
    worker = appraise(
        world.evidence(), nonce=NONCE, context=CONTEXT, trust_policy=policy, now_s=NOW_S, hardware=world.verifier()
    )
    assert isinstance(worker, VerifiedWorker)


def test_init_leaves_out_technologies_without_evidence(evidence):
    """What was not shown is not accepted."""
    policy = parse_trust_policy(tomllib.loads(run("init", "--from", "tdx")[1]["policy"]))

    assert policy.technologies == {Technology.TDX}


def test_init_pins_the_machine_on_demand(evidence):
    """--pin-machine accepts these machines alone."""
    written = run("init", "--from", "snp", "--from", "tdx", "--pin-machine")[1]
    policy = parse_trust_policy(tomllib.loads(written["policy"]))

    assert policy.snp.chip_ids == {Machine().full_hwid.ljust(64, b"\0")}
    assert policy.tdx.ppids == {tdx_world.PPID}


def test_init_weakens_nothing_unasked(evidence):
    """Evidence that needs an exception leaves the default in force and tells it; --with-exceptions makes it."""
    machine = Machine(product=SnpProduct.MILAN, signing_key=SigningKey.VLEK)
    Path("milan").write_bytes(machine.report(version=3, changes=[(0x30, b"\x01")]))
    strict, weak = (run("init", "--from", "milan", *more)[1] for more in ((), ("--with-exceptions",)))
    strict_policy, weak_policy = (parse_trust_policy(tomllib.loads(item["policy"])).snp for item in (strict, weak))

    assert [item["key"] for item in strict["exceptions"]] == [
        "snp.products",
        "snp.signing_keys",
        "snp.csp_ids",
        "snp.vmpl",
    ]
    assert SnpProduct.MILAN not in strict_policy.products
    assert (strict_policy.vmpl, strict_policy.signing_keys) == (0, {SigningKey.VCEK})
    assert weak_policy.products == {SnpProduct.MILAN}
    assert (weak_policy.vmpl, weak_policy.signing_keys) == (1, {SigningKey.VLEK})
    assert "EXCEPTION snp.vmpl" in weak["policy"]


@pytest.mark.parametrize(
    "world",
    [tdx_world.TdxWorld(td_attributes=1 << 28 | 1), tdx_world.TdxWorld(td_attributes=1 << 28 | 1 << 29)],
    ids=["debug", "migratable"],
)
def test_init_refuses_what_no_policy_accepts(evidence, world):
    """A guest that its host can read or carry away ends with 1, with exceptions, too."""
    Path("open").write_bytes(world.quote())

    code, facts = run("init", "--from", "open", "--with-exceptions")

    assert (code, facts["written"], facts["code"]) == (1, False, "EVIDENCE_POLICY")


def test_init_writes_no_file_over_another(evidence):
    """--out makes a new file; an existing policy is nobody's to replace."""
    assert run("init", "--from", "snp", "--out", "trust.toml")[0] == 0
    before = Path("trust.toml").read_text()

    assert run("init", "--from", "tdx", "--out", "trust.toml")[0] == 2
    assert Path("trust.toml").read_text() == before


def test_init_without_evidence_writes_the_defaults(evidence):
    """Without --from the file shows every key with the strict default."""
    assert parse_trust_policy(tomllib.loads(run("init")[1]["policy"])) == TrustPolicy()


@pytest.mark.parametrize("content", [b"", b"junk", b"{}", b"\0" * 5000])
def test_init_says_which_file_is_none(evidence, content):
    """A file that is neither evidence nor belongs to any is named."""
    Path("odd").write_bytes(content)

    code, facts = run("init", "--from", "odd")

    assert (code, facts["written"]) == (1, False)
    assert "odd" in facts["message"]


def test_page_explains_every_key():
    """docs/trust-policy.md names each key that a file may hold, and each kind of collateral."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "trust-policy.md").read_text()
    tables = {"snp", "tdx", "nvidia", "collateral"}
    keys = {
        name
        for policy in (TrustPolicy, SnpPolicy, TdxPolicy, NvidiaPolicy, CollateralPolicy)
        for name in reasons_of(policy)
    }
    missing = sorted(name for name in keys - tables - {"images", "tcb_floors"} if name not in page)

    assert missing == []
    assert all(f"`{kind.value}`" in page for kind in CollateralKind)
    assert "[[tdx.images]]" in page
    assert "[snp.tcb_floors.PRODUCT]" in page
