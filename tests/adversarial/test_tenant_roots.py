"""An operator that issues tickets but has not the tenant's root: session keys that it invents open nothing."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bulkhead.attestation import Tier, appraise
from bulkhead.client.status import Peer, error_from_rpc
from bulkhead.errors import (
    BulkheadError,
    CertificateError,
    CertificateKeyError,
    CertificateMissingError,
    CertificateRootError,
    DowngradeError,
    EvidenceBindingError,
    TenantRootMismatchError,
    TenantRootRequiredError,
)
from bulkhead.protocol.client import ClientSession
from bulkhead.protocol.context import Method, RequestInfo
from bulkhead.protocol.envelope import Envelope
from bulkhead.protocol.grant import check_tenant_root, verify_grant, verify_renewal
from bulkhead.v1 import inference_pb2
from tests.simulator.hardware_world import CONTEXT, NONCE, HardwareWorld
from tests.simulator.hardware_world import NOW_S as HARDWARE_NOW_S
from tests.simulator.sealed_world import NOW_S, World
from tests.simulator.tray import Placed, TenantSession, Tray, running_tray

PROMPT = b'{"messages":[{"content":"hello","role":"user"}]}'


def another_root() -> bytes:
    """Return the fingerprint of a root that the operator made for itself."""
    return hashlib.sha256(World(seed=9).root.public_key().public_bytes_raw()).digest()


class TestWorker:
    """What the operator sends to a worker whose descriptor names the tenant's root."""

    @pytest.fixture
    def world(self) -> World:
        """A tenant with a root, and its worker."""
        return World(rooted=True)

    @staticmethod
    def invented(world: World, certificate: bytes) -> bytes:
        """Return a request by a session key of the operator's, under a ticket that it issued for that key."""
        stranger, grant = Ed25519PrivateKey.generate(), world.grant()
        ticket = world.issuer.issue(replace(grant.claims, cnf=stranger.public_key().public_bytes_raw()))
        honest = Envelope.parse(world.client(grant).begin(Method.GENERATE, PROMPT, now_s=NOW_S).envelope)
        info = RequestInfo(
            scope=grant.claims.scope, request_id=honest.request_id, sequence=honest.sequence, method=honest.method
        )
        signature = stranger.sign(info.transcript_hash(honest.sealed_secret))
        return replace(honest, ticket=ticket, signature=signature, certificate=certificate).encode()

    def test_an_invented_session_key_opens_nothing(self, world: World) -> None:
        """With no certificate, one by another root, or the tenant's own of its key, the operator's key is refused."""
        own = World(seed=9).root
        for certificate, error in (
            (b"", CertificateMissingError),
            (world.certificate(root=own), CertificateRootError),
            (world.certificate(), CertificateKeyError),
        ):
            with pytest.raises(CertificateError) as caught:
                world.make_server().open(self.invented(world, certificate), now_s=NOW_S)
            assert type(caught.value) is error

    def test_a_stolen_session_key_ends_with_its_root(self, world: World) -> None:
        """A key with a certificate that runs on serves at the old root's worker; at the new root's it is refused."""
        certificate = world.certificate()
        stolen = Envelope.parse(world.client(world.grant()).begin(Method.GENERATE, PROMPT, now_s=NOW_S).envelope)
        assert stolen.certificate == certificate
        assert world.make_server().open(stolen.encode(), now_s=NOW_S)
        world.root = World(seed=9).root  # the record has another now, and so have the workers started since
        issued = Envelope.parse(world.client(world.grant()).begin(Method.GENERATE, PROMPT, now_s=NOW_S).envelope)
        with pytest.raises(CertificateRootError):
            world.make_server().open(replace(issued, certificate=certificate).encode(), now_s=NOW_S)
        assert world.make_server().open(issued.encode(), now_s=NOW_S)

    def test_without_a_root_the_same_invention_is_served(self) -> None:
        """What the root is for: where a tenant has none, whoever issues tickets can invent session keys."""
        world = World()
        assert world.make_server().open(self.invented(world, b""), now_s=NOW_S)

    def test_a_refused_certificate_uses_no_sequence_number(self, world: World) -> None:
        """A request without its certificate claims nothing: the honest one still opens."""
        sent = world.client().begin(Method.GENERATE, PROMPT, now_s=NOW_S)
        bare = replace(Envelope.parse(sent.envelope), certificate=b"")
        with pytest.raises(CertificateMissingError):
            world.server.open(bare.encode(), now_s=NOW_S)
        assert world.server.open(sent.envelope, now_s=NOW_S)

    def test_receipts_are_fetched_under_the_same_rule(self, world: World) -> None:
        """A key that the root did not certify fetches no receipt either."""
        client, request_id = world.client(), "req_01h455vb4pex5vsknk084sn02q"
        fetch = partial(
            world.server.authorise_receipt_fetch,
            ticket=client.grant.ticket,
            request_id=request_id,
            signature=client.sign_receipt_fetch(request_id),
            now_s=NOW_S,
        )
        assert fetch(certificate=client.certificate).session == world.session
        with pytest.raises(CertificateMissingError):
            fetch()


