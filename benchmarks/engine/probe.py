"""Runs in a process of its own: what starting the engine takes in time and memory, and what many requests leave behind.

Prints one JSON object. ``python -m benchmarks.engine.probe MODEL [--requests N]``
"""

import argparse
import asyncio
import json
import time
from pathlib import Path

STARTED = time.perf_counter()


def _status(name: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) << 10
    raise LookupError(name)


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): VmHWM counts from here


async def _measure(model: Path, threads: int, requests: int) -> dict[str, object]:
    import torch

    torch_s = time.perf_counter() - STARTED
    from benchmarks.engine.native import batch
    from data_plane.engine import EngineConfig, open_engine
    from data_plane.engine.native import NativeEngine

    torch.set_num_threads(threads)
    import_s, import_rss = time.perf_counter() - STARTED, _status("VmRSS")
    _forget_peak()
    begun = time.perf_counter()
    engine = await open_engine(EngineConfig(model_path=model, threads=threads, max_waiting=1024))
    assert isinstance(engine, NativeEngine)
    load_s, load_peak, load_rss = time.perf_counter() - begun, _status("VmHWM"), _status("VmRSS")
    begun = time.perf_counter()
    await batch(engine, [[100]], new_tokens=1)
    first_s = time.perf_counter() - begun
    resident = []
    for done in range(0, requests, 500):
        prompts = [[200 + (done * 7 + i) % 40_000, 5, 6, 7] for i in range(500)]
        await batch(engine, prompts, new_tokens=2)
        resident.append(_status("VmRSS"))
    weights = engine.describe().weight_bytes
    await engine.aclose()
    return {
        "torch_s": torch_s, "import_s": import_s, "load_s": load_s, "first_token_s": first_s, "import_rss": import_rss,
        "load_peak": load_peak, "load_rss": load_rss, "weights": weights, "resident": resident,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--requests", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(asyncio.run(_measure(options.model, options.threads, options.requests))))


if __name__ == "__main__":
    main()
