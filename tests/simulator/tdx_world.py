"""A TDX platform under a test root: complete chains, collateral and quotes, with any part made wrong on demand.

``TdxWorld().evidence()`` is accepted under ``policy()`` and ``roots()``; ``dataclasses.replace`` changes one thing.
"""

import hashlib
import json
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from bulkhead.attestation.tdx import TdImage, TdxCollateral, TdxPolicy, VerifiedTdxQuote, verify_tdx_quote

NOW_S: Final = 1_800_000_000
DAY_S: Final = 86_400
FMSPC: Final = bytes.fromhex("90c06f000000")
MR_TD: Final = b"\x11" * 48
RTMRS: Final = (b"\x20" * 48, b"\x21" * 48, b"\x22" * 48, b"\x23" * 48)
REPORT_DATA: Final = bytes(range(64))
PPID: Final = b"\x50" * 16
QE_SIGNER: Final = b"\x66" * 32
ZERO_48: Final = bytes(48)
QE_REPORT_DATA_TYPE, PCK_CHAIN_TYPE = 6, 5
_OID: Final = bytes.fromhex("2a864886f84d010d01")
_SGX_EXTENSION: Final = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
_FROM, _TO = datetime(2020, 1, 1, tzinfo=UTC), datetime(2040, 1, 1, tzinfo=UTC)


@cache
def key(name: str) -> ec.EllipticCurvePrivateKey:
    """Return the test key of that name; the same within one run."""
    del name
    return ec.generate_private_key(ec.SECP256R1())


def raw_point(private: ec.EllipticCurvePrivateKey) -> bytes:
    """Return x ‖ y."""
    return private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def raw_sign(private: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """Return r ‖ s."""
    r, s = decode_dss_signature(private.sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def name(common: str) -> x509.Name:
    """Return Intel's distinguished name of that common name."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Intel Corporation"),
        ]
    )


def certificate(
    subject: str,
    issuer: str,
    *,
    subject_key: str,
    issuer_key: str,
    serial: int,
    ca: bool = False,
    extension: bytes | None = None,
    not_after: datetime = _TO,
) -> x509.Certificate:
    """Return a certificate as Intel's look."""
    public, signer = key(subject_key).public_key(), key(issuer_key)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(_FROM)
        .not_valid_after(not_after)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not ca,
                content_commitment=not ca,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=ca,
                crl_sign=ca,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if extension is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(_SGX_EXTENSION, extension), critical=False)
    return builder.sign(signer, hashes.SHA256())


def crl(issuer: str, issuer_key: str, *, revoked: tuple[int, ...] = (), issued_s: int, next_s: int) -> bytes:
    """Return a revocation list as DER."""
    signer = key(issuer_key)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(name(issuer))
        .last_update(datetime.fromtimestamp(issued_s, UTC))
        .next_update(datetime.fromtimestamp(next_s, UTC))
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(_FROM).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.DER)


def _tlv(tag: int, contents: bytes) -> bytes:
    size = len(contents)
    length = bytes([size]) if size < 0x80 else bytes([0x82]) + size.to_bytes(2, "big")
    return bytes([tag]) + length + contents


def _pair(arc: bytes, tag: int, contents: bytes) -> bytes:
    return _tlv(0x30, _tlv(0x06, _OID + arc) + _tlv(tag, contents))


def _integer(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "big")


