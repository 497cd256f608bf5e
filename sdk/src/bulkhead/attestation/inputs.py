"""Attestation inputs: bounded reading of reports, certificates and lists from any form they come in.

Reading trusts nothing and verifies nothing; what comes out is parsed, so that no later use of it fails in a library.
"""

import base64
import binascii
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar
from urllib.parse import unquote_to_bytes

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from bulkhead.errors import BulkheadError, EvidenceError

__all__ = [
    "MAX_CERTIFICATES",
    "MAX_CERTIFICATE_BYTES",
    "MAX_CRL_BYTES",
    "decode_text",
    "load_certificates",
    "load_crls",
    "without_warnings",
]

MAX_CERTIFICATE_BYTES: Final = 8_192  # vendors' certificates have 0.5 to 2.5 kB
MAX_CERTIFICATES: Final = 16  # in one input; the longest vendor chain (NVIDIA) has 5
MAX_CRL_BYTES: Final = 1_048_576  # Intel's platform CRL has grown to some hundred kB
_MAX_TEXT_FACTOR: Final = 4  # a text form is at most so many times as long: hexadecimal with spaces has three
_MAX_LAYERS: Final = 2  # text around text: base64 around PEM, as NVIDIA's evidence files have it
_DER_SEQUENCE: Final = (b"\x30\x81", b"\x30\x82", b"\x30\x83")  # of 128 bytes to 16 MiB; no text begins so
_TO_STANDARD_BASE64: Final = bytes.maketrans(b"-_", b"+/")
_MAX_CRLS: Final = 8
_PEM_START: Final = b"-----BEGIN "
_PEM_START_IN_URL: Final = b"-----BEGIN%20"  # as Intel's service sends chains, in HTTP headers
_CERTIFICATE_LABELS: Final = frozenset({b"CERTIFICATE", b"X509 CERTIFICATE"})  # the older one is OpenSSL's
_CRL_LABELS: Final = frozenset({b"X509 CRL"})
_PEM: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----([A-Za-z0-9+/=\s]*)-----END \1-----")
_HEX: Final = re.compile(rb"(?:0[xX])?((?:[0-9a-fA-F]{2})+)")
_MALFORMED: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
_Parsed = TypeVar("_Parsed", x509.Certificate, x509.CertificateRevocationList)


def decode_text(
    data: bytes, *, is_binary: Callable[[bytes], bool], max_bytes: int, what: str, error: type[BulkheadError]
) -> bytes:
    """Return the binary form of one object that comes raw, as hexadecimal, base64 (either alphabet) or one PEM block.

    Args:
        data: untrusted.
        is_binary: whether bytes look like the object (its exact size or its DER header).
        max_bytes: bound of the binary form.
        what: names the object in errors.
        error: raised if no form fits.
    """
    if is_binary(data):
        if len(data) > max_bytes:
            raise error(f"{what}: longer than {max_bytes} bytes")
        return data
    if len(data) > max_bytes * _MAX_TEXT_FACTOR:
        raise error(f"{what}: longer than {max_bytes} bytes in any encoding")
    pem = _PEM.findall(data)
    if len(pem) > 1:
        raise error(f"{what}: more than one PEM block")
    decoded = _decode_base64(pem[0][1]) if pem else _decode_line(data)
    if decoded is None or not is_binary(decoded) or len(decoded) > max_bytes:
        raise error(f"{what}: neither the binary form nor its hexadecimal, base64 or PEM encoding")
    return decoded


def load_certificates(
    data: bytes, *, what: str, error: type[BulkheadError] = EvidenceError
) -> tuple[x509.Certificate, ...]:
    """Return the certificates in untrusted bytes: one as DER, hexadecimal or base64, or 1 to 16 PEM blocks, in order.

    The PEM may itself come as base64, hexadecimal or percent-encoded. Text outside PEM blocks is ignored. Nothing is
    verified here beyond that each parses as an X.509 v3 certificate.

    Raises:
        BulkheadError: of class ``error``.
    """
    loaded = tuple(
        _parse(x509.load_der_x509_certificate, der, what, error)
        for der in _der_blocks(
            data,
            labels=_CERTIFICATE_LABELS,
            max_bytes=MAX_CERTIFICATE_BYTES,
            max_items=MAX_CERTIFICATES,
            what=what,
            error=error,
        )
    )
    for certificate in loaded:
        with _parsing(what, error):
            if certificate.version is not x509.Version.v3:
                raise error(f"{what}: not an X.509 version 3 certificate")
            _check_signature_bits(certificate, what, error)
            _touch(certificate)
    return loaded


