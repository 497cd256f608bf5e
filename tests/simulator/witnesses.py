"""Witnesses for tests: our own in process, and transparency-dev's omniwitness as a process of its own."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from audit.witness.core import WitnessCore
from audit.witness.server import witness_application
from audit.witness.state import WitnessState
from bulkhead.transparency.cosignature import Algorithm, Cosigner, Witness
from bulkhead.transparency.note import NoteVerifier, make_signer_key
from scripts.local_ports import free_ports
from tests.simulator.go_tools import OMNIWITNESS, tool

SEEDS = {Algorithm.ED25519: bytes([11]) * 32, Algorithm.ML_DSA_44: bytes([12]) * 32}


def cosigners(name: str) -> list[Cosigner]:
    """Return a witness's two keys."""
    return [Cosigner.from_seed(name, seed, algorithm) for algorithm, seed in SEEDS.items()]


def pinned(name: str) -> tuple[Witness, ...]:
    """Return the public keys of :func:`cosigners`."""
    return tuple(cosigner.witness for cosigner in cosigners(name))


@asynccontextmanager
async def our_witness(name: str, directory: Path, vkeys: list[str]) -> AsyncIterator[str]:
    """Run our witness; gives its URL."""
    with WitnessState(directory) as state:
        core = WitnessCore(vkeys=vkeys, cosigners=cosigners(name), state=state, now_s=lambda: int(time.time()))
        runner = web.AppRunner(witness_application(core))
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


@asynccontextmanager
async def omniwitness(name: str, directory: Path, vkeys: list[str]) -> AsyncIterator[str]:
    """Run omniwitness with both keys; gives its URL."""
    port, metrics = free_ports(2)
    command = _prepare(name, directory, vkeys, port, metrics)
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await _answering(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
        await asyncio.wait_for(process.wait(), 10)


def _prepare(name: str, directory: Path, vkeys: list[str], port: int, metrics: int) -> list[str]:
    """Write omniwitness's files and return its command line."""
    directory.mkdir(parents=True, exist_ok=True)
    ed, ml, logs = (directory / file for file in ("ed.key", "ml.key", "logs.yaml"))
    ed.write_text(make_signer_key(name, SEEDS[Algorithm.ED25519]))
    ml.write_text(cosigners(name)[1].skey(SEEDS[Algorithm.ML_DSA_44]))
    entries = [
        f"  - Origin: {NoteVerifier.from_vkey(vkey).name}\n    PublicKey: {vkey}\n    URL: http://127.0.0.1:9/\n"
        for vkey in vkeys
    ]
    logs.write_text("Logs:\n" + "".join(entries))
    return [
        str(tool(OMNIWITNESS)), "--listen", f"127.0.0.1:{port}", "--metrics_listen", f"127.0.0.1:{metrics}",
        "--private_key_path", str(ed), "--private_key_path", str(ml), "--db_file", str(directory / "witness.db"),
        "--additional_logs", str(logs),
    ]  # fmt: skip


WITNESSES = {"ours": our_witness, "omniwitness": omniwitness}


async def _answering(url: str, process: asyncio.subprocess.Process) -> None:
    async with aiohttp.ClientSession() as http:
        for _ in range(300):
            if process.returncode is not None:
                raise RuntimeError(f"omniwitness ended with {process.returncode}")
            try:
                async with http.get(url):
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)
    raise RuntimeError("omniwitness does not answer")
