"""A control plane and a worker for SDK tests: real gRPC, TLS, sealing, evidence and audit proofs; scripted conduct.

One tenant, one worker. Everything that a client verifies is made by the real code of
:mod:`tests.simulator.sealed_world`; a test changes one thing and sees what the client says. Nothing here decides:
there is no policy and no placement.
"""

import asyncio
import gzip
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import grpc.aio

from bulkhead.attestation import EvidenceKind, Tier
from bulkhead.client.config import Profile, TicketIssuerPin
from bulkhead.client.roots import RootPin
from bulkhead.encoding import b64url_encode
from bulkhead.errors import BulkheadError, NotFoundError
from bulkhead.protocol.context import Method
from bulkhead.protocol.payloads import (
    Delta,
    EmbedResult,
    End,
    GenerateRequest,
    Trace,
    Usage,
    parse_embed_request,
    parse_generate_request,
)
from bulkhead.protocol.receipts import SignedReceipt
from bulkhead.protocol.server import SealedServer
from bulkhead.protocol.server_request import ServerRequest
from bulkhead.sealing import PaddingMode, WorkerKeys
from bulkhead.v1 import (
    audit_pb2,
    audit_pb2_grpc,
    common_pb2,
    inference_pb2,
    inference_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
)
from service.errors_rpc import abort_with
from tests.simulator.fake_audit import FakeAudit
from tests.simulator.pki import Authority
from tests.simulator.sealed_world import MODEL, MODEL_DIGEST, POLICY_DIGEST, World

__all__ = ["ANSWER", "API_KEY", "TRACE", "FakePlatform", "PlatformWorld", "running_platform"]

API_KEY = f"bhk_{'0' * 26}_{'a' * 43}"
TRACE = gzip.compress(b'{"traceEvents":[]}', mtime=0)
ANSWER = ("The capital ", "of France ", "is Paris.")
AUTHORITY = Authority("fake control plane")
_SERVER = AUTHORITY.issue("control.test")
Respond = Callable[["FakePlatform", ServerRequest], AsyncIterator[inference_pb2.SealedChunks]]


class PlatformWorld(World):
    """A world whose session key is the client's."""

    client_cnf = b""

    @property
    def cnf(self) -> bytes:
        """The public session key that the client sent."""
        return self.client_cnf or super().cnf


async def answer(platform: "FakePlatform", request: ServerRequest) -> AsyncIterator[inference_pb2.SealedChunks]:
    """Answer honestly: deltas, end, receipt."""
    nonce = request.worker_random
    if request.info.method is Method.EMBED:
        inputs = parse_embed_request(request.payload).inputs
        for index, text in enumerate(inputs):
            chunk = request.send(EmbedResult(index=index, vector=(float(len(text)), 1.0)))
            yield inference_pb2.SealedChunks(worker_nonce=nonce, chunk=[chunk])
            nonce = b""
    else:
        platform.prompts.append(parse_generate_request(request.payload))
        for text in ANSWER:
            await asyncio.sleep(platform.pace_s)
            chunk = request.send(Delta(text=text, tokens=2))
            yield inference_pb2.SealedChunks(worker_nonce=nonce, chunk=[chunk])
            nonce = b""
        for piece in (TRACE[:4], TRACE[4:]) if platform.prompts[-1].profile and not platform.cut_short else ():
            yield inference_pb2.SealedChunks(chunk=[request.send(Trace(data=piece))])
    end = request.end(End(finish_reason="stop", usage=Usage(prompt_tokens=5, completion_tokens=6)))
    platform.keep(request)
    yield inference_pb2.SealedChunks(worker_nonce=nonce, chunk=[end, request.finish()])