def sgx_extension(
    *,
    fmspc: bytes = FMSPC,
    pce_id: bytes = b"\0\0",
    ppid: bytes = PPID,
    svns: tuple[int, ...] = (4,) * 16,
    pce_svn: int = 13,
) -> bytes:
    """Return the SGX extension of a PCK certificate."""
    components = [_pair(bytes([2, index + 1]), 0x02, _integer(svn)) for index, svn in enumerate(svns)]
    tcb = b"".join(components) + _pair(b"\x02\x11", 0x02, _integer(pce_svn)) + _pair(b"\x02\x12", 0x04, bytes(svns))
    fields = (
        _pair(b"\x01", 0x04, ppid)
        + _pair(b"\x02", 0x30, tcb)
        + _pair(b"\x03", 0x04, pce_id)
        + _pair(b"\x04", 0x04, fmspc)
        + _pair(b"\x05", 0x0A, b"\x01")
        + _pair(b"\x06", 0x04, b"\x77" * 16)
        + _pair(
            b"\x07",
            0x30,
            _pair(b"\x07\x01", 0x01, b"\xff") + _pair(b"\x07\x02", 0x01, b"\0") + _pair(b"\x07\x03", 0x01, b"\xff"),
        )
    )
    return _tlv(0x30, fields)


def iso(time_s: int) -> str:
    """Return a time as Intel's documents write it."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def tcb_info(**changes: Any) -> dict[str, Any]:
    """Return a TCB info: the world's platform is up to date, and out of date below component SVN 4."""
    components = {
        status: {
            "sgxtcbcomponents": [{"svn": svn}] * 16,
            "pcesvn": 13,
            "tdxtcbcomponents": [{"svn": 5}, {"svn": 0}, *[{"svn": svn}] * 14],
        }
        for status, svn in (("UpToDate", 4), ("OutOfDate", 2))
    }
    module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
    return {
        "id": "TDX",
        "version": 3,
        "issueDate": iso(NOW_S - DAY_S),
        "nextUpdate": iso(NOW_S + 20 * DAY_S),
        "fmspc": FMSPC.hex().upper(),
        "pceId": "0000",
        "tcbType": 0,
        "tcbEvaluationDataNumber": 18,
        "tdxModule": module,
        "tdxModuleIdentities": [
            {
                **module,
                "id": "TDX_01",
                "tcbLevels": [
                    {"tcb": {"isvsvn": 6}, "tcbDate": iso(NOW_S), "tcbStatus": "UpToDate"},
                    {"tcb": {"isvsvn": 4}, "tcbDate": iso(NOW_S), "tcbStatus": "OutOfDate", "advisoryIDs": ["SA-M"]},
                ],
            }
        ],
        "tcbLevels": [
            {"tcb": components["UpToDate"], "tcbDate": iso(NOW_S), "tcbStatus": "UpToDate"},
            {
                "tcb": components["OutOfDate"],
                "tcbDate": iso(NOW_S),
                "tcbStatus": "OutOfDate",
                "advisoryIDs": ["INTEL-SA-00001"],
            },
        ],
        **changes,
    }


def qe_identity(**changes: Any) -> dict[str, Any]:
    """Return the identity of the world's quoting enclave."""
    return {
        "id": "TD_QE",
        "version": 2,
        "issueDate": iso(NOW_S - DAY_S),
        "nextUpdate": iso(NOW_S + 20 * DAY_S),
        "tcbEvaluationDataNumber": 18,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": QE_SIGNER.hex().upper(),
        "isvprodid": 2,
        "tcbLevels": [
            {"tcb": {"isvsvn": 4}, "tcbDate": iso(NOW_S), "tcbStatus": "UpToDate"},
            {"tcb": {"isvsvn": 2}, "tcbDate": iso(NOW_S), "tcbStatus": "OutOfDate", "advisoryIDs": ["SA-Q"]},
        ],
        **changes,
    }


@dataclass(frozen=True, kw_only=True)
class TdxEvidence:
    """What a verifier is given."""

    quote: bytes
    collateral: TdxCollateral

    def verify(
        self, policy_: TdxPolicy | None = None, *, report_data: bytes = REPORT_DATA, now_s: int = NOW_S
    ) -> VerifiedTdxQuote:
        """Verify under the test root."""
        return verify_tdx_quote(
            self.quote,
            collateral=self.collateral,
            policy=policy_ if policy_ is not None else policy(),
            report_data=report_data,
            now_s=now_s,
            roots=roots(),
        )


def roots() -> tuple[x509.Certificate, ...]:
    """Return the test root."""
    return (_root(),)


