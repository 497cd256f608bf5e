"""Targets with planted faults, of which the runner must find each (``test_runner.py``); not in the registry."""

from tests.fuzz.registry import FuzzTarget

_KEPT: list[bytes] = []


def _crash(data: bytes) -> None:
    if data[:2] == b"BK":
        raise IndexError("planted")


def _hang(data: bytes) -> None:
    while data[:1] == b"H":
        pass


def _grow(data: bytes) -> None:
    _KEPT.append(bytes(64 * 1024) + data)


def _seeds() -> list[bytes]:
    return [b"\0\0"]


TARGETS = tuple(
    FuzzTarget(name=f"planted-{name}", parse=parse, seeds=_seeds, max_bytes=8)
    for name, parse in (("crash", _crash), ("hang", _hang), ("growth", _grow))
)
