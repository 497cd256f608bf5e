"""Mutated SEV-SNP evidence: nothing is accepted, and nothing but our own errors is raised."""

import random
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from bulkhead.attestation.inputs import load_certificates, load_crls
from bulkhead.attestation.snp import SnpProduct, parse_snp_policy, read_snp_report, verify_snp_report
from bulkhead.errors import BulkheadError, ConfigError, EvidenceError
from tests.simulator.snp_machine import NOW_S, REPORT_DATA, Machine, crl, policy, snp_roots

# Bytes of report and leaf that no check covers: none. Reserved bytes are demanded zero, the rest is signed; in a DER
# certificate all is signed, or (outer algorithm, unused bits of the signature) compared.
_SAMPLE = 160
_MACHINES = {product: Machine(product=product) for product in (SnpProduct.GENOA, SnpProduct.TURIN)}
_FIELDS = (0x04, 0x08, 0x10, 0x30, 0x38, 0x40, 0x48, 0x50, 0x90, 0xC0, 0xE0, 0x110, 0x140, 0x180, 0x1A0, 0x1E0, 0x2A0)


def _accepted(product, report, leaf):
    try:
        certificates = load_certificates(leaf, what="leaf")
        verify_snp_report(
            report,
            certificates=certificates,
            report_data=REPORT_DATA,
            policy=policy(),
            now_s=NOW_S,
            product=product,
            roots=snp_roots(),
        )
    except BulkheadError:
        return False
    return True


def _flips(data, bits):
    for bit in bits:
        mutated = bytearray(data)
        mutated[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(mutated)


def _evidence(product):
    machine = _MACHINES[product]
    return machine.report(), machine.leaf().public_bytes(Encoding.DER)


def _check_flips(product, sample):
    report, leaf = _evidence(product)
    assert _accepted(product, report, leaf)

    def bits(data):
        everything = range(len(data) * 8)
        return everything if sample is None else random.Random(20260301).sample(everything, sample)

    assert [bit for bit, mutated in _flips(report, bits(report)) if _accepted(product, mutated, leaf)] == []
    assert [bit for bit, mutated in _flips(leaf, bits(leaf)) if _accepted(product, report, mutated)] == []


@pytest.mark.parametrize("product", _MACHINES)
def test_sampled_flips(product):
    """No sampled bit of report or certificate can be flipped."""
    _check_flips(product, _SAMPLE)


@pytest.mark.long
@pytest.mark.parametrize("product", _MACHINES)
def test_every_flip(product):
    """No bit of report or certificate can be flipped."""
    _check_flips(product, None)


@pytest.mark.parametrize("product", _MACHINES)
def test_cuts_and_extensions(product):
    """A report or certificate that is cut or extended at a field's boundary, or at its end, is not accepted."""
    report, leaf = _evidence(product)
    for offset in (*_FIELDS, len(report)):
        for mutated in (report[:offset], report[:offset] + b"\0" + report[offset:], report[offset:]):
            assert mutated == report or not _accepted(product, mutated, leaf)
    for offset in (*range(0, len(leaf), 37), len(leaf) - 1, len(leaf)):
        for mutated in (leaf[:offset], leaf[:offset] + b"\0" + leaf[offset:]):
            assert mutated == leaf or not _accepted(product, report, mutated)


def test_flips_of_a_revocation_list():
    """No sampled bit of a demanded revocation list can be flipped: it is refused, or no longer the issuer's."""
    machine = Machine()
    report, leaf = machine.report(), machine.leaf()
    data = crl("ARK-Turin", (4711,)).public_bytes(Encoding.DER)

    def accepted(mutated):
        try:
            lists = load_crls(mutated, what="list")
            verify_snp_report(
                report,
                certificates=(leaf,),
                report_data=REPORT_DATA,
                policy=policy(require_crl=True),
                now_s=NOW_S,
                crls=lists,
                roots=snp_roots(),
            )
        except EvidenceError:
            return False
        return True

    assert accepted(data)
    bits = random.Random(11).sample(range(len(data) * 8), 600)
    assert [bit for bit, mutated in _flips(data, bits) if accepted(mutated)] == []


def test_swaps():
    """Report, certificate and product of different machines are not accepted together."""
    machines = [*_MACHINES.values(), Machine(leaf_name="second"), Machine(hwid=b"otherhwi", leaf_name="third")]
    for one in machines:
        for other in machines:
            if one is not other:
                leaf = other.leaf().public_bytes(Encoding.DER)
                assert not _accepted(one.product, one.report(), leaf)


def test_random_bytes():
    """Any bytes give claims or our own error, as report, certificate and policy."""
    source = random.Random(7)
    report, leaf = _evidence(SnpProduct.TURIN)
    for _ in range(300):
        noise = source.randbytes(source.choice((0, 1, 16, 64, 1183, 1184, 1185, 2368)))
        for data in (noise, report[:4] + noise[4:], noise.hex().encode()):
            with suppress(EvidenceError):
                read_snp_report(data)
        for data in (noise, leaf[: source.randrange(len(leaf))] + noise):
            with suppress(EvidenceError):
                load_certificates(data, what="noise")


@pytest.mark.parametrize(
    "table",
    [
        {"debug": True},
        {"measurements": ["00"]},
        {"measurements": ["any"]},
        {"measurements": ["any", "00" * 48]},
        {"measurements": "any"},
        {"products": ["rome"]},
        {"signing_keys": ["none"]},
        {"vmpl": 4},
        {"vmpl": True},
        {"tcb_floors": {"turin": {"snp": 256}}},
        {"tcb_floors": {"turin": {"microcodes": 1}}},
        {"tcb_floors": {"rome": {}}},
        {"tcb_floors": {"genoa": {"fmc": 1}}},
        {"required_platform_info": ["alias_check"]},
        {"max_crl_age_s": 0},
    ],
)
def test_policy_refuses(table):
    """A key that is unknown, mistyped or out of bounds is an error, never ignored."""
    with pytest.raises(ConfigError):
        parse_snp_policy(table)


def test_policy_reads():
    """Every key of a policy reaches the verifier as written."""
    parsed = parse_snp_policy(
        {
            "products": ["milan"],
            "tcb_floors": {"milan": {"bootloader": 4, "snp": 24, "microcode": 219}},
            "measurements": ["4d" * 48],
            "chip_ids": ["any"],
            "signing_keys": ["vlek"],
            "csp_ids": ["CN=cloud.example"],
            "vmpl": 1,
            "required_platform_info": ["ecc_en", "alias_check_complete"],
            "allow_provisional_firmware": True,
            "host_data": ["48" * 32],
            "max_crl_age_s": 86400,
        }
    )

    assert parsed.measurements == {b"\x4d" * 48}
    assert parsed.chip_ids is None
    assert parsed.vmpl == 1
    assert {product.value for product in parsed.products} == {"milan"}
    assert {key.name for key in parsed.signing_keys} == {"VLEK"}
    assert parsed.tcb_floors[SnpProduct.MILAN].microcode == 219
    assert parsed.required_platform_info == 0x24
    assert parsed.host_data == {b"\x48" * 32}
    assert parsed.allow_provisional_firmware
    assert parse_snp_policy({}) == policy(tcb_floors={}, measurements=frozenset())
