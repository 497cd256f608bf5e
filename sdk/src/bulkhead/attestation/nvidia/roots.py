"""The pinned NVIDIA roots: files of this package (vendor_roots/README.md has their source)."""

from dataclasses import dataclass
from functools import cache
from typing import Final

from cryptography import x509

from bulkhead.attestation.vendor_roots import load_pinned

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
        InternalError: a file is not the pinned one.
    """
    (device,) = load_pinned(__package__, *_DEVICE_ROOT)
    (rim,) = load_pinned(__package__, *_RIM_ROOT)
    return NvidiaRoots(device=device, rim=rim)
