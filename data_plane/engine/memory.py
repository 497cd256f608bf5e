"""How the C library treats large blocks: given back at once while loading, kept while serving, overwritten at the end.

``mallopt`` and ``malloc_trim`` are glibc's (man pages, section 3); with another C library nothing here has an effect,
and the end of the process is what clears memory.
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
_LOADING_BYTES: Final = 128 << 10  # below most matrices of any model, so that few of their copies leave holes
_SERVING_BYTES: Final = 32 << 20  # the allocator's own maximum: a step's activations are reused, not mapped anew


def _call(name: str, *arguments: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)


@contextmanager
def returning_what_is_freed() -> Iterator[None]:
    """Map each large block by itself while inside, so that what loading needs for a moment is not kept.

    Weights packed inside stay in mappings of their own, which the kernel takes back, and clears, when they are freed.
    """
    _call("mallopt", M_MMAP_THRESHOLD, _LOADING_BYTES)
    try:
        yield
    finally:
        _call("malloc_trim", 0)  # what was smaller: some 6% of this size in the chat model
        _call("mallopt", M_MMAP_THRESHOLD, _SERVING_BYTES)
        _call("mallopt", M_TRIM_THRESHOLD, 2 * _SERVING_BYTES)


@contextmanager
def overwriting_what_is_freed() -> Iterator[None]:
    """Overwrite memory as it is freed while inside, in the whole process."""
    _call("mallopt", M_PERTURB, _FILL)
    try:
        yield
    finally:
        _call("mallopt", M_PERTURB, 0)
