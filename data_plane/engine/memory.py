"""Memory that torch's operators hold themselves is overwritten when it is given back."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["overwriting_what_is_freed"]

M_PERTURB: Final = -6  # malloc.h; mallopt(3): freed memory is set to this byte
_FILL: Final = 0xA5  # anything but 0, which switches it off


@contextmanager
def overwriting_what_is_freed() -> Iterator[None]:
    """Fill memory with one value as it is freed, in the whole process, while inside.

    glibc's allocator returns large blocks to the kernel, which clears pages before anybody else gets them, and fills
    the others itself. With another C library the second part does not happen: there the end of the process does it.
    """
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is None:
        yield
        return
    option(M_PERTURB, _FILL)
    try:
        yield
    finally:
        option(M_PERTURB, 0)
