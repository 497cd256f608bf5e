"""Until when a piece of collateral is of use, by its own dates; read for renewing it in time, never for trusting it."""

import json
from datetime import datetime

from cryptography.x509 import ocsp

from bulkhead.attestation.collateral.intel import signed_document
from bulkhead.attestation.collateral.kinds import CollateralEntry, CollateralKind
from bulkhead.attestation.inputs import load_certificates, load_crls, without_warnings
from bulkhead.errors import EvidenceError

__all__ = ["end_of_use", "ocsp_end"]


def end_of_use(entry: CollateralEntry) -> int | None:
    """Return Unix seconds after which ``entry`` says nothing any more, or None where it has no such end.

    Raises:
        EvidenceError: the entry is not what its kind demands.
    """
    match entry.kind:
        case CollateralKind.AMD_VCEK | CollateralKind.AMD_CHAIN:
            return min(
                _seconds(certificate.not_valid_after_utc)
                for certificate in load_certificates(entry.data, what=entry.kind.value)
            )
        case CollateralKind.AMD_CRL | CollateralKind.INTEL_PCK_CRL | CollateralKind.INTEL_ROOT_CRL:
            ends = [crl.next_update_utc for crl in load_crls(entry.data, what=entry.kind.value)]
            return min((_seconds(end) for end in ends if end is not None), default=None)
        case CollateralKind.INTEL_TCB_INFO | CollateralKind.INTEL_QE_IDENTITY:
            return _next_update(signed_document(entry.data, entry.kind)[0])
        case CollateralKind.NVIDIA_OCSP:
            return ocsp_end(entry.data)
        case CollateralKind.NVIDIA_RIM:
            return None  # its signer's certificate ends it, which renewing does not change


def _next_update(document: bytes) -> int:
    try:
        return _seconds(datetime.fromisoformat(json.loads(document)["nextUpdate"]))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise EvidenceError("the document states no nextUpdate") from error


def ocsp_end(answer: bytes) -> int | None:
    """Return Unix seconds of an OCSP answer's ``nextUpdate``, or None where it states none.

    Raises:
        EvidenceError: malformed.
    """
    try:
        with without_warnings():
            end: datetime | None = ocsp.load_der_ocsp_response(answer).next_update_utc
    except ValueError as error:
        raise EvidenceError("the OCSP answer is malformed") from error
    return None if end is None else _seconds(end)


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
