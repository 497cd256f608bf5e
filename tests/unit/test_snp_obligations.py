"""Each SEV-SNP obligation by a case that fails it alone, against test roots."""

import base64

import pytest

from bulkhead.attestation.obligations import obligation_of
from bulkhead.attestation.snp import SNP_OBLIGATIONS, SnpProduct, Tcb
from bulkhead.errors import BulkheadError
from tests.simulator.snp_cases import ACCEPTED, REFUSED, Case
from tests.simulator.snp_machine import REPORT_DATA, Machine, crl, policy


@pytest.mark.parametrize("case", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(case):
    """A report that meets every obligation is accepted, in each version, product and kind of key."""
    verified = case.run()

    assert verified.claims.report_data == REPORT_DATA
    assert verified.product is case.machine.product
    assert verified.signing_key is case.machine.signing_key


@pytest.mark.parametrize(
    ("obligation", "case"),
    [pytest.param(obligation, case, id=f"{obligation} {name}") for obligation, name, case in REFUSED],
)
def test_refused(obligation, case):
    """A report that differs from an accepted one in one respect fails the obligation of that respect."""
    with pytest.raises(BulkheadError) as caught:
        case.run()

    assert obligation_of(caught.value) == obligation
    assert caught.value.code.startswith("EVIDENCE_")


def test_each_obligation_has_a_case():
    """No obligation is stated without a case that fails it."""
    assert [*SNP_OBLIGATIONS] == [*dict.fromkeys(obligation for obligation, _, _ in REFUSED)]


@pytest.mark.parametrize(
    ("obligation", "code"),
    [("SNP-5", "EVIDENCE_EXPIRED"), ("SNP-10", "EVIDENCE_INVALID"), ("SNP-11", "EVIDENCE_BINDING")],
)
def test_kind_of_failure(obligation, code):
    """The error's code says whether evidence is broken, out of date, or of something else."""
    case = next(case for number, _, case in REFUSED if number == obligation)
    with pytest.raises(BulkheadError) as caught:
        case.run()

    assert caught.value.code == code


@pytest.mark.parametrize("number", range(12, 25))
def test_policy_refusals_say_so(number):
    """What verifies and is not accepted is a matter of policy by its code."""
    for obligation, _, case in REFUSED:
        if obligation == f"SNP-{number}":
            with pytest.raises(BulkheadError) as caught:
                case.run()
            assert caught.value.code == "EVIDENCE_POLICY"


def test_levels_are_laid_out_by_product():
    """The same eight bytes are other levels on Turin than on Genoa."""
    raw = bytes([1, 2, 3, 4, 0, 0, 7, 8])

    assert Tcb.parse(raw, SnpProduct.TURIN) == Tcb(fmc=1, bootloader=2, tee=3, snp=4, microcode=8)
    assert Tcb.parse(raw, SnpProduct.GENOA) == Tcb(bootloader=1, tee=2, snp=7, microcode=8)


@pytest.mark.parametrize("wrap", ["raw", "hex", "HEX", "base64", "base64url", "pem"])
def test_report_in_every_encoding(wrap):
    """Raw bytes, hexadecimal, base64 of either alphabet and PEM are the same report."""
    encode = {
        "raw": lambda raw: raw,
        "hex": lambda raw: raw.hex().encode() + b"\n",
        "HEX": lambda raw: b"0x" + raw.hex().upper().encode(),
        "base64": base64.encodebytes,
        "base64url": lambda raw: base64.urlsafe_b64encode(raw).rstrip(b"="),
        "pem": lambda raw: b"-----BEGIN SNP REPORT-----\n" + base64.encodebytes(raw) + b"-----END SNP REPORT-----\n",
    }[wrap]

    assert Case(report=lambda machine: encode(machine.report())).run().product is SnpProduct.TURIN


def test_end_of_what_was_verified():
    """The value ends with the first of leaf, authorities and revocation list, the policy's age for it included."""
    leaf = Machine()
    end_s = int(leaf.not_after.timestamp())
    assert Case().run().not_after_s == end_s
    lists = (crl("ARK-Turin", (4711,)),)
    assert Case(crls=lists).run().not_after_s == int(lists[0].next_update_utc.timestamp()) < end_s
    aged = Case(crls=lists, policy=policy(max_crl_age_s=30 * 86_400)).run()
    assert aged.not_after_s == int(lists[0].last_update_utc.timestamp()) + 30 * 86_400
