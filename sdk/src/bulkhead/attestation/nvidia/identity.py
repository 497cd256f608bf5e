"""Who signed a report: the device's certificates, its attestation key, and the chip that they name."""

import re
from collections.abc import Sequence
from typing import Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bulkhead.attestation.certificates import ChainRules, SignatureScheme, verify_chain
from bulkhead.attestation.inputs import load_certificates
from bulkhead.attestation.nvidia.fwid import FWID_EXTENSIONS
from bulkhead.attestation.obligations import failed
from bulkhead.errors import EvidenceError

__all__ = ["agreed_chip", "check_usage", "chip_of", "verify_device_path"]

_LENGTH: Final = 5  # attestation key, boot ROM, provisioner, model, root
_NAMED: Final = 2  # attestation key and boot ROM name their chip; the authorities above may
_RULES: Final = ChainRules(
    scheme=SignatureScheme.ECDSA_P384_SHA384,
    max_length=_LENGTH,
    chain="GPU-2",
    validity="GPU-3",
    revocation="GPU-7",
    understood=FWID_EXTENSIONS,  # TCG wants it critical; NVIDIA's are not so far
)
_CHIP: Final = re.compile(r"[A-Z]{2}[0-9]{3}")


def verify_device_path(certificates: bytes, *, root: x509.Certificate, now_s: int) -> tuple[x509.Certificate, ...]:
    """Return the five certificates from the attestation key's to the pinned root.

    Args:
        certificates: untrusted, leaf first, root included.
        root: trusted.
        now_s: Unix seconds.

    Raises:
        EvidenceError: GPU-2; ``EvidenceExpiredError`` for GPU-3.
    """
    try:
        given = load_certificates(certificates, what="the device's certificates")
    except EvidenceError as error:
        raise failed("GPU-2", error.message) from error
    path = verify_chain(given[0], intermediates=given[1:], roots=[root], rules=_RULES, now_s=now_s)
    if len(path) != _LENGTH or path != given:
        raise failed("GPU-2", f"not {_LENGTH} certificates in order, from the attestation key to the root")
    check_usage(path[0], "GPU-2")
    return path


def check_usage(leaf: x509.Certificate, obligation: str) -> None:
    """Refuse a leaf of the same authority that was made for something else, such as an OCSP responder's.

    Raises:
        EvidenceError: ``obligation``.
    """
    usages = [extension.value for extension in leaf.extensions]
    signs = all(usage.digital_signature for usage in usages if isinstance(usage, x509.KeyUsage))
    answers = any(
        ExtendedKeyUsageOID.OCSP_SIGNING in usage for usage in usages if isinstance(usage, x509.ExtendedKeyUsage)
    )
    if not signs or answers:
        raise failed(obligation, "the first certificate's key is not one for signing reports or manifests")


def agreed_chip(path: tuple[x509.Certificate, ...]) -> str:
    """Return the chip, such as ``GH100``, that every certificate of a verified path names that names one.

    Raises:
        EvidenceError: GPU-8.
    """
    names = [_chip(certificate) for certificate in path[:-1]]
    if len({name for name in names if name}) != 1 or not all(names[:_NAMED]):
        raise failed("GPU-8", "the device's certificates name different chips, or none")
    return names[0]


def chip_of(certificates: Sequence[x509.Certificate]) -> str:
    """Return the chip that a device's first certificate names (untrusted), or nothing; for finding its manifests."""
    return _chip(certificates[0])


def _chip(certificate: x509.Certificate) -> str:
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    words = str(common[0].value).split() if common else []
    return next((word for word in words if _CHIP.fullmatch(word)), "")
