"""What can be right and wrong with SEV-SNP evidence: each refused case fails one obligation alone."""

import dataclasses
import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding

from bulkhead.attestation.snp import (
    PlatformInfo,
    SigningKey,
    SnpPolicy,
    SnpProduct,
    VerifiedSnpReport,
    verify_snp_report,
)
from tests.simulator.snp_machine import (
    HOST_DATA,
    NOW_S,
    REPORT_DATA,
    Machine,
    authority,
    crl,
    policy,
    snp_roots,
)

__all__ = ["ACCEPTED", "REFUSED", "Case"]

_OID = "1.3.6.1.4.1.3704.1"
_DAY = dt.timedelta(days=1)
_NOW = dt.datetime.fromtimestamp(NOW_S, tz=dt.UTC)
_ROOTS = snp_roots()


@dataclass
class Case:
    """One run of the verifier: the base case, and what differs from it."""

    machine: Machine = field(default_factory=Machine)
    policy: SnpPolicy = field(default_factory=policy)
    report: Callable[[Machine], bytes] = Machine.report
    product: SnpProduct | None = None
    extra: tuple = ()
    crls: tuple = ()
    report_data: bytes = REPORT_DATA
    no_leaf: bool = False
    now_s: int = NOW_S

    def certificates(self) -> tuple[x509.Certificate, ...]:
        """Return what comes beside the report."""
        return (*(() if self.no_leaf else (self.machine.leaf(),)), *self.extra)

    def run(self) -> VerifiedSnpReport:
        """Verify."""
        return verify_snp_report(
            self.report(self.machine),
            certificates=self.certificates(),
            report_data=self.report_data,
            policy=self.policy,
            now_s=self.now_s,
            product=self.product,
            crls=self.crls,
            roots=_ROOTS,
        )


def _changed(*changes: tuple[int, bytes], version: int = 5) -> Callable[[Machine], bytes]:
    return lambda machine: machine.report(version=version, changes=changes)


def _unsigned(offset: int, value: bytes) -> Callable[[Machine], bytes]:
    def report(machine: Machine) -> bytes:
        raw = bytearray(machine.report())
        raw[offset : offset + len(value)] = value
        return bytes(raw)

    return report


def _bits(value: int) -> bytes:
    return value.to_bytes(8, "little")


_VLEK = Machine(signing_key=SigningKey.VLEK)
_TAKES_VLEK = policy(signing_keys=frozenset({SigningKey.VLEK}), csp_ids=frozenset({"CN=cloud.example"}))
_ARK = "ARK-Turin"
_ASK_SERIAL = _ROOTS[SnpProduct.TURIN].ask.serial_number
_NEW_ASK = authority("SEV-Turin", _ARK, generation=2).certificate
_P256 = ec.generate_private_key(ec.SECP256R1()).public_key()
_OLDER = bytes([1, 1, 1, 3, 0, 0, 0, 81])
_VLEK_HWID = dataclasses.replace(_VLEK, extensions={f"{_OID}.4": bytes(8)})
_VLEK_NO_CSP = dataclasses.replace(_VLEK, extensions={f"{_OID}.5": None})
_OTHER_CSP = dataclasses.replace(_TAKES_VLEK, csp_ids=frozenset({"CN=other"}))
_AUTHOR = policy(author_key_digests=frozenset({b"\xaa" * 48}))
_PSS_SHORT = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=32)

