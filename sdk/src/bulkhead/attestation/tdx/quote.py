"""Intel TDX quotes, versions 4 and 5: bytes in, frozen claims out; nothing is verified here.

Layouts: Intel TDX DCAP Quoting Library API, revision 0.9, appendix A.3 (version 4) and A.4 (version 5); TD report
fields as in the Intel TDX Module 1.5 ABI, TDREPORT_STRUCT. Every integer is little-endian.
"""

from dataclasses import dataclass
from typing import Final

from bulkhead.attestation.inputs import decode_text
from bulkhead.attestation.obligations import failed
from bulkhead.errors import EvidenceError

__all__ = ["MAX_QUOTE_BYTES", "EnclaveReport", "TdReport", "TdxQuote", "decode_quote", "parse_quote"]

MAX_QUOTE_BYTES: Final = 131_072  # the largest buffer that Linux's TDX guest driver offers; real quotes have 5 to 8 kB
MAX_AUTH_DATA_BYTES: Final = 1_024  # quoting enclaves write 32
_HEADER_BYTES: Final = 48
_VERSIONS: Final = (4, 5)
_TEE_TDX: Final = 0x81
_KEY_ECDSA_P256: Final = 2
_INTEL_QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_BODY_TD10: Final = 2
_BODY_TD15: Final = 3
_QE_REPORT_DATA: Final = 6  # certification data type: QE report certification data
_PCK_CHAIN: Final = 5  # certification data type: PEM chain of the PCK certificate
_CERTIFICATION_TYPES: Final = range(1, 8)
_SIGNATURE_BYTES: Final = 64
_ENCLAVE_REPORT_BYTES: Final = 384
_TD10_FIELDS: Final = (
    ("tee_tcb_svn", 16),
    ("mr_seam", 48),
    ("mr_signer_seam", 48),
    ("seam_attributes", 8),
    ("td_attributes", 8),
    ("xfam", 8),
    ("mr_td", 48),
    ("mr_config_id", 48),
    ("mr_owner", 48),
    ("mr_owner_config", 48),
    ("rtmr0", 48),
    ("rtmr1", 48),
    ("rtmr2", 48),
    ("rtmr3", 48),
    ("report_data", 64),
)
_TD15_FIELDS: Final = (*_TD10_FIELDS, ("tee_tcb_svn_2", 16), ("mr_service_td", 48))
_BODY_FIELDS: Final = {_BODY_TD10: _TD10_FIELDS, _BODY_TD15: _TD15_FIELDS}


@dataclass(frozen=True, slots=True, kw_only=True)
class TdReport:
    """What the TDX module reported of one TD, as raw bytes in the order of the report.

    Attributes:
        tee_tcb_svn: 16 security version numbers; [0] and [1] are the TDX module's ISVSVN and major version.
        mr_seam: measurement of the TDX module.
        mr_signer_seam: its signer; zero for Intel's.
        seam_attributes: its attributes.
        td_attributes: 64 bits; see :mod:`bulkhead.attestation.tdx.policy`.
        xfam: extended features available to the TD, 64 bits.
        mr_td: measurement of the TD's initial contents.
        mr_config_id: owner-defined configuration, not measured.
        mr_owner: owner-defined owner, not measured.
        mr_owner_config: owner-defined configuration of the owner, not measured.
        rtmr0: first of the measurements that the TD extends at run time.
        rtmr1: second.
        rtmr2: third.
        rtmr3: fourth.
        report_data: the 64 bytes that the TD gave.
        tee_tcb_svn_2: security version numbers of the current module; None in a TD 1.0 report.
        mr_service_td: measurement of bound service TDs; None in a TD 1.0 report, zero where there are none.
    """

    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes
    rtmr3: bytes
    report_data: bytes
    tee_tcb_svn_2: bytes | None = None
    mr_service_td: bytes | None = None

    @property
    def rtmrs(self) -> tuple[bytes, bytes, bytes, bytes]:
        """RTMR0 to RTMR3."""
        return (self.rtmr0, self.rtmr1, self.rtmr2, self.rtmr3)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveReport:
    """The quoting enclave's own report (Intel SDM volume 3D, REPORT structure), 384 bytes."""

    signed: bytes
    misc_select: bytes
    attributes: bytes
    mr_enclave: bytes
    mr_signer: bytes
    isv_prod_id: int
    isv_svn: int
    report_data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxQuote:
    """A quote taken apart; nothing of it is trusted.

    Attributes:
        version: 4 or 5.
        signed: header and body, which the attestation key signs.
        report: the TD's report.
        signature: r ‖ s of the attestation key over ``signed``, 64 bytes.
        attestation_key: x ‖ y of a P-256 point, 64 bytes.
        qe_report: of the quoting enclave.
        qe_report_signature: r ‖ s of the PCK key over ``qe_report.signed``, 64 bytes.
        qe_auth_data: authentication data hashed into the quoting enclave's report data.
        certification_type: 5 where ``certification_data`` is the PCK certificate's chain as PEM.
        certification_data: untrusted bytes of that type.
    """

    version: int
    signed: bytes
    report: TdReport
    signature: bytes
    attestation_key: bytes
    qe_report: EnclaveReport
    qe_report_signature: bytes
    qe_auth_data: bytes
    certification_type: int
    certification_data: bytes

    @property
    def has_pck_chain(self) -> bool:
        """Whether the quote carries its PCK certificate chain itself."""
        return self.certification_type == _PCK_CHAIN


