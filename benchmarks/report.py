"""Figures, their table, and the machine they were measured on."""

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Row", "machine", "median", "percentile", "table"]


@dataclass(frozen=True, slots=True)
class Row:
    """One measured quantity.

    Attributes:
        what: the quantity with its unit.
        measured: of Bulkhead.
        peer: what it is compared with, measured in the same run; empty without one.
        goal: the goal, as docs/architecture.md states it; empty without one.
        verdict: `met`, `short` or empty.
    """

    what: str
    measured: str
    peer: str = ""
    goal: str = ""
    verdict: str = ""


def verdict(*, met: bool) -> str:
    """Return the word for the table."""
    return "met" if met else "short"


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least ``percent`` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * int(percent * 100) // 10_000) - 1)]


def machine() -> str:
    """Return processor, cores, memory and software versions in one line."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    flags = Path("/proc/cpuinfo").read_text()
    vectors = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "no AVX2"
    return (
        f"{model}, {len(os.sched_getaffinity(0))} cores, {vectors}, {memory_gib:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}"
    )


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table."""
    lines = ["| what | measured | peer in the same run | goal | |", "|---|---|---|---|---|"]
    lines += [f"| {row.what} | {row.measured} | {row.peer} | {row.goal} | {row.verdict} |" for row in rows]
    return "\n".join(lines)


def as_json(rows: Sequence[Row]) -> str:
    """Return the rows for a program."""
    return json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, indent=1)
