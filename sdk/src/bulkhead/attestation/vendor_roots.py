"""Vendors' roots: certificate files of this package, each pinned by its SHA-256 in the code that loads it."""

import hashlib
from importlib import resources

from cryptography import x509

from bulkhead.attestation.inputs import load_certificates
from bulkhead.errors import InternalError

__all__ = ["load_pinned"]


def load_pinned(package: str, name: str, sha256: str) -> tuple[x509.Certificate, ...]:
    """Return the certificates in the file ``vendor_roots/{name}`` of ``package``.

    Raises:
        InternalError: the file is not the one that was reviewed: the installation is damaged.
    """
    data = resources.files(package).joinpath("vendor_roots", name).read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise InternalError(f"the pinned root file {name} is not the one that this build was made with")
    return load_certificates(data, what=name, error=InternalError)
