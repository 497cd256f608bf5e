"""NVIDIA's RIM service and OCSP responder: what to ask for a GPU's report, and reading the answers."""

import base64
import binascii
import hashlib
import hmac
import json
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp

from bulkhead.attestation.collateral.kinds import CollateralItem, CollateralKind
from bulkhead.attestation.inputs import without_warnings
from bulkhead.attestation.obligations import failed

__all__ = ["OCSP_NONCE_BYTES", "check_ocsp_nonce", "manifest_of", "ocsp_item", "rim_item"]

OCSP_NONCE_BYTES: Final = 32  # RFC 8954 section 2.1
_RIM_NAME_CHARS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_MAX_RIM_NAME_CHARS: Final = 128


def rim_item(rim_id: str) -> CollateralItem:
    """Return where a manifest is; ``rim_id`` comes from a report and need not be trusted.

    Raises:
        EvidenceError: GPU-11: no name that the service could know.
    """
    if not 0 < len(rim_id) <= _MAX_RIM_NAME_CHARS or not _RIM_NAME_CHARS.issuperset(rim_id):
        raise failed("GPU-11", "the report names a manifest that cannot exist")
    return CollateralItem(kind=CollateralKind.NVIDIA_RIM, name=rim_id.lower(), path=f"/v1/rim/{rim_id}")


def manifest_of(answer: bytes) -> bytes:
    """Return the manifest in an answer of the RIM service (JSON with ``rim``, base64), or ``answer`` if it is XML.

    Raises:
        EvidenceError: GPU-11: not such an answer, or not the bytes whose SHA-256 it states.
    """
    if not answer.lstrip().startswith(b"{"):
        return answer
    try:
        value = json.loads(answer.decode("utf-8"))
        text = value["rim"]
        stated = value.get("sha256")
        manifest = base64.b64decode(text, validate=True)
    except (ValueError, TypeError, KeyError, RecursionError, binascii.Error) as error:
        raise failed("GPU-11", "the RIM service's answer holds no manifest") from error
    digests = {hashlib.sha256(manifest).hexdigest(), hashlib.sha256(text.encode()).hexdigest()}
    if isinstance(stated, str) and stated.lower() not in digests:
        raise failed("GPU-11", "the manifest is not the one whose digest the RIM service states")
    return manifest


def ocsp_item(certificate: x509.Certificate, issuer: x509.Certificate, *, nonce: bytes) -> CollateralItem:
    """Return the question whether ``issuer`` has revoked ``certificate`` (RFC 6960).

    Args:
        certificate: of a device or a signer of manifests; need not be trusted.
        issuer: which issued it.
        nonce: 32 fresh random bytes, which the answer must repeat.
    """
    with without_warnings():
        builder = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, hashes.SHA384())
        request = builder.add_extension(x509.OCSPNonce(nonce), critical=False).build()
    key = issuer.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return CollateralItem(
        kind=CollateralKind.NVIDIA_OCSP,
        name=f"{hashlib.sha256(key).hexdigest()[:16]}-{certificate.serial_number:x}",
        path="/",
        body=request.public_bytes(Encoding.DER),
        nonce=nonce,
    )


def check_ocsp_nonce(answer: bytes, nonce: bytes) -> None:
    """Check that an answer repeats the question's nonce: it was made for this question, not recorded.

    Whose signature it bears is the verifier's business, when the answer is used.

    Raises:
        EvidenceError: GPU-7.
    """
    try:
        with without_warnings():
            response = ocsp.load_der_ocsp_response(answer)
            if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
                raise failed("GPU-7", f"the OCSP responder answered {response.response_status.name}")
            repeated = response.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce
    except x509.ExtensionNotFound as error:
        raise failed("GPU-7", "the OCSP answer repeats no nonce: it may be an old one") from error
    except (ValueError, TypeError, x509.DuplicateExtension) as error:
        raise failed("GPU-7", "the OCSP answer is malformed") from error
    if not hmac.compare_digest(repeated, nonce):
        raise failed("GPU-7", "the OCSP answer repeats another nonce")