def decode_quote(data: bytes) -> bytes:
    """Return the binary form of a quote that comes raw, as hexadecimal or as base64 (untrusted).

    Raises:
        EvidenceError: TDX-1, neither form.
    """
    try:
        return decode_text(data, is_binary=_is_binary, max_bytes=MAX_QUOTE_BYTES, what="TDX quote", error=EvidenceError)
    except EvidenceError as error:
        raise failed("TDX-1", error.message) from error


def parse_quote(data: bytes) -> TdxQuote:
    """Return the claims in the binary form of a quote (untrusted); total: any bytes give claims or the error.

    Raises:
        EvidenceError: TDX-1.
    """
    if len(data) > MAX_QUOTE_BYTES:
        raise failed("TDX-1", f"the quote is longer than {MAX_QUOTE_BYTES} bytes")
    reader = _Reader(data, "the quote")
    version = _check_header(reader.take(_HEADER_BYTES))
    report = _parse_report(reader, version)
    signed = data[: reader.offset]
    signature_data = _Reader(reader.sized(), "the quote's signature data")
    if any(reader.rest()):
        raise failed("TDX-1", "bytes other than zero follow the quote")
    signature, attestation_key = signature_data.take(_SIGNATURE_BYTES), signature_data.take(_SIGNATURE_BYTES)
    if signature_data.u16() != _QE_REPORT_DATA:
        raise failed("TDX-1", "the certification data is not a quoting enclave's report")
    certification = _Reader(signature_data.sized(), "the quoting enclave's certification data")
    signature_data.end()
    qe_report = _parse_enclave_report(certification.take(_ENCLAVE_REPORT_BYTES))
    qe_report_signature = certification.take(_SIGNATURE_BYTES)
    auth_bytes = certification.u16()
    if auth_bytes > MAX_AUTH_DATA_BYTES:
        raise failed("TDX-1", f"the authentication data is longer than {MAX_AUTH_DATA_BYTES} bytes")
    auth_data = certification.take(auth_bytes)
    kind = certification.u16()
    if kind not in _CERTIFICATION_TYPES:
        raise failed("TDX-1", f"unknown type {kind} of certification data")
    certification_data = certification.sized()
    certification.end()
    return TdxQuote(
        version=version,
        signed=signed,
        report=report,
        signature=signature,
        attestation_key=attestation_key,
        qe_report=qe_report,
        qe_report_signature=qe_report_signature,
        qe_auth_data=auth_data,
        certification_type=kind,
        certification_data=certification_data,
    )


class _Reader:
    """Takes fields off the front of untrusted bytes; running out of them is the quote's fault."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        self.offset = 0

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self.offset:
            raise failed("TDX-1", f"{self._what} ends within a field")
        self.offset += size
        return self._data[self.offset - size : self.offset]

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "little")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def sized(self) -> bytes:
        return self.take(self.u32())

    def rest(self) -> bytes:
        return self.take(len(self._data) - self.offset)

    def end(self) -> None:
        if self.offset != len(self._data):
            raise failed("TDX-1", f"{self._what} is longer than its fields")


def _is_binary(data: bytes) -> bool:
    return len(data) > _HEADER_BYTES and int.from_bytes(data[:2], "little") in _VERSIONS


def _check_header(header: bytes) -> int:
    reader = _Reader(header, "the quote's header")
    version, key_type, tee = reader.u16(), reader.u16(), reader.u32()
    if version not in _VERSIONS:
        raise failed("TDX-1", f"quote version {version} is not 4 or 5")
    if tee != _TEE_TDX:
        raise failed("TDX-1", f"the quote's TEE type {tee:#x} is not TDX")
    if key_type != _KEY_ECDSA_P256:
        raise failed("TDX-1", f"attestation key type {key_type} is not ECDSA P-256")
    reader.take(4)  # reserved; SVNs of QE and PCE in older quotes, which the certificates state with authority
    if reader.take(16) != _INTEL_QE_VENDOR:
        raise failed("TDX-1", "the quoting enclave is not Intel's")
    return version


def _parse_report(reader: _Reader, version: int) -> TdReport:
    kind = _BODY_TD10
    if version == 5:
        kind, size = reader.u16(), reader.u32()
        fields = _BODY_FIELDS.get(kind)
        if fields is None:
            raise failed("TDX-1", f"body type {kind} is not a TD 1.0 or TD 1.5 report")
        if size != sum(width for _, width in fields):
            raise failed("TDX-1", f"{size} bytes is not the size of body type {kind}")
    return TdReport(**{name: reader.take(width) for name, width in _BODY_FIELDS[kind]})


def _parse_enclave_report(data: bytes) -> EnclaveReport:
    return EnclaveReport(
        signed=data,
        misc_select=data[16:20],
        attributes=data[48:64],
        mr_enclave=data[64:96],
        mr_signer=data[128:160],
        isv_prod_id=int.from_bytes(data[256:258], "little"),
        isv_svn=int.from_bytes(data[258:260], "little"),
        report_data=data[320:384],
    )
