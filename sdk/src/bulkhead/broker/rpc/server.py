"""KeyBrokerService over TLS. It asks nobody for a credential: what it gives opens in the attested worker alone."""

import asyncio
import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NoReturn, TypeVar

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from bulkhead.broker.broker import KeyBroker, Released
from bulkhead.broker.config import BrokerConfig
from bulkhead.broker.journal import ReleaseJournal
from bulkhead.errors import CODE_TO_STATUS, BulkheadError, ConfigError, InternalError, KeyReleaseError
from bulkhead.protocol.release import ReleaseRequest
from bulkhead.transparency import AuditReceipt
from bulkhead.v1 import broker_pb2 as pb
from bulkhead.v1 import broker_pb2_grpc

__all__ = ["BrokerServer"]

MAX_CALLS: Final = 64  # of a service that a platform calls once for each worker it starts
MAX_REQUEST_BYTES: Final = 8 << 20  # a manifest and evidence of a whole rack
MAX_PROOF: Final = 64
_ERROR_DOMAIN: Final = "bulkhead.dev"
_DETAILS_KEY: Final = "grpc-status-details-bin"
_Result = TypeVar("_Result")


class _Servicer(broker_pb2_grpc.KeyBrokerServiceServicer):
    def __init__(self, *, config: BrokerConfig, broker: KeyBroker, journal: ReleaseJournal) -> None:
        self._config = config
        self._broker = broker
        self._journal = journal
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="broker")

    async def Challenge(self, request: pb.ChallengeRequest, context: Any) -> pb.ChallengeResponse:  # noqa: ARG002, N802  gRPC's names
        """Return a nonce."""
        return pb.ChallengeResponse(nonce=await self._guarded(context, self._broker.challenge))

    async def Release(self, request: pb.ReleaseRequest, context: Any) -> pb.ReleaseResponse:  # noqa: N802  gRPC's name
        """Return a sealed key."""
        released = await self._guarded(context, lambda: self._release(request))
        return pb.ReleaseResponse(sealed_key=released.sealed_key, evidence_digest=released.evidence_digest)

    def _release(self, request: pb.ReleaseRequest) -> Released:
        """Decide, and write down what was decided before it is told."""
        entry: dict[str, str | int] = {
            "ts_s": int(time.time()),
            "tenant": request.tenant_id[:64],
            "evidence_digest": hashlib.sha256(request.evidence).hexdigest(),
        }
        try:
            if request.tenant_id != self._config.tenant:
                raise KeyReleaseError("this key broker is another tenant's", details={"reason": "TENANT"})
            released = self._broker.release(
                _request(request), trust_policy=self._config.trust_policy, log_vkey=self._config.log_key
            )
        except BulkheadError as error:
            self._journal.write(**entry, outcome="refused", code=error.code, reason=error.message)
            raise
        terms = released.terms
        self._journal.write(
            **entry,
            outcome="released",
            model=terms.model,
            version=terms.version,
            manifest_digest=terms.manifest_digest.hex(),
            decision_leaf_hash=terms.decision_leaf_hash.hex(),
            partition=released.worker.descriptor.partition,
        )
        return released

    async def _guarded(self, context: Any, work: Callable[[], _Result]) -> _Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except BulkheadError as error:
            await _abort(context, error)
        except Exception:  # noqa: BLE001  the call's boundary: a defect tells a stranger nothing
            await _abort(context, InternalError("the key broker failed on this request"))


async def _abort(context: Any, error: BulkheadError) -> NoReturn:
    code = grpc.StatusCode[CODE_TO_STATUS[error.code]]
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason=error.code, domain=_ERROR_DOMAIN, metadata=dict(error.details)))
    status = status_pb2.Status(code=code.value[0], message=error.message, details=[packed])
    await context.abort(code, error.message, ((_DETAILS_KEY, status.SerializeToString()),))
    raise AssertionError("abort returned")  # it never does; the type checker cannot know


def _request(message: pb.ReleaseRequest) -> ReleaseRequest:
    decision = message.decision
    return ReleaseRequest(
        nonce=message.nonce,
        tenant=message.tenant_id,
        manifest=message.manifest,
        evidence=message.evidence,
        decision=AuditReceipt(
            leaf=decision.leaf,
            index=decision.index,
            proof=tuple(decision.proof[:MAX_PROOF]),
            checkpoint=decision.checkpoint,
        ),
        origin=decision.origin,
    )


class BrokerServer:
    """A tenant's broker, listening.

    Attributes:
        address: ``host:port`` that it listens on.
    """

    def __init__(self, *, server: grpc.aio.Server, address: str, journal: ReleaseJournal) -> None:
        self._server = server
        self._journal = journal
        self.address: Final = address

    @classmethod
    async def start(cls, config: BrokerConfig) -> "BrokerServer":
        """Open keys and state, then listen.

        Raises:
            ConfigError: the configuration names what cannot be used, or the address is taken.
            KeyBrokerError: the key store or the state is out of reach.
        """
        broker = await asyncio.to_thread(config.open_broker)
        journal = ReleaseJournal(config.state_directory / "releases.jsonl")
        try:
            pair = (config.tls_key.read_bytes(), config.tls_certificate.read_bytes())
        except OSError as error:
            raise ConfigError(f"{error.filename}: cannot be read: {error.strerror}") from error
        server = grpc.aio.server(
            options=[("grpc.max_receive_message_length", MAX_REQUEST_BYTES)], maximum_concurrent_rpcs=MAX_CALLS
        )
        broker_pb2_grpc.add_KeyBrokerServiceServicer_to_server(
            _Servicer(config=config, broker=broker, journal=journal), server
        )
        host = config.listen.rpartition(":")[0]
        try:
            port = server.add_secure_port(config.listen, grpc.ssl_server_credentials([pair]))
        except RuntimeError as error:
            raise ConfigError(f"listen: {config.listen} is taken, or the certificate does not fit its key") from error
        await server.start()
        return cls(server=server, address=f"{host}:{port}", journal=journal)

    async def stop(self, *, grace_s: float = 5.0) -> None:
        """Finish running calls and close."""
        await self._server.stop(grace_s)
        self._journal.close()
