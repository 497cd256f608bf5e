"""Revocation by OCSP (RFC 6960), from answers that were collected before: nothing is asked here.

An answer counts only if the certificate's issuer signed it, an authority above that one, or a responder that one of
these named for it. ``revoked`` of any reason refuses, ``certificateHold`` included: NVIDIA puts devices on hold where
it no longer vouches for them. ``unknown`` is not ``good``, and an answer that is an error is none.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from bulkhead.attestation.inputs import without_warnings
from bulkhead.attestation.nvidia.policy import NvidiaPolicy
from bulkhead.attestation.obligations import failed
from bulkhead.errors import BulkheadError, EvidenceExpiredError

__all__ = ["MAX_OCSP_RESPONSES", "OcspAnswers"]

MAX_OCSP_RESPONSES: Final = 64  # up to 9 certificates per GPU, 4 GPUs to a tray
_MAX_RESPONSE_BYTES: Final = 16_384  # an answer with its responder's certificate has some 1.5 kB
_MAX_RESPONDERS: Final = 4  # certificates in an answer: NVIDIA's have one; each may cost a signature per authority
_OBLIGATION: Final = "GPU-7"
_CLOCK_SKEW_S: Final = 300  # between a responder's clock and the verifier's
_DIGESTS: Final = (hashes.SHA1, hashes.SHA256, hashes.SHA384)  # of names in CertID: not a security function
_SIGNATURE_DIGESTS: Final = (hashes.SHA256, hashes.SHA384)
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1)


class OcspAnswers:
    """Answers of NVIDIA's OCSP responder, parsed and not yet believed."""

    def __init__(self, responses: Sequence[bytes]) -> None:
        """Parse answers.

        Args:
            responses: DER, untrusted; at most 64.

        Raises:
            EvidenceError: GPU-7: one is no OCSP answer.
        """
        if len(responses) > MAX_OCSP_RESPONSES:
            raise failed(_OBLIGATION, f"more than {MAX_OCSP_RESPONSES} OCSP answers")
        self._responses = [response for der in responses if (response := _parse(der)) is not None]

    def check(self, path: Sequence[x509.Certificate], *, first: int, policy: NvidiaPolicy, now_s: int) -> None:
        """Return if no certificate of a verified path is revoked.

        Args:
            path: leaf to root, verified.
            first: position of the first certificate that the vendor's responder knows; the root is never asked about.
            policy: whether each needs an answer, and how old one may be.
            now_s: Unix seconds.

        Raises:
            EvidenceError: GPU-7: revoked, on hold, unknown, missing, or wrongly signed.
            EvidenceExpiredError: GPU-7: the only answers are out of date.
        """
        for position in range(first, len(path) - 1):
            self._check_one(path[position], path[position + 1 :], policy, now_s)

    def _check_one(
        self, certificate: x509.Certificate, above: Sequence[x509.Certificate], policy: NvidiaPolicy, now_s: int
    ) -> None:
        name = certificate.subject.rfc4514_string()
        stale: BulkheadError | None = None
        good = False
        for response in self._about(certificate, above[0]):
            _check_signer(response, above, now_s)
            # Never too old to be believed: what was revoked stays so.
            if response.certificate_status is ocsp.OCSPCertStatus.REVOKED:
                reason = response.revocation_reason.value if response.revocation_reason else "no reason given"
                raise failed(_OBLIGATION, f"{name} was revoked: {reason}", details={"reason": reason})
            if response.certificate_status is not ocsp.OCSPCertStatus.GOOD:
                raise failed(_OBLIGATION, f"the responder does not know {name}")
            if _is_current(response, policy, now_s):
                good = True
            else:
                stale = failed(_OBLIGATION, f"the OCSP answer about {name} is out of date", EvidenceExpiredError)
        if good or not policy.revocation_required:
            return
        raise stale or failed(_OBLIGATION, f"no OCSP answer about {name}: ocsp.ndis.nvidia.com gives it")

    def _about(self, certificate: x509.Certificate, issuer: x509.Certificate) -> Iterator[ocsp.OCSPResponse]:
        for response in self._responses:
            if response.serial_number == certificate.serial_number and _names(response, issuer):
                yield response