ACCEPTED = {
    "base": Case(),
    "version 2, product given": Case(report=_changed(version=2), product=SnpProduct.TURIN),
    "version 3": Case(report=_changed(version=3)),
    "version 4": Case(report=_changed(version=4)),
    "genoa": Case(machine=Machine(product=SnpProduct.GENOA)),
    "siena under genoa": Case(
        machine=Machine(product=SnpProduct.GENOA, product_name="Siena-A0"), report=_changed((0x189, b"\xa0"))
    ),
    "turin dense": Case(report=_changed((0x189, b"\x11"))),
    "milan where allowed": Case(
        machine=Machine(product=SnpProduct.MILAN, product_name="Milan-B0"),
        policy=policy(products=frozenset({SnpProduct.MILAN})),
    ),
    "vlek where allowed": Case(machine=_VLEK, policy=_TAKES_VLEK),
    "vlek beside a masked chip key": Case(machine=_VLEK, report=_changed((0x48, b"\x06")), policy=_TAKES_VLEK),
    "ASK issued again under the pinned ARK": Case(machine=Machine(issuer_generation=2), extra=(_NEW_ASK,)),
    "reserved levels left out": Case(
        machine=Machine(extensions=dict.fromkeys(f"{_OID}.3.{suffix}" for suffix in (5, 6, 7)))
    ),
    "reserved level stated": Case(machine=Machine(extensions={f"{_OID}.3.4": b"\x02\x01\x00"})),
    "whole chain given": Case(extra=(_ROOTS[SnpProduct.TURIN].ask, _ROOTS[SnpProduct.TURIN].ark)),
    "revocation list given": Case(crls=(crl(_ARK, (4711,)),), policy=policy(require_crl=True)),
    "foreign revocation list": Case(crls=(crl("ARK-Genoa", (_ASK_SERIAL,)),)),
    "hardware id as octet string": Case(machine=Machine(extensions={f"{_OID}.4": b"\x04\x08" + Machine().full_hwid})),
    "every list of the policy": Case(
        policy=policy(
            host_data=frozenset({HOST_DATA}),
            chip_ids=frozenset({Machine().hwid.ljust(64, b"\0")}),
            id_key_digests=frozenset({b"\x1d" * 48}),
            minimum_guest_svn=7,
        )
    ),
    "author key": Case(
        report=_changed((0x48, b"\x01"), (0x110, b"\xaa" * 48)),
        policy=_AUTHOR,
    ),
    "unknown platform bit": Case(report=_changed((0x40, _bits(0x65)))),
}

