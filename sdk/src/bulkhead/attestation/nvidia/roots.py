"""NVIDIA's roots, pinned: data files of this package (``data/SOURCES.md`` names their origin)."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

from cryptography import x509

from bulkhead.attestation.inputs import load_certificates
from bulkhead.errors import InternalError

__all__ = ["NvidiaRoots", "nvidia_roots"]

_DEVICE_ROOT: Final = ("device_root.pem", "6e6e91e84068cb7de2c715ca73d6df168a16b23d96a895b42e553b297a471bfc")
_RIM_ROOT: Final = ("rim_root.pem", "afe8d01ab79b451fc6401a00bd8d3cba283e67339bd902e14bb41171eacb99d1")


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaRoots:
    """Trust anchors; two, so that whoever signs manifests can vouch for no device, nor the other way round.

    Attributes:
        device: root of GPUs' identities.
        rim: root of reference integrity manifests.
    """

    device: x509.Certificate
    rim: x509.Certificate


@cache
def nvidia_roots() -> NvidiaRoots:
    """Return the roots that this build pins.

    Raises:
        InternalError: a data file is not the one that was reviewed: the installation is damaged.
    """
    return NvidiaRoots(device=_load(*_DEVICE_ROOT), rim=_load(*_RIM_ROOT))


def _load(name: str, sha256: str) -> x509.Certificate:
    data = resources.files("bulkhead.attestation.nvidia").joinpath("data", name).read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise InternalError(f"{name} is not the pinned root of this build")
    (certificate,) = load_certificates(data, what=name, error=InternalError)
    return certificate
