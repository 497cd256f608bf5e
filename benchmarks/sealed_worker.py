"""The worker's end of the sealed stream's benchmark: the real request server over gRPC, in front of a scripted engine.

Started by `benchmarks.sealing`: ``python -m benchmarks.sealed_worker DIRECTORY SESSIONS UNIX_SECONDS``. It
writes the sessions' offers into DIRECTORY, listens on Unix sockets there, and serves until its standard input closes.
Beside it stands a plain TLS gRPC stream of the same tokens, eight to a message.
"""

import asyncio
import json
import pickle
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Final

import grpc

from bulkhead.ids import SESSION
from bulkhead.protocol.tickets import TicketLimits
from data_plane.inference.port import EngineRequest, FinishReason, TokenDelta, Usage
from service.tls import server_credentials
from tests.simulator.scripted_engine import ScriptedEngine
from tests.simulator.sealed_service import identity_of, serve
from tests.simulator.sealed_world import World

METHOD: Final = "/benchmark.Plain/Stream"
WORD: Final = " token"
TOKENS_A_MESSAGE: Final = 8
MAX_TOKENS: Final = 10**6


class FreeEngine(ScriptedEngine):  # type: ignore[misc]  # the tests are not typed for others
    """Gives each request as many tokens as it asks for, one at a time, as fast as they are taken."""

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenDelta, None]:
        """Count up to the request's limit; the other streams have their turn after every eighth token."""
        count = request.sampling.max_tokens or 0
        for number in range(count):
            yield TokenDelta(text=WORD, token_ids=(number,))
            if number % TOKENS_A_MESSAGE == TOKENS_A_MESSAGE - 1:
                await asyncio.sleep(0)
        usage = Usage(prompt_tokens=5, completion_tokens=count)
        yield TokenDelta(text="", token_ids=(), finish_reason=FinishReason.LENGTH, usage=usage)


class _Plain(grpc.GenericRpcHandler):
    """One method: a number of tokens in, JSON messages of eight tokens out."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        if handler_call_details.method != METHOD:
            return None
        return grpc.unary_stream_rpc_method_handler(self._stream)

    async def _stream(self, request: bytes, context: object) -> AsyncIterator[bytes]:
        del context
        for _ in range(int(request) // TOKENS_A_MESSAGE):
            yield json.dumps({"text": WORD * TOKENS_A_MESSAGE, "tokens": TOKENS_A_MESSAGE}).encode()


async def _serve(directory: Path, sessions: int, now_s: int) -> None:
    world = World(seed=1, now_s=now_s)
    offers = []
    for _ in range(sessions):
        world.session = world.ids(SESSION)
        offers.append(world.offer(limits=TicketLimits(max_tokens=MAX_TOKENS, max_concurrent_requests=8)))
    (directory / "offers").write_bytes(pickle.dumps(offers))
    sealed = await serve(world, FreeEngine(), directory / "sealed.sock")
    plain = grpc.aio.server(handlers=(_Plain(),))
    plain.add_secure_port(f"unix:{directory / 'plain.sock'}", server_credentials(identity_of(world)))
    await plain.start()
    (directory / "ready").touch()
    await asyncio.to_thread(sys.stdin.buffer.read)
    await plain.stop(0)
    await sealed.stop(grace_s=0)


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
