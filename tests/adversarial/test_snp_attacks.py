"""Known attacks on verifiers of SEV-SNP evidence, each played by somebody who holds a genuine machine."""

import dataclasses

import pytest

from bulkhead.attestation.obligations import obligation_of
from bulkhead.attestation.snp import SigningKey, SnpProduct, amd_roots, verify_snp_report
from bulkhead.errors import BulkheadError
from tests.simulator.snp_machine import (
    NOW_S,
    REPORT_DATA,
    TCB,
    Machine,
    crl,
    policy,
    sign,
    snp_roots,
)

_LAX = policy(
    signing_keys=frozenset(SigningKey), csp_ids=None, products=frozenset(SnpProduct), measurements=None,
    allow_migration_agent=True, allow_cxl=True, allow_provisional_firmware=True,
)  # fmt: skip


def _verdict(report, *certificates, trust=_LAX, report_data=REPORT_DATA, crls=(), roots=None, product=None):
    try:
        verify_snp_report(
            report,
            certificates=certificates,
            report_data=report_data,
            policy=trust,
            now_s=NOW_S,
            crls=crls,
            roots=snp_roots() if roots is None else roots,
            product=product,
        )
    except BulkheadError as error:
        return obligation_of(error)
    return None


def test_debug_guest_under_the_laxest_policy():
    """A guest that its host may read is refused by every policy: there is no switch for it."""
    machine = Machine()
    report = machine.report(changes=[(0x08, (0xB001F).to_bytes(8, "little"))])

    assert _verdict(report, machine.leaf()) == "SNP-14"


@pytest.mark.parametrize("vmpl", [1, 2, 3, 0xFFFF_FFFF])
def test_vmpl_confusion(vmpl):
    """Less privileged software in the guest cannot pass its own report off as the guest's."""
    machine = Machine()
    report = machine.report(changes=[(0x30, vmpl.to_bytes(4, "little"))])

    assert _verdict(report, machine.leaf()) == "SNP-17"


def test_vlek_for_vcek():
    """A provider's loaded key cannot sign what claims to be signed by a chip's key, nor the other way round."""
    vcek, vlek = Machine(), Machine(signing_key=SigningKey.VLEK)

    assert _verdict(vcek.report(), vlek.leaf()) == "SNP-4"
    assert _verdict(vlek.report(), vcek.leaf()) == "SNP-4"
    renamed = dataclasses.replace(vlek, common_name="SEV-VCEK", issuer="SEV-Turin")
    assert _verdict(vcek.report(), renamed.leaf()) == "SNP-7"


def test_hardware_id_of_another_chip():
    """A key taken from one chip cannot vouch for another, although common name, product and levels agree."""
    stolen = Machine(hwid=b"stolen!!")
    report = stolen.report(changes=[(0x1A0, Machine().hwid)])

    assert _verdict(report, stolen.leaf()) == "SNP-9"


def test_tcb_rollback():
    """Older firmware is below the floor with its own certificate, and does not match a newer one."""
    old = bytes([1, 1, 1, 3, 0, 0, 0, 81])
    rolled_back = Machine(tcb=old)

    assert _verdict(rolled_back.report(), rolled_back.leaf()) == "SNP-18"
    assert _verdict(rolled_back.report(), Machine().leaf()) == "SNP-8"
    hidden = rolled_back.report(changes=[(0x180, TCB[SnpProduct.TURIN])])
    assert _verdict(hidden, Machine().leaf()) == "SNP-18"


def test_turin_levels_read_as_genoa():
    """Levels swapped into the other product's layout are another TCB."""
    machine = Machine()
    swapped = machine.report(changes=[(0x180, bytes([1, 1, 0, 0, 0, 0, 4, 81]))])

    assert _verdict(swapped, machine.leaf()) == "SNP-8"


def test_milan_key_claims_turin():
    """A Milan root key, which is public, cannot vouch for another product's report."""
    milan = Machine(product=SnpProduct.MILAN)
    as_turin = milan.report(changes=[(0x188, b"\x1a\x02\x01")])

    assert _verdict(as_turin, milan.leaf()) == "SNP-4"
    assert _verdict(milan.report(), milan.leaf(), trust=policy()) == "SNP-12"


def test_version_two_cannot_name_a_product_itself():
    """Only the caller decides which product a version 2 report is from."""
    milan = Machine(product=SnpProduct.MILAN)

    assert _verdict(milan.report(version=2), milan.leaf()) == "SNP-2"
    assert _verdict(milan.report(version=2), milan.leaf(), product=SnpProduct.TURIN) == "SNP-4"


def test_roots_inside_the_evidence():
    """A complete chain to a root of the attacker's own proves nothing against AMD's pinned roots."""
    machine = Machine()
    own = snp_roots()[SnpProduct.TURIN]

    assert _verdict(machine.report(), machine.leaf(), own.ask, own.ark, roots=amd_roots()) == "SNP-4"
    assert _verdict(machine.report(), machine.leaf(), roots=amd_roots()) == "SNP-4"


def test_revoked_authority():
    """An ASK that AMD revoked no longer vouches, whatever the policy demands."""
    machine = Machine()
    revoked = crl("ARK-Turin", (snp_roots()[SnpProduct.TURIN].ask.serial_number,))

    assert _verdict(machine.report(), machine.leaf(), crls=(revoked,)) == "SNP-6"


def test_reused_and_relayed_report():
    """A genuine report for another nonce or another worker's key does not answer this one."""
    machine = Machine()

    assert _verdict(machine.report(), machine.leaf(), report_data=bytes(64)) == "SNP-11"
    assert _verdict(machine.report(), machine.leaf(), report_data=b"") == "SNP-11"


def test_masked_chip_key():
    """Where the host masks the chip's key, reports carry no signature, and none is taken as one."""
    machine = Machine()
    report = machine.report(changes=[(0x48, b"\x02")])

    assert _verdict(report[:0x2A0] + bytes(512), machine.leaf()) == "SNP-3"


def test_signature_of_zeros():
    """R = S = 0 is no signature."""
    machine = Machine()

    assert _verdict(machine.report()[:0x2A0] + bytes(512), machine.leaf()) == "SNP-10"


def test_big_endian_signature():
    """R and S in the other byte order are refused for their form, not read another way."""
    machine = Machine()
    raw = machine.report()
    r, s = raw[0x2A0:0x2E8][::-1], raw[0x2E8:0x330][::-1]

    assert _verdict(raw[:0x2A0] + (r + s).ljust(512, b"\0"), machine.leaf()) == "SNP-1"


def test_self_signed_claims():
    """Whoever holds a genuine certificate but not its key cannot sign."""
    machine = Machine()

    assert _verdict(sign(machine.report(), "attacker"), machine.leaf()) == "SNP-10"
