"""An AMD machine of the tests' own: test roots for every product, its endorsement keys, and the reports they sign."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from bulkhead.attestation.inputs import load_certificates, load_crls
from bulkhead.attestation.snp import SigningKey, SnpPolicy, SnpProduct, SnpRoots, Tcb

NOW_S = 1_772_323_200  # 2026-03-01
_NOW = dt.datetime.fromtimestamp(NOW_S, tz=dt.UTC)
_YEAR = dt.timedelta(days=365)
_PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)
_OID = "1.3.6.1.4.1.3704.1"

REPORT_DATA = bytes(range(64))
MEASUREMENT = b"\x4d" * 48
HOST_DATA = b"\x48" * 32
CPUID = {SnpProduct.MILAN: (0x19, 0x01, 1), SnpProduct.GENOA: (0x19, 0x11, 1), SnpProduct.TURIN: (0x1A, 0x02, 1)}
NAMES = {SnpProduct.MILAN: "Milan", SnpProduct.GENOA: "Genoa", SnpProduct.TURIN: "Turin"}
SUFFIXES = {
    SnpProduct.MILAN: (1, 2, 4, 5, 6, 7, 3, 8),
    SnpProduct.GENOA: (1, 2, 4, 5, 6, 7, 3, 8),
    SnpProduct.TURIN: (9, 1, 2, 3, 5, 6, 7, 8),
}
TCB = {
    SnpProduct.MILAN: bytes([4, 0, 0, 0, 0, 0, 24, 219]),
    SnpProduct.GENOA: bytes([9, 0, 0, 0, 0, 0, 23, 84]),
    SnpProduct.TURIN: bytes([1, 1, 1, 4, 0, 0, 0, 81]),
}


@dataclass
class Authority:
    """A signing certificate with its key."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey


@cache
def _rsa_key(name: str) -> rsa.RSAPrivateKey:
    # Small, since twelve are made in each run: the verifier pins keys, not their size.
    return rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505


@cache
def leaf_key(name: str) -> ec.EllipticCurvePrivateKey:
    """A P-384 key by name, made once."""
    return ec.generate_private_key(ec.SECP384R1())


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test Micro Devices"),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


@cache
def authority(
    common: str, issuer: str = "", *, ca: bool = True, crl_sign: bool = False, generation: int = 1
) -> Authority:
    """An authority by common name, signed by another one or by itself; made once for each ``generation``."""
    key = _rsa_key(common if generation == 1 else f"{common} {generation}")
    signer = authority(issuer, crl_sign=True) if issuer else None
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_name(common))
        .issuer_name(_name(issuer or common))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_NOW - 3 * _YEAR)
        .not_valid_after(_NOW + 20 * _YEAR)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=0 if issuer and ca else None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
                key_agreement=False, key_cert_sign=True, crl_sign=crl_sign, encipher_only=False, decipher_only=False,
            ),
            critical=True,
        )
        .sign(signer.key if signer else key, hashes.SHA384(), rsa_padding=_PSS)
    )  # fmt: skip
    return Authority(certificate, key)


def snp_roots() -> Mapping[SnpProduct, SnpRoots]:
    """Authorities of the tests' own for every product."""
    return {product: _roots(product) for product in SnpProduct}


def _roots(product: SnpProduct) -> SnpRoots:
    ark = f"ARK-{NAMES[product]}"
    return SnpRoots(
        ark=authority(ark, crl_sign=True).certificate,
        ask=authority(f"SEV-{NAMES[product]}", ark).certificate,
        asvk=authority(f"SEV-VLEK-{NAMES[product]}", ark).certificate,
    )


def integer(value: int) -> bytes:
    """DER INTEGER of 0 to 255."""
    return bytes([2, 1, value]) if value < 128 else bytes([2, 2, 0, value])


def ia5(text: str) -> bytes:
    """DER IA5String."""
    return bytes([0x16, len(text)]) + text.encode()