@dataclass
class FakePlatform:
    """What the servers do; tests set the fields before or between calls.

    Attributes:
        world: makes grants.
        before_open: awaited first in OpenSession; raises a BulkheadError to refuse.
        before_renew: the same for RenewSession.
        change_grant: changes a grant message before it is sent.
        before_answer: awaited first in Generate and Embed, before anything is opened.
        respond: makes the response of an opened request.
        pace_s: pause before each delta.
        cut_short: the answer ends before there is a step to trace.
    """

    world: PlatformWorld
    before_open: Callable[[session_pb2.OpenSessionRequest], Awaitable[None]] | None = None
    before_renew: Callable[[], Awaitable[None]] | None = None
    change_grant: Callable[[session_pb2.SessionGrant], None] | None = None
    before_answer: Callable[[], Awaitable[None]] | None = None
    respond: Respond = answer
    pace_s: float = 0.0
    cut_short: bool = False
    ticket_life_s: int = 300
    prompts: list[GenerateRequest] = field(default_factory=list)
    opens: list[session_pb2.OpenSessionRequest] = field(default_factory=list)
    renewals: int = 0
    closed: list[str] = field(default_factory=list)
    receipts: dict[str, SignedReceipt] = field(default_factory=dict)
    worker_calls: int = 0
    workers: list[grpc.aio.Server] = field(default_factory=list)
    worker_address: str = ""
    address: str = ""
    sealed: SealedServer | None = None
    audit: FakeAudit = field(init=False)

    def __post_init__(self) -> None:
        self.audit = FakeAudit(self.world)

    def grant(self, nonce: bytes) -> session_pb2.SessionGrant:
        """Return an honest grant for ``nonce``, then changed as the test wants."""
        world = self.world
        world.nonce = nonce
        world.now_s = int(time.time())
        offer = world.offer(expires_at_s=world.now_s + self.ticket_life_s)
        receipt = offer.decision
        grant = session_pb2.SessionGrant(
            session_id=offer.session,
            tenant_id=world.tenant,
            partition_id=world.partition,
            model=MODEL,
            tier=common_pb2.Tier.Value(f"TIER_{world.tier.value.upper()}"),
            ticket=offer.ticket,
            endpoint=session_pb2.Endpoint(address=self.worker_address, authority=world.authority),
            worker_certificate=offer.worker_certificate,
            keyset=world.keys.keyset.encoded,
            evidence=offer.evidence,
            decision=audit_pb2.AuditReceipt(
                index=receipt.index, leaf=receipt.leaf, proof=receipt.proof, checkpoint=receipt.checkpoint
            ),
            model_digest=MODEL_DIGEST,
            policy_digest=POLICY_DIGEST,
            obligations=['{"tier":"gpu","type":"min_tier"}'],
            ticket_issuer=world.issuer.public_key,
        )
        if self.change_grant is not None:
            self.change_grant(grant)
        return grant

    def profile(self, **changes: object) -> Profile:
        """Return the tenant's profile for this platform."""
        world = self.world
        anchors = world.anchors()
        profile = Profile(
            name="test",
            path=Path("config.toml"),
            address=self.address,
            ca_pem=AUTHORITY.root_pem,
            server_name="control.test",
            api_key=API_KEY,
            tenant_id=world.tenant,
            log_vkey=anchors.log_vkey,
            ticket_issuer=TicketIssuerPin(fingerprints=frozenset({world.issuer.fingerprint})),
            trust=anchors.trust_policy,
            development_mode=anchors.development_mode,
            root=RootPin(fingerprint=world.tenant_root, key=world.root) if world.rooted else RootPin(),
        )
        return replace(profile, **changes)  # type: ignore[arg-type]

    def write_config(self, directory: Path, *, extra: str = "") -> Path:
        """Write a configuration file with the tenant's profile `test`; return its path."""
        world = self.world
        (directory / "ca.pem").write_bytes(AUTHORITY.root_pem)
        key = directory / "test.key"
        key.write_text(API_KEY)
        key.chmod(0o600)
        simulated = world.kind is EvidenceKind.SIMULATED
        path = directory / "config.toml"
        path.write_text(
            f"""
            [profile.test]
            address = "{self.address}"
            server_name = "control.test"
            ca_file = "ca.pem"
            api_key_file = "test.key"
            tenant = "{world.tenant}"
            log_vkey = "{world.log.vkey}"
            ticket_issuer = "{b64url_encode(world.issuer.public_key)}"
            development_mode = {"true" if simulated else "false"}
            {extra}
            [profile.test.trust]
            accepted_kinds = ["{world.kind.value}"]
            operator_keys = ["{b64url_encode(world.evidence_issuer.public_key)}"]
            minimum_tier = "process"
            [profile.test.defaults]
            model = "{MODEL}"
            """
        )
        return path

    def keep(self, request: ServerRequest) -> SignedReceipt:
        """Make a request's receipt, and keep it for GetReceipt."""
        signed = request.make_receipt(ts_us=time.time_ns() // 1000)
        self.receipts[request.info.request_id] = signed
        return signed

    async def rotate_keys(self) -> None:
        """Give the worker new keys, TLS included, on a new port; tickets of before are stale at the old one too."""
        self.world.keys = WorkerKeys.generate(authority=self.world.authority, now_s=int(time.time()))
        await self.start_worker()

    async def reconnect_with_new_keys(self) -> None:
        """Break every connection to the worker, which from now on shows new keys at the same address."""
        older, self.workers = self.workers, []
        self.world.keys = WorkerKeys.generate(authority=self.world.authority, now_s=int(time.time()))
        await self.start_worker(self.worker_address)  # beside the older one, so that nobody else gets the port
        for server in older:
            await server.stop(None)

    async def start_worker(self, address: str = "127.0.0.1:0") -> None:
        """Serve with the world's present keys, on a new port unless one is given."""
        keys = self.world.keys
        self.sealed = self.world.make_server()
        server = grpc.aio.server()
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(_Worker(self), server)
        tls = grpc.ssl_server_credentials([(keys.tls_private_key(), keys.tls_certificate)])
        self.worker_address = f"127.0.0.1:{server.add_secure_port(address, tls)}"
        await server.start()
        self.workers.append(server)


class _Sessions(session_pb2_grpc.SessionServiceServicer):
    def __init__(self, platform: FakePlatform) -> None:
        self._platform = platform

    async def OpenSession(
        self, request: session_pb2.OpenSessionRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[session_pb2.OpenSessionEvent]:
        platform = self._platform
        platform.opens.append(request)
        try:
            if platform.before_open is not None:
                await platform.before_open(request)
        except BulkheadError as error:
            await abort_with(context, error)
        for phase in (session_pb2.OPEN_PHASE_DECIDED, session_pb2.OPEN_PHASE_LOADING):
            progress = session_pb2.OpenProgress(phase=phase, message="working on it")
            yield session_pb2.OpenSessionEvent(progress=progress)
        platform.world.client_cnf = request.session_public_key
        platform.world.open_request = request.request_id
        yield session_pb2.OpenSessionEvent(ready=platform.grant(request.nonce))

    async def RenewSession(
        self, request: session_pb2.RenewSessionRequest, context: grpc.aio.ServicerContext
    ) -> session_pb2.RenewSessionResponse:
        platform = self._platform
        platform.renewals += 1
        try:
            if platform.before_renew is not None:
                await platform.before_renew()
        except BulkheadError as error:
            await abort_with(context, error)
        return session_pb2.RenewSessionResponse(grant=platform.grant(request.nonce))

    async def CloseSession(
        self, request: session_pb2.CloseSessionRequest, context: grpc.aio.ServicerContext
    ) -> session_pb2.CloseSessionResponse:
        self._platform.closed.append(request.session_id)
        return session_pb2.CloseSessionResponse()


class _Queries(session_pb2_grpc.SessionQueryServiceServicer):
    def __init__(self, platform: FakePlatform) -> None:
        self._platform = platform

    def _view(self) -> session_pb2.Session:
        world = self._platform.world
        return session_pb2.Session(
            session_id=world.session,
            tenant_id=world.tenant,
            model=MODEL,
            tier=common_pb2.TIER_GPU,
            state="closed" if self._platform.closed else "open",
            created_unix_s=world.now_s,
        )

    async def GetSession(
        self, request: session_pb2.GetSessionRequest, context: grpc.aio.ServicerContext
    ) -> session_pb2.GetSessionResponse:
        if request.session_id != self._platform.world.session:
            await abort_with(context, NotFoundError("no such session"))
        return session_pb2.GetSessionResponse(session=self._view())

    async def ListSessions(
        self, request: session_pb2.ListSessionsRequest, context: grpc.aio.ServicerContext
    ) -> session_pb2.ListSessionsResponse:
        first = not request.page.token
        return session_pb2.ListSessionsResponse(sessions=[self._view()], next_page_token="2" if first else "")


class _Worker(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(self, platform: FakePlatform) -> None:
        self._platform = platform

    async def Generate(
        self, request: inference_pb2.SealedRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[inference_pb2.SealedChunks]:
        platform = self._platform
        platform.worker_calls += 1
        if platform.sealed is None:
            raise RuntimeError("the fake worker has not been started")
        try:
            if platform.before_answer is not None:
                await platform.before_answer()
            opened = platform.sealed.open(request.envelope, now_s=int(time.time()))
            for chunk in request.chunk:
                opened.receive(chunk)
        except BulkheadError as error:
            await abort_with(context, error)
        try:
            async for message in platform.respond(platform, opened):
                yield message
        except BulkheadError as error:
            await abort_with(context, error)

    Embed = Generate

    async def GetReceipt(
        self, request: inference_pb2.GetReceiptRequest, context: grpc.aio.ServicerContext
    ) -> inference_pb2.GetReceiptResponse:
        platform = self._platform
        if platform.sealed is None:
            raise RuntimeError("the fake worker has not been started")
        try:
            platform.sealed.authorise_receipt_fetch(
                ticket=request.ticket,
                request_id=request.request_id,
                signature=request.signature,
                certificate=request.certificate,
                now_s=int(time.time()),
            )
            signed = platform.receipts.get(request.request_id)
            if signed is None:
                raise NotFoundError("no receipt under that request id")
        except BulkheadError as error:
            await abort_with(context, error)
        return inference_pb2.GetReceiptResponse(receipt=signed.receipt, signature=signed.signature)


@asynccontextmanager
async def running_platform(
    *,
    kind: EvidenceKind = EvidenceKind.OPERATOR,
    tier: Tier = Tier.GPU,
    padding: PaddingMode = PaddingMode.DEFAULT,
    rooted: bool = False,
    also: Sequence[Callable[[grpc.aio.Server], None]] = (),
) -> AsyncIterator[FakePlatform]:
    """Serve a platform on two loopback ports until the block ends; ``also`` adds services to its control plane."""
    platform = FakePlatform(PlatformWorld(kind=kind, tier=tier, padding=padding, rooted=rooted, now_s=int(time.time())))
    control = grpc.aio.server()
    session_pb2_grpc.add_SessionServiceServicer_to_server(_Sessions(platform), control)
    session_pb2_grpc.add_SessionQueryServiceServicer_to_server(_Queries(platform), control)
    audit_pb2_grpc.add_AuditServiceServicer_to_server(platform.audit, control)
    for add in also:
        add(control)
    tls = grpc.ssl_server_credentials([(_SERVER.key_pem, _SERVER.certificate_pem)])
    platform.address = f"127.0.0.1:{control.add_secure_port('127.0.0.1:0', tls)}"
    await control.start()
    await platform.start_worker()
    try:
        yield platform
    finally:
        for server in (*platform.workers, control):
            await server.stop(0)