def _parse(der: bytes) -> ocsp.OCSPResponse | None:
    if len(der) > _MAX_RESPONSE_BYTES:
        raise failed(_OBLIGATION, f"an OCSP answer is longer than {_MAX_RESPONSE_BYTES} bytes")
    try:
        with without_warnings():
            response = ocsp.load_der_ocsp_response(der)
            if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
                return None  # says nothing: NVIDIA's responder, asked about an attestation key, answers so
            # The library parses these on first use: here, so that no later use raises. It raises ValueError for an
            # answer about several certificates, which nobody asks for.
            _ = response.certificate_status, response.revocation_reason, response.revocation_time_utc
            _ = response.this_update_utc, response.next_update_utc, response.serial_number, response.hash_algorithm
            _ = response.issuer_name_hash, response.issuer_key_hash, response.signature_hash_algorithm
            extensions = [*response.extensions, *response.single_extensions]
            certificates = response.certificates
            for certificate in certificates:
                _ = certificate.subject, certificate.issuer, certificate.extensions, certificate.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.InvalidVersion) as error:
        raise failed(_OBLIGATION, "an OCSP answer is malformed, or about several certificates") from error
    if len(certificates) > _MAX_RESPONDERS:
        raise failed(_OBLIGATION, f"an OCSP answer with more than {_MAX_RESPONDERS} certificates")
    if any(extension.critical for extension in extensions):
        raise failed(_OBLIGATION, "an OCSP answer has a critical extension that is not understood")
    return response


def _names(response: ocsp.OCSPResponse, issuer: x509.Certificate) -> bool:
    algorithm = response.hash_algorithm
    if not isinstance(algorithm, _DIGESTS):
        return False
    key = issuer.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return (
        _digest(issuer.subject.public_bytes(), algorithm) == response.issuer_name_hash
        and _digest(key, algorithm) == response.issuer_key_hash
    )


def _digest(data: bytes, algorithm: hashes.HashAlgorithm) -> bytes:
    digest = hashes.Hash(algorithm)
    digest.update(data)
    return digest.finalize()


def _check_signer(response: ocsp.OCSPResponse, above: Sequence[x509.Certificate], now_s: int) -> None:
    named = (one for one in response.certificates if any(_is_responder(one, authority, now_s) for authority in above))
    if not any(_signed(response, candidate) for candidate in (*above, *named)):
        raise failed(
            _OBLIGATION, "an OCSP answer is signed neither by an authority above nor by a responder that one named"
        )


def _signed(response: ocsp.OCSPResponse, signer: x509.Certificate) -> bool:
    key, algorithm = signer.public_key(), response.signature_hash_algorithm
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        return False
    if not isinstance(algorithm, _SIGNATURE_DIGESTS):
        return False
    try:
        key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(algorithm))
    except InvalidSignature:
        return False
    return True


def _is_responder(certificate: x509.Certificate, authority: x509.Certificate, now_s: int) -> bool:
    """RFC 6960 section 4.2.2.2: issued by the authority itself, for signing answers, and valid.

    An authority above the issuer may name it, too: it vouches for the issuer, and could replace it.
    """
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        certificate.verify_directly_issued_by(authority)
    except (x509.ExtensionNotFound, InvalidSignature, ValueError, TypeError):
        return False
    valid = certificate.not_valid_before_utc.timestamp() <= now_s <= certificate.not_valid_after_utc.timestamp()
    return valid and ExtendedKeyUsageOID.OCSP_SIGNING in usages


def _is_current(response: ocsp.OCSPResponse, policy: NvidiaPolicy, now_s: int) -> bool:
    age_s = now_s - _seconds(response.this_update_utc)
    next_update = response.next_update_utc
    return -_CLOCK_SKEW_S <= age_s <= policy.maximum_ocsp_age_s and (
        next_update is None or now_s <= _seconds(next_update)
    )


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