class TestClient:
    """What the operator offers to a tenant that has a root."""

    @staticmethod
    def offered(world: World, root: bytes | None) -> None:
        """Verify an offer whose worker was started for ``root``."""
        descriptor = replace(world.descriptor(), tenant_root=root)
        verify_grant(
            world.offer(descriptor=descriptor), expectation=world.expectation(), anchors=world.anchors(), now_s=NOW_S
        )

    @pytest.mark.parametrize("root", [another_root(), None], ids=["another root", "no root"])
    def test_a_root_swapped_in_the_record_is_refused(self, root: bytes | None) -> None:
        """A worker started for another root, or for none, is refused before the first prompt."""
        world = World(rooted=True)
        self.offered(world, world.tenant_root)
        with pytest.raises(TenantRootMismatchError):
            self.offered(world, root)

    def test_a_root_stripped_after_the_evidence_was_made(self) -> None:
        """The descriptor is in the statement: taking the root out of it breaks the signature over it."""
        world = World(rooted=True)
        offer = world.offer()
        named = f'"tenant_root":"{(world.tenant_root or b"").hex()}"'.encode()
        for other in (b'"tenant_root":null', f'"tenant_root":"{another_root().hex()}"'.encode()):
            stripped = offer.evidence.replace(named, other)
            assert stripped != offer.evidence
            with pytest.raises(EvidenceBindingError) as caught:
                verify_grant(
                    replace(offer, evidence=stripped),
                    expectation=world.expectation(),
                    anchors=world.anchors(),
                    now_s=NOW_S,
                )
            assert type(caught.value) is EvidenceBindingError

    def test_a_worker_with_a_root_is_not_used_without_one(self) -> None:
        """A client that was not told of a root does not send requests that could only be refused."""
        world = World(rooted=True)
        anchors = replace(world.anchors(), tenant_roots=())
        with pytest.raises(TenantRootRequiredError):
            verify_grant(world.offer(), expectation=world.expectation(), anchors=anchors, now_s=NOW_S)

    def test_confidential_needs_a_root(self, tmp_path: Path) -> None:
        """Complete hardware evidence of tier confidential is refused by a tenant without a root."""
        world = HardwareWorld(directory=tmp_path)
        worker = appraise(
            world.evidence(),
            nonce=NONCE,
            context=CONTEXT,
            trust_policy=world.policy(),
            now_s=HARDWARE_NOW_S,
            hardware=world.verifier(),
        )
        assert worker.tier is Tier.CONFIDENTIAL
        with pytest.raises(TenantRootRequiredError, match="confidential"):
            check_tenant_root(worker, ())

    def test_renewal_keeps_the_root(self) -> None:
        """A renewal on a worker of another root is no renewal, even where the client would take either."""
        world = World(rooted=True)
        anchors = replace(world.anchors(), tenant_roots=(world.tenant_root or b"", another_root()))
        grants = [
            verify_grant(
                world.offer(descriptor=replace(world.descriptor(), tenant_root=root)),
                expectation=world.expectation(),
                anchors=anchors,
                now_s=NOW_S,
            )
            for root in anchors.tenant_roots
        ]
        with pytest.raises(DowngradeError):
            verify_renewal(*grants)

    def test_no_request_leaves_without_the_certificate(self) -> None:
        """The client's machine does not begin under a certificate that its worker must refuse."""
        world = World(rooted=True)
        grant = world.grant()
        for certificate in (b"", world.certificate(root=World(seed=9).root), world.certificate(cnf=bytes(32))):
            with pytest.raises(CertificateError):
                ClientSession(grant=grant, session_key=world.session_key, certificate=certificate)
        with pytest.raises(CertificateError, match="without a root"):
            ClientSession(grant=World().grant(), session_key=World().session_key, certificate=world.certificate())


