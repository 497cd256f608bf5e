"""The peer of sealed serving: the same engine behind plain TLS gRPC streaming, without sealing, policy or audit.

Started by `benchmarks.serving` as a process of its own: ``python -m benchmarks.plain_server MODEL DIRECTORY THREADS``.
It writes ``port`` and the certificate into DIRECTORY and serves until its standard input closes.
"""

import asyncio
import json
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import grpc

from data_plane.config import WorkerConfig
from data_plane.engine import EngineConfig, open_engine
from data_plane.inference.port import ChatMessage, Engine, EngineRequest
from data_plane.inference.sampling_params import SamplingParams
from data_plane.session.loading import GUESS_TOKENS
from service.tls import LocalAuthority, server_credentials, spiffe_uri

METHOD: Final = "/benchmark.Plain/Generate"
SCOPE: Final = b"benchmark"  # requests of a sealed session share cached prompt prefixes, so the peer's do


def engine_config(model: Path, threads: int) -> EngineConfig:
    """Return the configuration that a worker gives its engine, for the peers of sealed serving."""
    worker = WorkerConfig()
    return EngineConfig(
        model_path=model,
        threads=threads,
        weights=worker.weights,
        kv_memory_mib=worker.kv_cache_mib,
        max_running=worker.max_running_requests,
        max_waiting=worker.max_queued_requests,
        guess_tokens=GUESS_TOKENS,
    )


class _Plain(grpc.GenericRpcHandler):
    """One method: JSON request in, one JSON message per delta out."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        if handler_call_details.method != METHOD:
            return None
        return grpc.unary_stream_rpc_method_handler(self._generate)

    async def _generate(self, request: bytes, context: object) -> AsyncIterator[bytes]:
        del context
        asked = json.loads(request)
        engine_request = EngineRequest(
            request_id=uuid.uuid4().hex,
            messages=(ChatMessage(role="user", content=asked["prompt"]),),
            sampling=SamplingParams(max_tokens=asked["max_tokens"], temperature=0.0),
            scope=SCOPE,
        )
        async for delta in self._engine.generate(engine_request):
            yield json.dumps({"text": delta.text, "tokens": len(delta.token_ids)}).encode()


async def _serve(model: Path, directory: Path, threads: int) -> None:
    engine = await open_engine(engine_config(model, threads))
    authority = LocalAuthority.load_or_create(directory / "ca", name="benchmark")
    identity = authority.issue_server(
        uri=spiffe_uri("benchmark", "plain"), dns_names=["localhost"], addresses=["127.0.0.1"]
    )
    server = grpc.aio.server(handlers=(_Plain(engine),))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(identity))
    await server.start()
    (directory / "ca.pem").write_bytes(authority.certificate_pem)
    (directory / "port").write_text(str(port))
    await asyncio.to_thread(sys.stdin.buffer.read)
    await server.stop(0)
    await engine.aclose()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
