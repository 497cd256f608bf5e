"""What sealing costs: a request, a chunk, bytes on the wire, one core's tokens/s, and the sealed stream over gRPC."""

import asyncio
import json
import os
import pickle
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import grpc
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks.report import Row, median, verdict
from benchmarks.sealed_worker import METHOD, WORD
from bulkhead.client.link import Link
from bulkhead.client.status import Peer
from bulkhead.client.transport import Channel
from bulkhead.protocol.client import ClientRequest
from bulkhead.protocol.context import Method
from bulkhead.protocol.grant import SessionOffer
from bulkhead.protocol.payloads import Delta, GenerateRequest, Message, encode_generate_request
from bulkhead.protocol.server_request import ServerRequest
from bulkhead.sealing import PaddingMode
from tests.simulator.sealed_service import answer, link_to
from tests.simulator.sealed_world import NOW_S, World

SESSIONS: Final = 32
TOKENS: Final = 20_000
ROUNDS: Final = 3
REQUESTS: Final = 200
CHUNKS: Final = 4_000
PROMPT: Final = "Say something about lighthouses. " * 30
GOAL_TOKENS_S: Final = 61_000
START_TIMEOUT_S: Final = 60.0


def _payload() -> bytes:
    return encode_generate_request(GenerateRequest(messages=(Message(role="user", content=PROMPT),)))


def _opened(world: World) -> tuple[ClientRequest, ServerRequest]:
    sent = world.client().begin(Method.GENERATE, _payload(), now_s=NOW_S)
    served = world.make_server().open(sent.envelope, now_s=NOW_S)
    for chunk in sent.chunks:
        served.receive(chunk)
    sent.accept(served.worker_random)
    return sent, served


def _request_row() -> Row:
    world, payload = World(), _payload()
    client, server = world.client(), world.make_server()
    seal_us, open_us, wire = [], [], 0
    for _ in range(REQUESTS):
        began = time.perf_counter()
        sent = client.begin(Method.GENERATE, payload, now_s=NOW_S)
        sealed = time.perf_counter()
        served = server.open(sent.envelope, now_s=NOW_S)
        for chunk in sent.chunks:
            served.receive(chunk)
        seal_us.append((sealed - began) * 1e6)
        open_us.append((time.perf_counter() - sealed) * 1e6)
        wire = len(sent.envelope) + sum(map(len, sent.chunks))
    return Row(
        f"sealing a request of {len(payload):,} bytes, µs",
        f"{median(seal_us):.0f} in the client, {median(open_us):.0f} to verify and open in the worker; "
        f"{wire - len(payload):,} bytes added (envelope {len(sent.envelope):,}, padding included)",
    )


def _chunk_rows() -> list[Row]:
    rows = []
    for tokens in (1, 8, 64):
        delta = Delta(text=WORD * tokens, tokens=tokens)
        sent, served = _opened(World())
        began = time.perf_counter()
        chunks = [served.send(delta) for _ in range(CHUNKS)]
        sealed = time.perf_counter()
        for chunk in chunks:
            sent.receive(chunk)
        seal_us, open_us = (sealed - began) * 1e6 / CHUNKS, (time.perf_counter() - sealed) * 1e6 / CHUNKS
        rows.append(
            Row(
                f"one core's sealed tokens/s, {tokens} token{'s' if tokens > 1 else ''} a chunk",
                f"{tokens / seal_us * 1e6:,.0f} in the worker ({seal_us:.1f} µs a chunk), "
                f"{tokens / open_us * 1e6:,.0f} in the client ({open_us:.1f} µs)",
                f"AES-256-GCM alone {_aead_us(len(chunks[0]) - 17):.1f} µs a chunk",
            )
        )
    return rows


def _aead_us(size: int) -> float:
    aead, plaintext = AESGCM(bytes(32)), bytes(size)
    began = time.perf_counter()
    for number in range(CHUNKS):
        aead.encrypt(number.to_bytes(12, "big"), plaintext, b"123456")
    return (time.perf_counter() - began) * 1e6 / CHUNKS


