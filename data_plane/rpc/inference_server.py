"""``bulkhead.v1.InferenceService`` on a Unix socket, with TLS inside by the key in the worker's keyset.

Bounds: messages of :data:`MAX_MESSAGE_BYTES`, calls of :data:`MAX_CALL_S`, :data:`MAX_CALLS` at once. No reflection:
who may speak to a worker knows the protocol from the control plane.
"""

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc

from bulkhead.errors import ConfigError, MessageTooLargeError
from bulkhead.protocol.certificates import MAX_CERTIFICATE_BYTES
from bulkhead.protocol.context import Method
from bulkhead.protocol.envelope import MAX_ENVELOPE_BYTES
from bulkhead.protocol.receipts import SIGNATURE_BYTES
from bulkhead.protocol.tickets import MAX_TICKET_BYTES, MAX_TICKET_LIFE_S
from bulkhead.v1 import inference_pb2 as pb
from bulkhead.v1 import inference_pb2_grpc
from data_plane.session.serving import RequestServer
from service.server import Health, add_health, new_server
from service.tls import Identity

__all__ = ["InferenceServer"]

if TYPE_CHECKING:  # the class is generic in the stubs only
    Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
else:
    Context = grpc.aio.ServicerContext

MAX_MESSAGE_BYTES: Final = 4 << 20  # a payload of 2 MiB, padded at worst to the next power of four per chunk
MAX_CALL_S: Final = MAX_TICKET_LIFE_S + 60.0  # an exchange ends with its ticket
MAX_CALLS: Final = 1024
MAX_CHUNKS: Final = 64  # 2 MiB in chunks of 64 KiB, with room for shorter ones
MAX_ID_CHARACTERS: Final = 64
SERVICE: Final = "bulkhead.v1.InferenceService"


class _Servicer(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(self, requests: RequestServer) -> None:
        self._requests = requests

    def Generate(  # noqa: N802  the protocol's name
        self, request: pb.SealedRequest, _context: Context
    ) -> AsyncIterator[pb.SealedChunks]:
        return self._serve(Method.GENERATE, request)

    def Embed(  # noqa: N802  the protocol's name
        self, request: pb.SealedRequest, _context: Context
    ) -> AsyncIterator[pb.SealedChunks]:
        return self._serve(Method.EMBED, request)

    async def GetReceipt(  # noqa: N802  the protocol's name
        self, request: pb.GetReceiptRequest, _context: Context
    ) -> pb.GetReceiptResponse:
        too_long = (
            len(request.ticket) > MAX_TICKET_BYTES
            or len(request.request_id) > MAX_ID_CHARACTERS
            or len(request.signature) > SIGNATURE_BYTES
            or len(request.certificate) > MAX_CERTIFICATE_BYTES
        )
        if too_long:
            raise MessageTooLargeError("a ticket, certificate, request id or signature is longer than any")
        signed = self._requests.fetch_receipt(
            ticket=request.ticket,
            request_id=request.request_id,
            signature=request.signature,
            certificate=request.certificate,
        )
        return pb.GetReceiptResponse(receipt=signed.receipt, signature=signed.signature)

    async def _serve(self, method: Method, request: pb.SealedRequest) -> AsyncIterator[pb.SealedChunks]:
        if len(request.envelope) > MAX_ENVELOPE_BYTES or len(request.chunk) > MAX_CHUNKS:
            raise MessageTooLargeError(f"an envelope has at most {MAX_ENVELOPE_BYTES} bytes, with {MAX_CHUNKS} chunks")
        async with contextlib.aclosing(self._requests.serve(method, request.envelope, request.chunk)) as parts:
            async for part in parts:
                yield pb.SealedChunks(worker_nonce=part.worker_random, chunk=part.chunks)


class InferenceServer:
    """The running server of one worker."""

    def __init__(self, server: grpc.aio.Server, health: Health) -> None:
        self._server = server
        self._health = health

    @classmethod
    async def start(
        cls, requests: RequestServer, *, identity: Callable[[], Identity], socket_path: Path
    ) -> "InferenceServer":
        """Listen on ``socket_path`` and report SERVING.

        Args:
            requests: answers.
            identity: gives the certificate for each new connection, in a thread of gRPC's.
            socket_path: of the Unix socket, in a directory of the worker's own.

        Raises:
            ConfigError: the socket cannot be made.
        """
        server = new_server(max_call_s=MAX_CALL_S, max_message_bytes=MAX_MESSAGE_BYTES, max_concurrent_calls=MAX_CALLS)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(_Servicer(requests), server)
        health = await add_health(server, [SERVICE])
        try:
            server.add_secure_port(f"unix:{socket_path}", _credentials(identity))
        except RuntimeError as error:
            raise ConfigError(f"worker: cannot listen on {socket_path}") from error
        await server.start()
        await health.set_serving(serving=True)
        return cls(server, health)

    async def drain(self) -> None:
        """Report NOT_SERVING; running calls go on."""
        await self._health.drain()

    async def stop(self, *, grace_s: float) -> None:
        """Close the socket, give running calls ``grace_s``, then cancel them."""
        await self._server.stop(grace_s)


def _credentials(identity: Callable[[], Identity]) -> grpc.ServerCredentials:
    def configuration() -> grpc.ServerCertificateConfiguration:
        current = identity()
        return grpc.ssl_server_certificate_configuration([(current.private_key_pem, current.certificate_pem)])

    return grpc.dynamic_ssl_server_credentials(configuration(), configuration)
