"""Measure the native engine and print a table.

    make bench-engine                            all parts (some 15 minutes; the first run fetches vLLM)
    python -m benchmarks.engine --only speed --sequences 16
    python -m benchmarks.engine --only speed --clock cpu
    python -m benchmarks.engine --only replay    with AZURE_TRACE=.../AzureLLMInferenceTrace_conv.csv

Each figure is the median of interleaved runs; ratios are medians of the ratios of neighbouring runs.
"""

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import Final

import torch

from benchmarks.engine import parts
from benchmarks.engine.line_process import CLOCKS
from benchmarks.engine.vllm_peer import install
from benchmarks.report import Row, as_json, machine, table

PARTS: Final = ("speed", "context", "replay", "start", "memory")


def _say(text: str) -> None:
    print(f"[bench] {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=PARTS, help="run this part only; repeatable")
    parser.add_argument("--model", type=Path, help="default: the chat model, fetched if needed")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--weights", choices=["fp32", "bf16", "int8"], nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--requests", type=int, default=10_000, help="of the memory part")
    parser.add_argument("--trace", type=Path, default=os.environ.get("AZURE_TRACE"), help="CSV; default $AZURE_TRACE")
    parser.add_argument("--stretch", type=float, default=16.0, help="how much further apart the trace's arrivals are")
    parser.add_argument("--no-vllm", action="store_true", help="without the peer")
    parser.add_argument("--peer-type", choices=["float32", "bfloat16"], default="float32", help="vLLM computes in it")
    parser.add_argument(
        "--clock",
        choices=sorted(CLOCKS),
        default="wall",
        help="cpu: seconds of CPU on one thread, for a machine that others use too",
    )
    parser.add_argument("--json", action="store_true", dest="as_json", help="print JSON for programs")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts/ is beside, not in a distribution
    from scripts.fetch_model import default_cache, ensure_chat_model

    model = options.model or ensure_chat_model(default_cache())
    if options.clock == "cpu":
        options.threads = 1  # threads that wait for others spin
    torch.set_num_threads(options.threads)
    vllm = None if options.no_vllm else install(default_cache())
    setting = parts.Setting(
        model=model,
        threads=options.threads,
        repeats=options.repeats,
        vllm=vllm,
        peer_type=options.peer_type,
        clock=options.clock,
    )
    wanted, rows = options.only or PARTS, list[Row]()
    if "speed" in wanted:
        _say("speed (some minutes)")
        rows += asyncio.run(parts.speed(setting, options.sequences, options.weights))
    if "context" in wanted:
        _say("long contexts and prompts")
        rows += asyncio.run(parts.context(setting))
    if "replay" in wanted and options.trace is None:
        _say("no trace: set AZURE_TRACE to replay one")
    elif "replay" in wanted:
        _say("replay of the trace")
        rows += asyncio.run(parts.replay(setting, options.trace, count=32, stretch=options.stretch))
    if "start" in wanted:
        _say("start")
        rows += parts.start(setting)
    if "memory" in wanted:
        _say("memory")
        rows += parts.memory(setting, options.requests)
    print(as_json(rows) if options.as_json else f"{machine()}\n{model.name}\n\n{table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
