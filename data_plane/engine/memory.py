"""How the C library treats large blocks: given back at once while loading, kept while serving, overwritten at the end.

``mallopt`` is glibc's (mallopt(3)); with another C library nothing here has an effect, and the end of the process is
what clears memory.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["overwriting_what_is_freed", "returning_what_is_freed"]

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
M_PERTURB: Final = -6
_FILL: Final = 0xA5  # what freed memory is set to: anything but 0, which switches it off
_LOADING_BYTES: Final = 1 << 20
_SERVING_BYTES: Final = 32 << 20  # the allocator's own maximum: a step's activations are reused, not mapped anew


def _option(name: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(name, value)


@contextmanager
def returning_what_is_freed() -> Iterator[None]:
    """Map each large block by itself while inside, so that what loading needs for a moment is not kept.

    Weights packed inside stay in mappings of their own, which the kernel takes back, and clears, when they are freed.
    """
    _option(M_MMAP_THRESHOLD, _LOADING_BYTES)
    try:
        yield
    finally:
        _option(M_MMAP_THRESHOLD, _SERVING_BYTES)
        _option(M_TRIM_THRESHOLD, 2 * _SERVING_BYTES)


@contextmanager
def overwriting_what_is_freed() -> Iterator[None]:
    """Overwrite memory as it is freed while inside, in the whole process."""
    _option(M_PERTURB, _FILL)
    try:
        yield
    finally:
        _option(M_PERTURB, 0)
