"""Ports for processes on this host that must know their own before they start."""

import contextlib
import random
import socket
from pathlib import Path
from typing import Final

__all__ = ["free_ports"]

_FIRST: Final = 10_000
_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> list[int]:
    """Return ``count`` ports of 127.0.0.1 that nobody listens on.

    They lie below the range from which the kernel picks ports for connections and for listeners on port 0, so that
    between this call and the process that listens nobody gets them by chance.

    Raises:
        OSError: there are not that many.
    """
    try:
        last = int(_RANGE.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):
        last = 32_768
    found: list[int] = []
    for port in random.SystemRandom().sample(range(_FIRST, last), last - _FIRST):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"{count} free ports below {last} are not to be had")