@dataclass
class Machine:
    """One machine's endorsement: change a field, and the certificate and report change with it."""

    product: SnpProduct = SnpProduct.TURIN
    signing_key: SigningKey = SigningKey.VCEK
    tcb: bytes | None = None  # REPORTED_TCB, and the leaf's levels
    hwid: bytes = b"\x11\x22\x33\x44\x55\x66\x77\x88"
    csp_id: str = "CN=cloud.example"
    issuer: str | None = None
    issuer_generation: int = 1
    common_name: str | None = None
    product_name: str | None = None
    leaf_name: str = "leaf"
    public_key: object | None = None
    padding: object = field(default_factory=lambda: _PSS)
    digest: hashes.HashAlgorithm = field(default_factory=hashes.SHA384)
    not_before: dt.datetime = _NOW - _YEAR
    not_after: dt.datetime = _NOW + 6 * _YEAR
    extensions: dict[str, bytes | None] = field(default_factory=dict)
    critical: frozenset[str] = frozenset()
    ca: bool | None = None

    @property
    def levels(self) -> bytes:
        """The leaf's levels as TCB_VERSION."""
        return TCB[self.product] if self.tcb is None else self.tcb

    @property
    def vcek(self) -> bool:
        """Whether a VCEK signs."""
        return self.signing_key is SigningKey.VCEK

    @property
    def full_hwid(self) -> bytes:
        """The hardware id at the product's size."""
        return self.hwid if self.product is SnpProduct.TURIN else (self.hwid * 8)[:64]

    def leaf(self) -> x509.Certificate:
        """The VCEK's or VLEK's certificate."""
        issuer = self.issuer or f"SEV-{'' if self.vcek else 'VLEK-'}{NAMES[self.product]}"
        ark = f"ARK-{NAMES[self.product]}"
        signer = authority(
            issuer, "" if issuer.startswith("ARK") else ark, crl_sign=issuer.startswith("ARK"),
            generation=self.issuer_generation,
        )  # fmt: skip
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(self.common_name or f"SEV-{self.signing_key.name}"))
            .issuer_name(signer.certificate.subject)
            .public_key(self.public_key or leaf_key(self.leaf_name).public_key())
            .serial_number(1)
            .not_valid_before(self.not_before)
            .not_valid_after(self.not_after)
        )
        if self.ca is not None:
            builder = builder.add_extension(x509.BasicConstraints(ca=self.ca, path_length=None), critical=True)
        for oid, value in self._extensions().items():
            extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
            builder = builder.add_extension(extension, critical=oid in self.critical)
        certificate = builder.sign(signer.key, self.digest, rsa_padding=self.padding)
        return load_certificates(certificate.public_bytes(Encoding.DER), what="leaf")[0]

    def _extensions(self) -> dict[str, bytes]:
        values: dict[str, bytes | None] = {
            f"{_OID}.1": integer(1),
            f"{_OID}.2": ia5(self.product_name or NAMES[self.product]),
            **{f"{_OID}.3.{s}": integer(v) for s, v in zip(SUFFIXES[self.product], self.levels, strict=True)},
            f"{_OID}.4": self.full_hwid if self.vcek else None,
            f"{_OID}.5": None if self.vcek else ia5(self.csp_id),
            **self.extensions,
        }
        return {oid: value for oid, value in values.items() if value is not None}

    def report(self, *, version: int = 5, changes: Sequence[tuple[int, bytes]] = (), key: str | None = None) -> bytes:
        """A signed report; ``changes`` are (offset, bytes) written before signing."""
        raw = bytearray(0x4A0)
        family, model, stepping = CPUID[self.product]
        key_info = self.signing_key << 2
        fields = [
            (0x000, version.to_bytes(4, "little")), (0x004, (7).to_bytes(4, "little")),
            (0x008, (0x3001F).to_bytes(8, "little")), (0x034, (1).to_bytes(4, "little")), (0x038, self.levels),
            (0x040, (0x25).to_bytes(8, "little")), (0x048, key_info.to_bytes(4, "little")), (0x050, REPORT_DATA),
            (0x090, MEASUREMENT), (0x0C0, HOST_DATA), (0x0E0, b"\x1d" * 48), (0x140, b"\x52" * 32),
            (0x160, b"\xff" * 32), (0x180, self.levels),
            (0x1A0, self.full_hwid if self.vcek else b""), (0x1E0, self.levels),
            (0x1E8, bytes([0x41, 0x37, 1, 0, 0x41, 0x37, 1, 0])), (0x1F0, self.levels),
        ]  # fmt: skip
        if version >= 3:
            fields.append((0x188, bytes([family, model, stepping])))
        if version >= 5:
            fields.append((0x1F8, b"\x3f".ljust(8, b"\0") * 2))
        for offset, value in (*fields, *changes):
            raw[offset : offset + len(value)] = value
        return sign(bytes(raw), key or self.leaf_name)


def sign(raw: bytes, key: str) -> bytes:
    """Return a report with a fresh signature by the named leaf key."""
    r, s = decode_dss_signature(leaf_key(key).sign(raw[:0x2A0], ec.ECDSA(hashes.SHA384())))
    signature = r.to_bytes(72, "little") + s.to_bytes(72, "little")
    return raw[:0x2A0] + signature.ljust(512, b"\0")


def policy(**changes: object) -> SnpPolicy:
    """What a tenant of these machines would write: floors and its measurement on top of the defaults."""
    floors = {product: Tcb.parse(levels, product) for product, levels in TCB.items()}
    return SnpPolicy(**{"tcb_floors": floors, "measurements": frozenset({MEASUREMENT}), **changes})


def crl(
    issuer: str,
    revoked: Sequence[int] = (),
    *,
    last: dt.datetime = _NOW - dt.timedelta(days=9),
    next_update: dt.datetime = _NOW + _YEAR,
    key: rsa.RSAPrivateKey | None = None,
) -> x509.CertificateRevocationList:
    """A revocation list of an authority, or by another ``key`` in its name."""
    builder = (
        x509.CertificateRevocationListBuilder().issuer_name(_name(issuer)).last_update(last).next_update(next_update)
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(last).build()
        builder = builder.add_revoked_certificate(entry)
    signed = builder.sign(key or _rsa_key(issuer), hashes.SHA384(), rsa_padding=_PSS)
    return load_crls(signed.public_bytes(Encoding.DER), what="crl")[0]
