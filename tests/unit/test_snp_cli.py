"""`bulkhead evidence verify --type snp` on files."""

import base64
import json

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import Encoding

from bulkhead.cli.program import program
from tests.simulator.snp_machine import MEASUREMENT, REPORT_DATA, Machine, crl, snp_roots

_NONCE = REPORT_DATA.hex()
_POLICY = f"""
minimum_tier = "confidential"

[snp]
measurements = ["{MEASUREMENT.hex()}"]

[snp.tcb_floors.turin]
fmc = 1
snp = 4
"""


@pytest.fixture(autouse=True)
def _test_roots(monkeypatch):
    monkeypatch.setattr("bulkhead.attestation.snp.verify.amd_roots", snp_roots)


@pytest.fixture
def files(tmp_path):
    """A report, its certificate and a policy."""
    machine = Machine()
    (tmp_path / "report").write_bytes(machine.report())
    (tmp_path / "vcek").write_bytes(machine.leaf().public_bytes(Encoding.DER))
    (tmp_path / "trust.toml").write_text(_POLICY)
    return tmp_path


def _run(files, *options, nonce=_NONCE, certs=("--certs", "vcek"), at="2026-03-01"):
    arguments = [str(files / item) if (files / item).is_file() else item for item in (*certs, *options)]
    return CliRunner().invoke(
        program,
        ["evidence", "verify", "--type", "snp", str(files / "report"), *arguments, "--nonce", nonce, "--at", at],
    )


def test_accepts(files):
    """Evidence that holds ends with 0 and its claims."""
    result = _run(files, "--policy", "trust.toml", "--json")

    facts = json.loads(result.stdout)
    assert result.exit_code == 0
    assert facts["verified"] is True
    assert facts["product"] == "turin"
    assert facts["measurement"] == MEASUREMENT.hex()
    assert facts["reported_tcb"]["snp"] == 4
    assert facts["policy"] == ["SMT", "RESERVED_ONE"]


def test_says_what_holds_in_words(files):
    """Without --json the claims are lines for a person."""
    result = _run(files, "--policy", "trust.toml")

    assert result.exit_code == 0
    assert ["signing_key", "VCEK"] in [line.split() for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    ("options", "changes", "code", "obligation"),
    [
        (("--policy", "trust.toml"), {"nonce": "00"}, "EVIDENCE_BINDING", "SNP-11"),
        (("--policy", "trust.toml"), {"at": "2036-03-01T00:00:00Z"}, "EVIDENCE_EXPIRED", "SNP-5"),
        (("--policy", "trust.toml"), {"certs": ()}, "EVIDENCE_INVALID", "SNP-4"),
        (("--policy", "trust.toml", "--product", "milan"), {}, "EVIDENCE_INVALID", "SNP-2"),
        ((), {}, "EVIDENCE_POLICY", "SNP-18"),
    ],
)
def test_refuses(files, options, changes, code, obligation):
    """Evidence that does not hold ends with 1, its code and the obligation, as JSON and in words."""
    as_json = _run(files, *options, "--json", **changes)
    in_words = _run(files, *options, **changes)

    failure = json.loads(as_json.stdout)
    assert (as_json.exit_code, in_words.exit_code) == (1, 1)
    assert (failure["verified"], failure["code"], failure["obligation"]) == (False, code, obligation)
    assert f"error {code}: {obligation}: " in in_words.stderr


def _pem(label, data):
    return f"-----BEGIN {label}-----\n{base64.encodebytes(data).decode()}-----END {label}-----\n".encode()


@pytest.mark.parametrize(
    "encode",
    [lambda data: data.hex().encode(), base64.encodebytes, lambda data: _pem("CERTIFICATE", data)],
    ids=["hex", "base64", "pem"],
)
def test_certificate_in_every_encoding(files, encode):
    """The certificate comes as DER, hexadecimal, base64 or PEM, by option or as a further file."""
    (files / "encoded").write_bytes(encode((files / "vcek").read_bytes()))

    assert _run(files, "--policy", "trust.toml", certs=("--certs", "encoded")).exit_code == 0
    assert _run(files, "--policy", "trust.toml", certs=("encoded",)).exit_code == 0


def test_revocation_list(files):
    """A list given by file is applied."""
    serial = next(roots.ask.serial_number for product, roots in snp_roots().items() if product.value == "turin")
    (files / "crl").write_bytes(_pem("X509 CRL", crl("ARK-Turin", (serial,)).public_bytes(Encoding.DER)))

    result = _run(files, "--policy", "trust.toml", "--crl", "crl", "--json")

    assert json.loads(result.stdout)["obligation"] == "SNP-6"


@pytest.mark.parametrize("text", ["[snp]\ndebug = true", "[snp]\nvmpl = 9", "snp = 1", "typo = 1", "[snp", "[gpu]"])
def test_wrong_policy_is_not_taken_for_a_lax_one(files, text):
    """A policy that cannot be read as written ends with 2, not with a verdict."""
    (files / "trust.toml").write_text(text)

    result = _run(files, "--policy", "trust.toml", "--json")

    assert result.exit_code == 2
    assert "error CONFIG" in result.stderr


@pytest.mark.parametrize("content", [b"", b"\0" * 1184, b"x" * 5_000_000, b"-----BEGIN CERTIFICATE-----"])
def test_any_file_gives_a_verdict(files, content):
    """Whatever stands in the files, the answer is a code and an obligation."""
    (files / "report").write_bytes(content)
    as_report = json.loads(_run(files, "--policy", "trust.toml", "--json").stdout)
    (files / "report").write_bytes(Machine().report())
    (files / "vcek").write_bytes(content)
    as_certificate = json.loads(_run(files, "--policy", "trust.toml", "--json").stdout)

    assert (as_report["code"], as_report["obligation"]) == ("EVIDENCE_INVALID", "SNP-1")
    assert (as_certificate["code"], as_certificate["obligation"]) == ("EVIDENCE_INVALID", "SNP-4")


@pytest.mark.parametrize(("nonce", "at"), [("zz", "2026-03-01"), ("00" * 65, "2026-03-01"), ("00", "tomorrow")])
def test_wrong_arguments(files, nonce, at):
    """A nonce or time that is none is refused before anything is believed."""
    assert _run(files, "--policy", "trust.toml", nonce=nonce, at=at).exit_code == 1
