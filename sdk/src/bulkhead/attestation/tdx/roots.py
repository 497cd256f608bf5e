"""The pinned Intel root: a file of this package, checked against its digest when it is read."""

import hashlib
from functools import cache
from importlib.resources import files
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bulkhead.errors import InternalError

__all__ = ["intel_roots"]

_FILE: Final = "vendor_roots/intel_sgx_root_ca.pem"
_DER_SHA256: Final = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"


@cache
def intel_roots() -> tuple[x509.Certificate, ...]:
    """Return the Intel SGX Root CA (vendor_roots/README.md has its source).

    Raises:
        InternalError: the installed file is not the pinned certificate.
    """
    root = x509.load_pem_x509_certificate(files(__package__).joinpath(_FILE).read_bytes())
    if hashlib.sha256(root.public_bytes(Encoding.DER)).hexdigest() != _DER_SHA256:
        raise InternalError("the installed Intel root certificate is not the pinned one")
    return (root,)
