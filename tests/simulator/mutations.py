"""Mutations of evidence: bytes flipped, fields cut and extended; and how a test says which mutants may be accepted."""

import random
from collections.abc import Callable, Iterable, Iterator

from bulkhead.attestation.obligations import obligation_of
from bulkhead.errors import BulkheadError

__all__ = ["accepted", "cuts", "flips"]


def flips(data: bytes, *, sample: int | None, seed: str) -> Iterator[tuple[int, bytes]]:
    """Yield (position, data with that byte changed) for every byte, or for a seeded sample of ``sample`` bytes.

    Each byte is changed once, to another value chosen by ``seed``.
    """
    source = random.Random(seed)
    positions = range(len(data))
    for position in positions if sample is None else sorted(source.sample(positions, min(sample, len(data)))):
        mutated = bytearray(data)
        mutated[position] ^= source.randrange(1, 256)
        yield position, bytes(mutated)


def cuts(data: bytes, boundaries: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """Yield (boundary, mutant): cut there, begun there, one zero byte put in, one byte taken out."""
    for at in boundaries:
        for mutant in (data[:at], data[at:], data[:at] + b"\0" + data[at:], data[:at] + data[at + 1 :]):
            if mutant != data:
                yield at, mutant


def accepted(verify: Callable[[], object]) -> bool:
    """Return whether evidence is verified. Any error but ours, or one that names no obligation, ends the test."""
    try:
        verify()
    except BulkheadError as error:
        if obligation_of(error) is None:
            raise AssertionError(f"refused without an obligation: {error}") from error
        return False
    return True