def load_crls(
    data: bytes, *, what: str, error: type[BulkheadError] = EvidenceError
) -> tuple[x509.CertificateRevocationList, ...]:
    """Return the revocation lists in untrusted bytes: one as DER, hexadecimal or base64, or 1 to 8 PEM blocks.

    Raises:
        BulkheadError: of class ``error``.
    """
    loaded = tuple(
        _parse(x509.load_der_x509_crl, der, what, error)
        for der in _der_blocks(
            data, labels=_CRL_LABELS, max_bytes=MAX_CRL_BYTES, max_items=_MAX_CRLS, what=what, error=error
        )
    )
    for crl in loaded:
        with _parsing(what, error):
            _check_signature_bits(crl, what, error)
            _ = crl.issuer, crl.extensions, crl.last_update_utc, crl.next_update_utc, crl.signature_algorithm_oid
    return loaded


def _der_blocks(
    data: bytes, *, labels: frozenset[bytes], max_bytes: int, max_items: int, what: str, error: type[BulkheadError]
) -> tuple[bytes, ...]:
    if len(data) > max_bytes * max_items * _MAX_TEXT_FACTOR:
        raise error(f"{what}: longer than {max_items} of {max_bytes} bytes in any encoding")
    blocks = _blocks(data, labels, layers=_MAX_LAYERS)
    found = tuple(block for block in blocks if block)
    if not found or len(found) != len(blocks):
        raise error(f"{what}: neither DER nor its PEM, hexadecimal or base64 encoding")
    if len(found) > max_items or any(len(block) > max_bytes for block in found):
        raise error(f"{what}: more than {max_items}, or one longer than {max_bytes} bytes")
    return found


def _blocks(data: bytes, labels: frozenset[bytes], *, layers: int) -> list[bytes | None]:
    """Return the DER in ``data``, None for each block that is not well encoded."""
    if data.startswith(_DER_SEQUENCE):
        return [data]
    if _PEM_START_IN_URL in data:
        data = unquote_to_bytes(data)
    if _PEM_START in data:
        return [_decode_base64(body) for label, body in _PEM.findall(data) if label in labels]
    line = _decode_line(data)
    if line is not None and layers > 1 and not line.startswith(_DER_SEQUENCE):
        return _blocks(line, labels, layers=layers - 1)
    return [line]


def _decode_line(data: bytes) -> bytes | None:
    text = b"".join(data.rstrip(b"\0").split())  # C programs count the zero that ends a text
    match = _HEX.fullmatch(text)
    return bytes.fromhex(match[1].decode("ascii")) if match else _decode_base64(text)


def _decode_base64(data: bytes) -> bytes | None:
    text = b"".join(data.split()).translate(_TO_STANDARD_BASE64).rstrip(b"=")
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (ValueError, binascii.Error):
        return None


def _touch(certificate: x509.Certificate) -> None:
    # The library parses these on first use: here, so that no later use raises.
    _ = certificate.subject, certificate.issuer, certificate.extensions, certificate.signature_algorithm_oid
    _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc, certificate.public_key()


def _check_signature_bits(
    signed: x509.Certificate | x509.CertificateRevocationList, what: str, error: type[BulkheadError]
) -> None:
    # A signature is whole octets: its BIT STRING, which ends the DER, has no unused bits. The library lets one pass
    # that has, so that the same signature would have two encodings.
    if signed.public_bytes(Encoding.DER)[-len(signed.signature) - 1] != 0:
        raise error(f"{what}: malformed: unused bits in the signature")


def _parse(load: Callable[[bytes], _Parsed], der: bytes, what: str, error: type[BulkheadError]) -> _Parsed:
    with _parsing(what, error):
        return load(der)


@contextmanager
def _parsing(what: str, error: type[BulkheadError]) -> Iterator[None]:
    try:
        with without_warnings():
            yield
    except _MALFORMED as cause:
        raise error(f"{what}: malformed: {type(cause).__name__}") from cause


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keep ``cryptography`` from writing warnings about untrusted certificates to a program's standard error.

    Every VCEK and VLEK has serial number 0 (against RFC 5280 section 4.1.2.2); what matters raises.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