def _bytes_row() -> Row:
    sizes = []
    for mode in PaddingMode:
        _, served = _opened(World(padding=mode))
        wire = len(served.send(Delta(text=WORD * 8, tokens=8)))
        sizes.append(f"{mode.value} {wire:,}")
    return Row(f"bytes on the wire for 8 tokens ({8 * len(WORD)} bytes of text)", "; ".join(sizes))


Stream = Callable[[int], Awaitable[int]]


@asynccontextmanager
async def _worker(directory: Path, now_s: int) -> AsyncIterator[list[SessionOffer]]:
    server = subprocess.Popen(  # noqa: ASYNC220  starting it takes milliseconds
        [sys.executable, "-m", "benchmarks.sealed_worker", str(directory), str(SESSIONS), str(now_s)],
        stdin=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (directory / "ready").exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the sealed worker did not start")
            await asyncio.sleep(0.1)
        yield pickle.loads((directory / "offers").read_bytes())  # noqa: S301  written by our own child
    finally:
        server.communicate()


def _channel(raw: grpc.aio.Channel, roots: bytes) -> Channel:
    """Return the SDK's channel over a worker's own socket; tenants reach that through the tray's ingress."""
    channel = Channel(peer=Peer.WORKER, address="localhost:1", roots_pem=roots)
    channel.raw = raw  # type: ignore[misc]  # the one place that reaches a worker past its ingress
    return channel


def _sealed(link: Link) -> Stream:
    async def stream(tokens: int) -> int:
        count = 0
        async for event in answer(link, PROMPT, max_tokens=tokens).events():
            count += event.tokens if isinstance(event, Delta) else 0
        return count

    return stream


def _plain(channel: grpc.aio.Channel) -> Stream:
    call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(METHOD)

    async def stream(tokens: int) -> int:
        count = 0
        async for message in call(str(tokens).encode()):
            count += json.loads(message)["tokens"]
        return count

    return stream


async def _rate(streams: Sequence[Stream], tokens: int) -> float:
    began = time.perf_counter()
    counts = await asyncio.gather(*(stream(tokens) for stream in streams))
    if set(counts) != {tokens}:
        raise RuntimeError("a stream lost tokens")
    return sum(counts) / (time.perf_counter() - began)


async def _stream_row() -> Row:
    now_s = int(time.time())
    world = World(seed=1, now_s=now_s)
    with tempfile.TemporaryDirectory(prefix="bh-") as scratch:
        directory = Path(scratch)
        async with _worker(directory, now_s) as offers:
            roots = ssl.DER_cert_to_PEM_cert(offers[0].worker_certificate).encode()
            credentials = grpc.ssl_channel_credentials(roots)
            options = [("grpc.ssl_target_name_override", world.authority)]
            sockets = (f"unix:{directory / name}.sock" for name in ("sealed", "plain"))
            raw, plain_channel = (grpc.aio.secure_channel(path, credentials, options=options) for path in sockets)
            async with _channel(raw, roots) as channel, plain_channel:
                sealed, plain = (
                    [_sealed(link_to(world, offer, channel)) for offer in offers],
                    [_plain(plain_channel)] * SESSIONS,
                )
                await _rate(sealed, 800)
                await _rate(plain, 800)
                rates: dict[str, list[float]] = {"sealed": [], "plain": []}
                for _ in range(ROUNDS):
                    rates["sealed"].append(await _rate(sealed, TOKENS))
                    rates["plain"].append(await _rate(plain, TOKENS))
    mine, peer = median(rates["sealed"]), median(rates["plain"])
    return Row(
        f"sealed stream over gRPC, {SESSIONS} sessions, at most 8 tokens a chunk, both ends on "
        f"{len(os.sched_getaffinity(0))} cores, tokens/s",
        f"{mine:,.0f}; {mine / peer:.2f} of plain TLS gRPC with a message for every chunk",
        f"plain TLS gRPC, 8 tokens a message: {peer:,.0f}",
        f">= {GOAL_TOKENS_S:,}",
        verdict(met=mine >= GOAL_TOKENS_S),
    )


def measure() -> list[Row]:
    """Return the rows of sealing and of the sealed stream."""
    return [_request_row(), *_chunk_rows(), _bytes_row(), asyncio.run(_stream_row())]
