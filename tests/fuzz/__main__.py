"""Fuzz every registered parser; see ``python -m tests.fuzz --help``."""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.registry import MODULES, FuzzTarget, load_targets

_ROOT = Path(__file__).resolve().parents[2]
_SLOWEST_INPUT_S = 10  # the longest a parser may take for one input, instrumented, on a busy machine
_GRACE_S = 120  # start, reading of the corpus and a last slow input
_STAT = re.compile(r"stat::(\w+):\s+(\d+)")
_KEPT = 24  # inputs that --keep adds to a target's committed corpus

_EPILOG = """\
examples:
  make fuzz T=60                                     60 s for each target, as many at a time as there are cores
  python -m tests.fuzz --seconds 600 --only tdx-quote,nvidia-rim
  python -m tests.fuzz --write-seeds                 corpora for targets that have none yet
  python -m tests.fuzz --seconds 600 --keep          put inputs that reached new code into tests/fuzz/corpus
  python -m tests.fuzz --only tdx-quote --replay var/fuzz/tdx-quote/crash-0a1b
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description="Fuzz the parsers of untrusted bytes with atheris. A finding is an error that is not one of ours, "
        f"an input that takes {_SLOWEST_INPUT_S} s, or memory that is not given back. Exit status 1 if there is any.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default 60)")
    parser.add_argument("--only", default="", help="names of targets, separated by commas")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="targets at a time (default: cores)")
    parser.add_argument("--work", type=Path, default=_ROOT / "var" / "fuzz", help="new inputs, findings, logs")
    parser.add_argument("--list", action="store_true", help="name the targets and stop")
    parser.add_argument("--write-seeds", action="store_true", help="write first corpora and stop")
    parser.add_argument("--keep", action="store_true", help="add inputs that reach new code to the committed corpus")
    parser.add_argument("--replay", type=Path, help="run one input through the one target of --only, uninstrumented")
    parser.add_argument("--module", action="append", help="module with TARGETS (default: those of the registry)")
    return parser


class _Run:
    """Fuzzes targets one process each."""

    def __init__(self, *, seconds: int, work: Path, keep: bool) -> None:
        self._seconds = seconds
        self._work = work
        self._keep = keep

    def one(self, module: str, target: FuzzTarget) -> bool:
        """Fuzz one target; return whether nothing was found."""
        work = self._work / target.name
        (work / "corpus").mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        status, log = self._drive(
            module, target, f"-max_total_time={self._seconds}", f"-timeout={_SLOWEST_INPUT_S}", "-print_final_stats=1",
            f"-artifact_prefix={work}/", "-rss_limit_mb=4096", str(work / "corpus"), *_committed(target),
        )  # fmt: skip
        (work / "log").write_text(log)
        stats = dict(_STAT.findall(log))
        runs, per_s, peak = (
            stats.get(name, "?") for name in ("number_of_executed_units", "average_exec_per_sec", "peak_rss_mb")
        )
        took = time.monotonic() - started
        verdict = "ok" if status == 0 else "FOUND"
        print(f"[fuzz] {target.name}: {verdict}, {runs} runs, {per_s}/s, {peak} MiB at most, {took:.0f} s", flush=True)
        if status != 0:
            print("\n".join(line for line in log.splitlines()[-40:] if "INFO" not in line), flush=True)
            print(f"[fuzz] {target.name}: log and input are in {work}", flush=True)
        elif self._keep:
            self._merge(module, target, work)
        return status == 0

    def _merge(self, module: str, target: FuzzTarget, work: Path) -> None:
        with tempfile.TemporaryDirectory() as merged:
            target.corpus.mkdir(parents=True, exist_ok=True)
            self._drive(module, target, "-merge=1", merged, str(target.corpus), str(work / "corpus"))
            known = {path.read_bytes() for path in target.corpus.iterdir()}
            new = sorted((path for path in Path(merged).iterdir() if path.read_bytes() not in known), key=_size)
            for path in new[:_KEPT]:
                (target.corpus / path.name).write_bytes(path.read_bytes())

    def _drive(self, module: str, target: FuzzTarget, *options: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "tests.fuzz.drive", module, target.name, *options]
        try:
            done = subprocess.run(
                command, cwd=_ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                timeout=self._seconds + _GRACE_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            return 1, (error.stdout or b"").decode(errors="replace") + "\nthe fuzzing process did not end"
        return done.returncode, done.stdout.decode(errors="replace")


def _committed(target: FuzzTarget) -> list[str]:
    return [str(target.corpus)] if target.corpus.is_dir() else []


def _size(path: Path) -> int:
    return path.stat().st_size


def _write_seeds(targets: Sequence[FuzzTarget]) -> None:
    for target in targets:
        if target.corpus.is_dir():
            continue
        target.corpus.mkdir(parents=True)
        for number, seed in enumerate(target.seeds()):
            (target.corpus / f"seed-{number:02}").write_bytes(seed)
        print(f"[fuzz] wrote {target.corpus.relative_to(_ROOT)}", flush=True)


def main() -> int:
    """Run as told; return the exit status."""
    options = _parser().parse_args()
    modules: Sequence[str] = options.module or MODULES
    found = {name: (module, target) for module in modules for name, target in load_targets([module]).items()}
    names = [name for name in options.only.split(",") if name] or list(found)
    unknown = sorted(set(names) - set(found))
    if unknown:
        print(f"no such target: {', '.join(unknown)}; there are {', '.join(found)}", file=sys.stderr)
        return 2
    chosen = [found[name] for name in names]
    if options.list:
        print("\n".join(names))
    elif options.write_seeds:
        _write_seeds([target for _, target in chosen])
    elif options.replay:
        for _, target in chosen:
            target.try_one(options.replay.read_bytes())
    else:
        return _fuzz(chosen, options)
    return 0


def _fuzz(chosen: Sequence[tuple[str, FuzzTarget]], options: argparse.Namespace) -> int:
    run = _Run(seconds=options.seconds, work=options.work, keep=options.keep)
    rounds = -(-len(chosen) // options.jobs)
    print(
        f"[fuzz] {len(chosen)} targets, {options.seconds} s each, {options.jobs} at a time: "
        f"about {rounds * options.seconds // 60 + 1} min",
        flush=True,
    )
    with ThreadPoolExecutor(options.jobs) as pool:
        sound = list(pool.map(lambda item: run.one(*item), chosen))
    print(f"[fuzz] {sum(sound)} of {len(sound)} targets without a finding", flush=True)
    return 0 if all(sound) else 1


if __name__ == "__main__":
    sys.exit(main())
