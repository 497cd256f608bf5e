"""Run the benchmarks and print their table; what is committed under benchmarks/results/ comes from here.

    make bench                                   or: python -m benchmarks.run
    python -m benchmarks.run --only audit           # one part of those that --help names; repeatable
    python -m benchmarks.run --only audit --quick   # that part in seconds: whether it runs, not what it measures
    python -m benchmarks.run --save table.md

Absolute times depend on the machine and its neighbours; goals are ratios to a peer in the same run where there is one.
"""

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks import (
    attestation,
    audit_appends,
    audit_offline,
    model_loading,
    observer,
    opening,
    sealing,
    serving,
    shape,
)
from benchmarks.report import Row, as_json, machine, table
from scripts.local_platform import LocalPlatform, chat_model

PARTS: Final = ("audit", "offline", "attestation", "sealing", "shape", "observer", "loading", "opening", "serving")


def _say(text: str) -> None:
    print(f"[bench] {text}", file=sys.stderr, flush=True)


def _say_row(row: Row) -> None:
    _say(table([row]).splitlines()[-1])


def _on_platform(parts: Sequence[str]) -> list[Row]:
    threads = len(os.sched_getaffinity(0))
    root = Path(tempfile.mkdtemp(prefix="bh-bench-"))
    platform = LocalPlatform(
        root=root, model=chat_model(), trays=1, say=_say, agent_overrides=f"[worker]\nthreads = {threads}\n"
    )
    rows: list[Row] = []
    try:
        platform.up()
        if "opening" in parts:
            _say("OpenSession")
            rows += asyncio.run(opening.measure(platform.client_config))
        if "serving" in parts:
            _say("serving, sealed and plain (some minutes)")
            agent = next(each.pid for each in platform.processes.remembered() if each.name in platform.agent_ids)
            rows += asyncio.run(
                serving.measure(platform.client_config, chat_model(), threads, agent=agent, tell=_say_row)
            )
    finally:
        platform.down()
        shutil.rmtree(root, ignore_errors=True)
    return rows


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=PARTS, help="run this part only; repeatable")
    parser.add_argument("--quick", action="store_true", help="audit appends: a few seconds; the figures mean little")
    parser.add_argument("--save", type=Path, help="also write the table, with the machine, to this Markdown file")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print JSON for programs")
    arguments = parser.parse_args()
    parts = arguments.only or PARTS
    rows: list[Row] = []
    if "audit" in parts:
        _say("audit appends")
        rows += asyncio.run(audit_appends.measure(quick=arguments.quick, tell=_say_row))
    if "offline" in parts:
        _say("offline verification of a million records (about two minutes)")
        rows += audit_offline.measure()
    if "attestation" in parts:
        _say("verification of hardware evidence")
        rows += attestation.measure()
    if "sealing" in parts:
        _say("sealing, and the sealed stream over gRPC")
        rows += sealing.measure()
    if "loading" in parts:
        _say("loading of a sealed model")
        rows += model_loading.measure(chat_model(), len(os.sched_getaffinity(0)))
    if "shape" in parts:
        _say("the shape of traffic (two minutes, mostly waiting)")
        rows += asyncio.run(shape.rows())
    if "observer" in parts:
        _say("the shape of traffic to an observer who has learnt much (five minutes, mostly waiting)")
        rows += asyncio.run(observer.rows())
    if {"opening", "serving"} & set(parts):
        rows += _on_platform(parts)
    print(as_json(rows) if arguments.as_json else f"{machine()}\n\n{table(rows)}")
    if arguments.save is not None:
        arguments.save.write_text(f"# Benchmarks\n\nMachine: {machine()}\n\n{table(rows)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
