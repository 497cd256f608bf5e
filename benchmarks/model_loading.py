"""Loading a sealed model against loading the plain one: what a worker does before it listens, in the same process.

Each run opens the source, computes the model's digest from every byte, reads weights and tokenizer into an engine, and
gives all of it up again. Runs alternate, so that both meet the same neighbours; files are in the page cache after the
first, uncounted pair, so that the disk does not hide the cipher. ``read alone`` is the cipher against a copy from the
page cache: every tensor, the largest first, into memory of its own. Ratios are of the fastest runs.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.report import Row, median, verdict
from bulkhead.models import (
    DataKey,
    DirectorySource,
    FileKek,
    ModelSource,
    SealedManifest,
    SealedSource,
    hash_model,
    read_manifest,
    seal_model,
    unwrap_key,
)
from data_plane.engine import EngineConfig
from data_plane.engine.runner import ModelRunner
from data_plane.engine.tensor_file import read_header
from data_plane.engine.tokenizer import Tokenizer

__all__ = ["measure"]

RUNS: Final = 5
GOAL: Final = 0.8
_MIB: Final = 1 << 20


def measure(model: Path, threads: int) -> list[Row]:
    """Return the rows.

    Args:
        model: a plain model's directory.
        threads: of the engine, and for opening chunks.
    """
    root = Path(tempfile.mkdtemp(prefix="bh-bench-"))
    try:
        kek, signer = FileKek.create(root / "kek"), Ed25519PrivateKey.generate()
        began = time.perf_counter()
        manifest = seal_model(model, out=root / "sealed", model="bench", version=1, keks=[kek], signer=signer)
        sealing_s = time.perf_counter() - began
        size_mib = sum(file.size for file in manifest.files) / _MIB

        def sealed() -> ModelSource:
            opened = SealedManifest.open(read_manifest(root / "sealed"), signers=[manifest.signer])
            key = DataKey(unwrap_key(opened, [kek]))
            return SealedSource(root / "sealed", manifest=opened, key=key, threads=threads)

        def plain() -> ModelSource:
            return DirectorySource(model)

        rows = [
            Row(f"sealing a model of {size_mib:.0f} MiB, durable, MiB/s", f"{size_mib / sealing_s:.0f}"),
            _row(
                "load of the sealed model, digest and engine included, fastest run, s",
                _load(threads, model),
                sealed,
                plain,
                goal=GOAL,
            ),
            _row("read alone of every tensor, largest first, fastest run, s", _read, sealed, plain),
        ]
    finally:
        shutil.rmtree(root)
    return rows


def _row(
    what: str,
    work: Callable[[ModelSource], None],
    sealed: Callable[[], ModelSource],
    plain: Callable[[], ModelSource],
    *,
    goal: float | None = None,
) -> Row:
    times: dict[str, list[float]] = {"sealed": [], "plain": []}
    for run in range(RUNS + 1):
        for name, opened in (("plain", plain), ("sealed", sealed)):
            began = time.perf_counter()
            source = opened()
            work(source)
            source.close()
            if run:
                times[name].append(time.perf_counter() - began)
    best = {name: min(taken) for name, taken in times.items()}  # neighbours only ever slow a run down
    ratio = best["plain"] / best["sealed"]
    return Row(
        what,
        f"{best['sealed']:.2f}, median {median(times['sealed']):.2f} ({ratio:.2f} of the plain speed)",
        f"plain {best['plain']:.2f}, median {median(times['plain']):.2f}",
        "" if goal is None else f">= {goal} of its speed",
        "" if goal is None else verdict(met=ratio >= goal),
    )


def _load(threads: int, model: Path) -> Callable[[ModelSource], None]:
    config = EngineConfig(model_path=model, threads=threads, kv_memory_mib=64)

    def work(source: ModelSource) -> None:
        hash_model(source)
        runner = ModelRunner(config, source)
        description = runner.description
        Tokenizer(source=source, vocabulary=description.vocabulary, context_tokens=description.context_tokens)
        with torch.inference_mode():
            runner.erase()

    return work


def _read(source: ModelSource) -> None:
    for path in source.files:
        if path.endswith(".safetensors"):
            tensors = sorted(read_header(source, path).values(), key=lambda tensor: -tensor.size)
            for tensor in tensors:
                target = torch.empty(tensor.size, dtype=torch.uint8)
                source.read_into(path, tensor.offset, target.numpy().data)


if __name__ == "__main__":
    from benchmarks.report import machine, table
    from scripts.local_platform import chat_model

    print(f"{machine()}\n\n{table(measure(chat_model(), len(os.sched_getaffinity(0))))}")