REFUSED = [
    ("SNP-1", "empty", Case(report=lambda _: b"")),
    ("SNP-1", "one byte short", Case(report=lambda m: m.report()[:-1])),
    ("SNP-1", "one byte long", Case(report=lambda m: m.report() + b"\0")),
    ("SNP-1", "version 1", Case(report=_changed((0, b"\x01")))),
    ("SNP-1", "version 6", Case(report=_changed((0, b"\x06")))),
    ("SNP-1", "other signature algorithm", Case(report=_changed((0x34, b"\x02")))),
    ("SNP-1", "reserved after KEY_INFO", Case(report=_changed((0x4C, b"\x01")))),
    ("SNP-1", "reserved bits of KEY_INFO", Case(report=_changed((0x48, b"\x20")))),
    ("SNP-1", "CPUID in version 2", Case(report=_changed((0x188, b"\x1a"), version=2), product=SnpProduct.TURIN)),
    ("SNP-1", "mitigations in version 4", Case(report=_changed((0x1F8, b"\x01"), version=4))),
    ("SNP-1", "reserved before the signature", Case(report=_changed((0x29F, b"\x01")))),
    ("SNP-1", "R longer than 48 bytes", Case(report=_unsigned(0x2A0 + 48, b"\x01"))),
    ("SNP-1", "S longer than 48 bytes", Case(report=_unsigned(0x2A0 + 72 + 48, b"\x01"))),
    ("SNP-1", "padding of the signature", Case(report=_unsigned(0x49F, b"\x01"))),
    ("SNP-2", "version 2 without product", Case(report=_changed(version=2))),
    ("SNP-2", "unknown CPUID", Case(report=_changed((0x188, b"\x17\x31")))),
    ("SNP-2", "given product differs", Case(product=SnpProduct.GENOA)),
    ("SNP-3", "signing key none", Case(report=_changed((0x48, b"\x1c")))),
    ("SNP-3", "signing key reserved", Case(report=_changed((0x48, b"\x08")))),
    ("SNP-3", "chip key masked", Case(report=_changed((0x48, b"\x02")))),
    ("SNP-4", "no certificate", Case(no_leaf=True)),
    ("SNP-4", "two leaves", Case(extra=(Machine(hwid=b"otherhwi").leaf(),))),
    ("SNP-4", "authority of another product", Case(extra=(_ROOTS[SnpProduct.GENOA].ask,))),
    ("SNP-4", "leaf of another product's ASK", Case(machine=Machine(issuer="SEV-Genoa"))),
    ("SNP-4", "VCEK issued by the ASVK", Case(machine=Machine(issuer="SEV-VLEK-Turin"))),
    ("SNP-4", "leaf issued by the ARK itself", Case(machine=Machine(issuer=_ARK))),
    ("SNP-4", "unknown issuer", Case(machine=Machine(issuer="SEV-Evil"))),
    ("SNP-4", "ASK issued again and left out", Case(machine=Machine(issuer_generation=2))),
    ("SNP-4", "authority that signed nothing here", Case(extra=(_NEW_ASK,))),
    ("SNP-4", "PKCS #1 v1.5", Case(machine=Machine(padding=padding.PKCS1v15()))),
    ("SNP-4", "SHA-256", Case(machine=Machine(digest=hashes.SHA256()))),
    ("SNP-4", "salt of 32 bytes", Case(machine=Machine(padding=_PSS_SHORT))),
    ("SNP-4", "leaf is an authority", Case(machine=Machine(ca=True))),
    ("SNP-4", "unknown critical extension", Case(machine=Machine(critical=frozenset({f"{_OID}.1"})))),
    ("SNP-5", "leaf has expired", Case(machine=Machine(not_after=_NOW - _DAY))),
    ("SNP-5", "leaf is not yet valid", Case(machine=Machine(not_before=_NOW + _DAY))),
    ("SNP-5", "roots have expired", Case(machine=Machine(not_after=_NOW + 9999 * _DAY), now_s=NOW_S + 86400 * 7400)),
    ("SNP-6", "ASK is revoked", Case(crls=(crl(_ARK, (_ASK_SERIAL,)),))),
    ("SNP-6", "list is demanded and missing", Case(policy=policy(require_crl=True))),
    ("SNP-6", "only another's list", Case(policy=policy(require_crl=True), crls=(crl("ARK-Genoa"),))),
    ("SNP-6", "list is past its next update", Case(crls=(crl(_ARK, next_update=_NOW - _DAY),))),
    ("SNP-6", "list is of the future", Case(crls=(crl(_ARK, last=_NOW + _DAY),))),
    ("SNP-6", "list is older than the policy takes", Case(crls=(crl(_ARK),), policy=policy(max_crl_age_s=86400))),
    ("SNP-6", "list by another key", Case(crls=(crl(_ARK, key=authority("SEV-Evil", _ARK).key),))),
    ("SNP-7", "common name of the other kind", Case(machine=Machine(common_name="SEV-VLEK"))),
    ("SNP-7", "well-known wrong common name", Case(machine=Machine(common_name="VCEK"))),
    ("SNP-7", "key on another curve", Case(machine=Machine(public_key=_P256))),
    ("SNP-7", "product name of another", Case(machine=Machine(product_name="Milan-B0"))),
    ("SNP-7", "product name missing", Case(machine=Machine(extensions={f"{_OID}.2": None}))),
    ("SNP-7", "VCEK without hardware id", Case(machine=Machine(extensions={f"{_OID}.4": None}))),
    ("SNP-7", "VCEK with CSP id", Case(machine=Machine(extensions={f"{_OID}.5": b"\x16\x01x"}))),
    ("SNP-7", "Turin VCEK with a 64-byte hardware id", Case(machine=Machine(extensions={f"{_OID}.4": bytes(64)}))),
    ("SNP-7", "VLEK with hardware id", Case(machine=_VLEK_HWID, policy=_TAKES_VLEK)),
    ("SNP-7", "VLEK without CSP id", Case(machine=_VLEK_NO_CSP, policy=_TAKES_VLEK)),
    ("SNP-7", "level missing", Case(machine=Machine(extensions={f"{_OID}.3.9": None}))),
    ("SNP-7", "level of another layout", Case(machine=Machine(extensions={f"{_OID}.3.4": b"\x02\x01\x01"}))),
    ("SNP-7", "level above 255", Case(machine=Machine(extensions={f"{_OID}.3.8": b"\x02\x02\x01\x00"}))),
    ("SNP-7", "level with superfluous zero", Case(machine=Machine(extensions={f"{_OID}.3.8": b"\x02\x02\x00\x51"}))),
    *(
        ("SNP-8", f"level of byte {index} differs", Case(report=_changed((0x180 + index, b"\x7f"))))
        for index in range(8)
    ),
    ("SNP-9", "another chip", Case(report=_changed((0x1A0, b"\x99")))),
    ("SNP-9", "chip id masked", Case(report=_changed((0x1A0, bytes(8))))),
    ("SNP-9", "Turin chip id longer than 8 bytes", Case(report=_changed((0x1A8, b"\x01")))),
    ("SNP-10", "another key", Case(report=lambda m: m.report(key="other"))),
    ("SNP-10", "measurement changed", Case(report=_unsigned(0x90, b"\x4e"))),
    ("SNP-10", "signature zero", Case(report=_unsigned(0x2A0, bytes(144)))),
    ("SNP-11", "other report data", Case(report_data=REPORT_DATA[:-1] + b"\0")),
    ("SNP-11", "shorter report data", Case(report_data=REPORT_DATA[:32])),
    ("SNP-12", "milan by default", Case(machine=Machine(product=SnpProduct.MILAN))),
    ("SNP-13", "VLEK by default", Case(machine=_VLEK)),
    ("SNP-13", "VLEK of another provider", Case(machine=_VLEK, policy=_OTHER_CSP)),
    ("SNP-13", "VCEK where only VLEK is taken", Case(policy=_TAKES_VLEK)),
    ("SNP-14", "debug", Case(report=_changed((0x08, _bits(0xB001F))))),
    ("SNP-15", "migration agent", Case(report=_changed((0x08, _bits(0x7001F))))),
    ("SNP-16", "reserved one is zero", Case(report=_changed((0x08, _bits(0x1001F))))),
    ("SNP-16", "reserved bit 26", Case(report=_changed((0x08, _bits(0x403001F))))),
    ("SNP-16", "reserved bit 63", Case(report=_changed((0x08, _bits(1 << 63 | 0x3001F))))),
    ("SNP-16", "CXL", Case(report=_changed((0x08, _bits(0x23001F))))),
    ("SNP-16", "SMT refused", Case(policy=policy(allow_smt=False))),
    ("SNP-16", "several sockets refused", Case(policy=policy(require_single_socket=True))),
    ("SNP-17", "VMPL 1", Case(report=_changed((0x30, b"\x01")))),
    ("SNP-17", "VMPL of the host", Case(report=_changed((0x30, b"\xff\xff\xff\xff")))),
    ("SNP-17", "VMPL 0 where 2 is demanded", Case(policy=policy(vmpl=2))),
    ("SNP-18", "no floor named", Case(policy=policy(tcb_floors={}))),
    ("SNP-18", "committed below the floor", Case(report=_changed((0x1E0, _OLDER), (0x38, _OLDER)))),
    ("SNP-18", "launch below the floor", Case(report=_changed((0x1F0, bytes([1, 1, 1, 4, 0, 0, 0, 80]))))),
    ("SNP-18", "reported below the floor", Case(machine=Machine(tcb=bytes([0, 1, 1, 4, 0, 0, 0, 81])))),
    ("SNP-18", "one component for another", Case(machine=Machine(tcb=bytes([1, 1, 0, 9, 0, 0, 0, 99])))),
    ("SNP-19", "running TCB is provisional", Case(report=_changed((0x38, bytes([1, 1, 1, 5, 0, 0, 0, 81]))))),
    ("SNP-19", "running build is provisional", Case(report=_changed((0x1E8, b"\x42")))),
    ("SNP-20", "another measurement", Case(report=_changed((0x90, b"\x00")))),
    ("SNP-20", "no measurement named", Case(policy=policy(measurements=frozenset()))),
    ("SNP-21", "another host data", Case(policy=policy(host_data=frozenset({bytes(32)})))),
    ("SNP-22", "alias check not complete", Case(report=_changed((0x40, _bits(0x05))))),
    ("SNP-22", "forbidden bit", Case(policy=policy(forbidden_platform_info=PlatformInfo.SMT_EN))),
    ("SNP-23", "another chip than pinned", Case(policy=policy(chip_ids=frozenset({bytes(64)})))),
    ("SNP-24", "another ID key", Case(policy=policy(id_key_digests=frozenset({bytes(48)})))),
    ("SNP-24", "author key not enabled", Case(report=_changed((0x110, b"\xaa" * 48)), policy=_AUTHOR)),
    ("SNP-24", "GUEST_SVN too low", Case(policy=policy(minimum_guest_svn=8))),
]  # fmt: skip