ROOT = Ed25519PrivateKey.generate()
FINGERPRINT = hashlib.sha256(ROOT.public_key().public_bytes_raw()).digest()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tray(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Tray]:
    async with running_tray(tmp_path_factory.mktemp("tray")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def placed(tray: Tray) -> Placed:
    """A worker process that was started for a tenant with a root."""
    return await tray.place(tenant_root=FINGERPRINT)


async def code_of(session: TenantSession, envelope: bytes, chunks: tuple[bytes, ...]) -> str:
    """Return the code with which a worker refuses a request before a single message."""
    message = inference_pb2.SealedRequest(envelope=envelope, chunk=chunks)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(session.stub.Generate(message, timeout=20)))
    return error_from_rpc(caught.value, Peer.WORKER).code


@pytest.mark.asyncio(loop_scope="module")
async def test_a_worker_process_serves_certified_keys_only(tray: Tray, placed: Placed) -> None:
    """Agent and worker carry the root: the tenant's session is answered, the operator's invention is reported."""
    session = await tray.session(placed, root=ROOT)
    assert session.client.grant.worker.descriptor.tenant_root == FINGERPRINT
    assert (await session.ask(max_tokens=3)).complete is not None
    grant, operator = session.client.grant, Ed25519PrivateKey.generate()
    forged = replace(grant, claims=replace(grant.claims, cnf=operator.public_key().public_bytes_raw()))
    ticket = tray.issuer.issue(forged.claims)
    world = World(tenant=placed.tenant, now_s=int(time.time()), rooted=True)
    world.root = ROOT
    sent = session.begin()
    honest = Envelope.parse(sent.envelope)
    info = RequestInfo(
        scope=grant.claims.scope, request_id=honest.request_id, sequence=honest.sequence, method=honest.method
    )
    signature = operator.sign(info.transcript_hash(honest.sealed_secret))
    for certificate, code in (
        (b"", "CERTIFICATE_MISSING"),
        (world.certificate(root=operator, cnf=forged.claims.cnf), "CERTIFICATE_ROOT"),
        (session.client.certificate, "CERTIFICATE_KEY"),
    ):
        invented = replace(honest, ticket=ticket, signature=signature, certificate=certificate)
        assert await code_of(session, invented.encode(), sent.chunks) == code
        await tray.plane.until(lambda code=code: [e for e in tray.plane.of_kind("refusal") if e.refusal.code == code])
    stale = replace(honest, certificate=world.certificate(cnf=grant.claims.cnf, not_after_s=world.now_s))
    assert await code_of(session, stale.encode(), sent.chunks) == "CERTIFICATE_EXPIRED"
    assert (await session.ask(max_tokens=3)).complete is not None
    receipt = inference_pb2.GetReceiptRequest(
        ticket=grant.ticket, request_id=sent.request_id, signature=session.client.sign_receipt_fetch(sent.request_id)
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await session.stub.GetReceipt(receipt, timeout=20)
    assert error_from_rpc(caught.value, Peer.WORKER).code == "CERTIFICATE_MISSING"
    await session.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_a_client_refuses_the_worker_of_another_root(tray: Tray, placed: Placed) -> None:
    """Evidence of the real agent names the root it was ordered with; a tenant with another refuses the worker."""
    with pytest.raises(BulkheadError) as caught:
        await tray.session(placed, root=Ed25519PrivateKey.generate())
    assert type(caught.value) is TenantRootMismatchError
    unrooted = await tray.place()
    with pytest.raises(TenantRootMismatchError):
        await tray.session(unrooted, root=ROOT)
    await asyncio.gather(tray.release(unrooted), return_exceptions=True)


@pytest.mark.asyncio(loop_scope="module")
async def test_an_agent_starts_no_worker_with_half_a_root(tray: Tray) -> None:
    """A root that is no digest is refused by name, and nothing is started."""
    from bulkhead.ids import PARTITION, TENANT, new_id

    order = tray.create_order(tenant=new_id(TENANT), tier=Tier.PROCESS, tenant_root=b"short")
    result = await tray.plane.order(partition_id=new_id(PARTITION), create=order)
    assert result.failure.code == "INVALID_REQUEST"
    assert "tenant_root" in result.failure.message
