"""The pinned Intel root: a file of this package (vendor_roots/README.md has its source)."""

from functools import cache
from typing import Final

from cryptography import x509

from bulkhead.attestation.vendor_roots import load_pinned

__all__ = ["intel_roots"]

_FILE: Final = "intel_sgx_root_ca.pem"
_SHA256: Final = "194123d2a18be2beb525d0f0cc10a8998be1e63d7a0ecb723cb194f3e9833912"


@cache
def intel_roots() -> tuple[x509.Certificate, ...]:
    """Return the Intel SGX Root CA.

    Raises:
        InternalError: the file is not the pinned one.
    """
    return load_pinned(__package__, _FILE, _SHA256)