@cache
def _root() -> x509.Certificate:
    root = "Intel SGX Root CA"
    return certificate(root, root, subject_key="root", issuer_key="root", serial=1, ca=True)


def policy(**changes: Any) -> TdxPolicy:
    """Return the strict policy of a tenant that knows the world's image."""
    return TdxPolicy(**{"images": (TdImage(mr_td=MR_TD, rtmrs=RTMRS),), **changes})


@dataclass(frozen=True, kw_only=True)
class TdxWorld:
    """Everything that can be changed; the defaults hold together."""

    version: int = 4
    body_type: int = 3
    tee_type: int = 0x81
    key_type: int = 2
    vendor: bytes = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
    tee_tcb_svn: bytes = bytes([6, 1]) + bytes([4]) * 14
    tee_tcb_svn_2: bytes | None = None  # as at launch
    seam: tuple[bytes, bytes, bytes] = (b"\x33" * 48, ZERO_48, bytes(8))  # MRSEAM, MRSIGNERSEAM, SEAMATTRIBUTES
    td_attributes: int = 1 << 28
    xfam: int = 0x602E7
    mr_td: bytes = MR_TD
    owner: tuple[bytes, bytes, bytes] = (ZERO_48, ZERO_48, ZERO_48)  # MRCONFIGID, MROWNER, MROWNERCONFIG
    rtmrs: tuple[bytes, bytes, bytes, bytes] = RTMRS
    report_data: bytes = REPORT_DATA
    mr_service_td: bytes = ZERO_48
    quote_key: str = "attestation"
    bound_key: str = "attestation"
    qe_signing_key: str = "pck"
    qe_attributes: bytes = bytes.fromhex("11000000000000000000000000000000")
    qe_misc_select: int = 0
    qe_signer: bytes = QE_SIGNER
    qe_product: int = 2
    qe_svn: int = 6
    auth_data: bytes = bytes(range(32))
    qe_report_data_tail: bytes = bytes(32)
    certification_type: int = PCK_CHAIN_TYPE
    chain_end: bytes = b"\0"
    padding: bytes = b""
    spoiled_at: int | None = None  # a byte changed after signing
    pck_subject: str = "Intel SGX PCK Certificate"
    pck_ca_subject: str = "Intel SGX PCK Platform CA"
    pck_ca_is_ca: bool = True
    pck_not_after: datetime = _TO
    pck_extension: bytes | None = field(default_factory=sgx_extension)
    pck_ca_root_key: str = "root"
    revoked_by_ca: tuple[int, ...] = ()
    revoked_by_root: tuple[int, ...] = ()
    crl_issued_s: int = NOW_S - DAY_S
    crl_next_s: int = NOW_S + 20 * DAY_S
    tcb_info: dict[str, Any] = field(default_factory=tcb_info)
    qe_identity: dict[str, Any] = field(default_factory=qe_identity)
    document_signer: str = "Intel SGX TCB Signing"
    tcb_signing_key: str = "signing"
    qe_identity_signing_key: str = "signing"

    def evidence(self) -> TdxEvidence:
        """Return quote and collateral."""
        return TdxEvidence(quote=self.quote(), collateral=self.collateral())

    def pck_chain(self) -> bytes:
        """Return the PCK certificate, its CA and the root as PEM."""
        root = "Intel SGX Root CA"
        pck_ca = certificate(
            self.pck_ca_subject,
            root,
            subject_key="pck-ca",
            issuer_key=self.pck_ca_root_key,
            serial=2,
            ca=self.pck_ca_is_ca,
        )
        pck = certificate(
            self.pck_subject,
            self.pck_ca_subject,
            subject_key="pck",
            issuer_key="pck-ca",
            serial=3,
            extension=self.pck_extension,
            not_after=self.pck_not_after,
        )
        return b"".join(item.public_bytes(Encoding.PEM) for item in (pck, pck_ca, _root()))

    def quote(self) -> bytes:
        """Return the signed quote."""
        signed = self._header() + self._body()
        chain = self.pck_chain() + self.chain_end
        qe_report = self._qe_report()
        certification = (
            qe_report
            + raw_sign(key(self.qe_signing_key), qe_report)
            + struct.pack("<H", len(self.auth_data))
            + self.auth_data
            + struct.pack("<HI", self.certification_type, len(chain))
            + chain
        )
        signature = (
            raw_sign(key(self.quote_key), signed)
            + raw_point(key(self.quote_key))
            + struct.pack("<HI", QE_REPORT_DATA_TYPE, len(certification))
            + certification
        )
        quote = bytearray(signed + struct.pack("<I", len(signature)) + signature + self.padding)
        if self.spoiled_at is not None:
            quote[self.spoiled_at] ^= 1
        return bytes(quote)

    def _header(self) -> bytes:
        return struct.pack("<HHI4s16s20s", self.version, self.key_type, self.tee_type, bytes(4), self.vendor, bytes(20))

    def _body(self) -> bytes:
        report = b"".join(
            (
                self.tee_tcb_svn,
                *self.seam,
                self.td_attributes.to_bytes(8, "little"),
                self.xfam.to_bytes(8, "little"),
                self.mr_td,
                *self.owner,
                *self.rtmrs,
                self.report_data,
            )
        )
        if self.version == 4:
            return report
        if self.body_type == 3:
            report += (self.tee_tcb_svn_2 or self.tee_tcb_svn) + self.mr_service_td
        return struct.pack("<HI", self.body_type, len(report)) + report

    def _qe_report(self) -> bytes:
        digest = hashlib.sha256(raw_point(key(self.bound_key)) + self.auth_data).digest()
        return b"".join(
            (
                bytes(16),
                self.qe_misc_select.to_bytes(4, "little"),
                bytes(28),
                self.qe_attributes,
                b"\x44" * 32,
                bytes(32),
                self.qe_signer,
                bytes(96),
                struct.pack("<HH", self.qe_product, self.qe_svn),
                bytes(60),
                digest,
                self.qe_report_data_tail,
            )
        )

    def collateral(self) -> TdxCollateral:
        """Return the signed collateral."""
        root = "Intel SGX Root CA"
        signer = certificate(self.document_signer, root, subject_key="signing", issuer_key="root", serial=4)
        chain = b"".join(item.public_bytes(Encoding.PEM) for item in (signer, _root()))
        info, identity = (json.dumps(item).encode() for item in (self.tcb_info, self.qe_identity))
        dates = {"issued_s": self.crl_issued_s, "next_s": self.crl_next_s}
        return TdxCollateral(
            tcb_info=info,
            tcb_info_signature=raw_sign(key(self.tcb_signing_key), info),
            tcb_info_issuer_chain=chain,
            qe_identity=identity,
            qe_identity_signature=raw_sign(key(self.qe_identity_signing_key), identity),
            qe_identity_issuer_chain=chain,
            pck_crl=crl(self.pck_ca_subject, "pck-ca", revoked=self.revoked_by_ca, **dates),
            root_ca_crl=crl(root, "root", revoked=self.revoked_by_root, **dates),
        )


def bundle(collateral: TdxCollateral) -> dict[str, str]:
    """Return collateral in the JSON form that Intel's library and others exchange."""
    return {
        "pck_crl_issuer_chain": collateral.tcb_info_issuer_chain.decode(),
        "root_ca_crl": collateral.root_ca_crl.hex(),
        "pck_crl": collateral.pck_crl.hex(),
        "tcb_info_issuer_chain": collateral.tcb_info_issuer_chain.decode(),
        "tcb_info": collateral.tcb_info.decode(),
        "tcb_info_signature": collateral.tcb_info_signature.hex(),
        "qe_identity_issuer_chain": collateral.qe_identity_issuer_chain.decode(),
        "qe_identity": collateral.qe_identity.decode(),
        "qe_identity_signature": collateral.qe_identity_signature.hex(),
    }
