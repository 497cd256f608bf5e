"""Making past rounds again: milliseconds of a core for each round, and for a path into one that is remembered.

    python -m benchmarks.audit_rounds            # 1,024 slots, some twenty seconds
    python -m benchmarks.audit_rounds 64         # other numbers of slots

The limit beside it, in the same run: the SHA-256 that no round can do without, a leaf and a node for each slot.
"""

import hashlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from audit.log.history import RoundHistory
from audit.log.prover import Prover
from audit.log.rounds import PastRound
from audit.sql import open_store
from tests.simulator.audit_rounds import Rounds

_ROUNDS = 31  # a page with 1,024 slots


def main() -> None:
    """Measure and print."""
    slots = int(sys.argv[1]) if len(sys.argv) > 1 else 1_024
    with tempfile.TemporaryDirectory() as directory:
        rounds = Rounds(open_store(Path(directory) / "audit.db", busy_timeout_s=1.0))
        logs = [rounds.open() for _ in range(slots)]
        for grown in (logs[: max(1, slots // 64)], logs):
            first = len(rounds.made) + 1
            for _ in range(_ROUNDS):
                for log in grown:
                    rounds.grow(log, 1)
                rounds.round()
            _measure(rounds, first, f"{slots} slots, {len(grown)} of them grown")
        rounds.store.close()
    block = bytes(200)
    took_ms = _cpu_ms(lambda: [hashlib.sha256(block).digest() for _ in range(2 * slots)])
    print(f"limit: {2 * slots} SHA-256 of 200 bytes: {took_ms:.2f} ms")


def _measure(rounds: Rounds, first: int, name: str) -> None:
    past = RoundHistory(store=rounds.store, keys=rounds.keys, prover=Prover(rounds.store))
    size = next(head.size for head in rounds.store.heads() if head.log_id == rounds.platform.log_id)
    found: list[PastRound] = []
    made_ms = _cpu_ms(lambda: found.extend(past.rounds(rounds.platform, size, rounds.logs, first, _ROUNDS)))
    path_ms = _cpu_ms(lambda: [(one.round.path(0), one.round.head(0).text()) for one in found])
    count = len(found)
    print(f"{name}: {count} rounds, {made_ms / count:.1f} ms each; a path then {path_ms / count * 1e3:.0f} us")


def _cpu_ms(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return (time.process_time() - begun) * 1e3


if __name__ == "__main__":
    main()
