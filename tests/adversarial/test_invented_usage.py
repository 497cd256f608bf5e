"""An operator that tries to state usage for which no worker signed a receipt, against a tenant that keeps its own."""

import io
from dataclasses import replace

import pytest

from audit.records import PlatformReason, platform_cause, receipts
from bulkhead.errors import BulkheadError, CertificateError, ReplayError, TenantRootMismatchError, UsageError
from bulkhead.protocol.context import Method, RequestInfo
from bulkhead.protocol.envelope import Envelope
from bulkhead.protocol.saved import SavedReceipt, verify_saved
from bulkhead.transparency import ReceiptBatch, ReceiptEntry, UsageReport, check_usage, receipts_root
from bulkhead.transparency.export import verify_export
from control_plane.domain.roles import Caller
from tests.simulator.fake_agent import FakeAgent
from tests.simulator.saved_receipts import saved_answer
from tests.simulator.sealed_world import NOW_S, World
from tests.simulator.session_world import SessionWorld, request

KEPT = [bytes([number]) * 32 for number in (1, 2)]


class Tenant:
    """A tenant with one session, of which it keeps two receipts of 5 and 7 tokens each."""

    def __init__(self, world: SessionWorld, caller: Caller, agent: FakeAgent, place: tuple[str, str]) -> None:
        self.world, self.caller, self.agent = world, caller, agent
        self.partition, self.session = place

    @classmethod
    async def of(cls, world: SessionWorld) -> "Tenant":
        """Return a tenant whose two requests were served and recorded."""
        caller, agent = await world.tenant("acme"), await world.agent()
        grant = (await world.open("acme", request())).grant
        tenant = cls(world, caller, agent, (grant.partition_id, grant.session_id))
        for digest in KEPT:
            tenant.told(digest)
        await tenant.recorded()
        return tenant

    def told(self, digest: bytes, *, number: int = 0) -> None:
        """Have the node agent report a receipt."""
        self.agent.receipt(self.partition, self.session, tenant_id=self.caller.tenant_id, digest=digest, number=number)

    async def recorded(self) -> None:
        """Wait until the control plane has recorded what the agent reported."""
        seq = self.agent.last_seq
        (spool,) = self.world.core.receipts._spools.values()
        await self.agent.until(lambda: len(spool.waiting()) + spool.committed_seq >= seq)
        await self.world.core.receipts.flush(everything=True)

    async def check(self) -> UsageReport:
        """Export the log, verify it, and hold it against the kept receipts."""
        info = await self.world.audit.ensure_log(self.caller.tenant_id)
        export = io.BytesIO()
        await self.world.audit.export([info.log_id], export)
        export.seek(0)
        found = []
        verify_export(export, vkeys=[self.world.audit.vkey(info.log_id)], on_record=found.append)
        batches = [ReceiptBatch.of(record) for record in found if record.action == "receipts"]
        kept = [
            ReceiptEntry(
                session=self.session,
                partition=self.partition,
                number=number,
                digest=digest,
                prompt_tokens=5,
                completion_tokens=7,
            )
            for number, digest in enumerate(KEPT, start=1)
        ]
        return check_usage(batches, kept)

    async def forge(self, **changes: object) -> None:
        """Write a `receipts` record past everything that the control plane's own code would do."""
        fields = {
            "session": self.session,
            "partition": self.partition,
            "root": receipts_root(KEPT),
            "first": 1,
            "count": 2,
            "prompt_tokens": 10,
            "completion_tokens": 14,
        }
        await self.world.journal.write(
            receipts(
                self.world.journal.stamp(),
                tenant=self.caller.tenant_id,
                cause=platform_cause(PlatformReason.SPOOL),
                pair_id="",
                model="tiny",
                tier="process",
                final=False,
                **(fields | changes),  # type: ignore[arg-type]
            )
        )


async def test_honest_usage_passes(world: SessionWorld) -> None:
    """What two receipts show is what the log states: the refusals below are of the additions."""
    report = await (await Tenant.of(world)).check()
    assert (report.receipts, report.prompt_tokens, report.completion_tokens) == (2, 10, 14)


async def test_receipt_that_no_worker_signed_is_found(world: SessionWorld) -> None:
    """A node agent reports a third receipt: the log states usage of a number that the tenant holds no receipt of."""
    tenant = await Tenant.of(world)
    tenant.told(b"invented" * 4)
    await tenant.recorded()
    with pytest.raises(UsageError, match="receipt 3, which nobody holds") as found:
        await tenant.check()
    assert found.value.details["number"] == "3"


async def test_second_digest_for_a_used_number_is_not_recorded(world: SessionWorld) -> None:
    """A node agent reports another receipt under a used number: the platform's log says so, the tenant's stays."""
    tenant = await Tenant.of(world)
    tenant.told(b"invented" * 4, number=2)
    await tenant.recorded()
    assert (await tenant.check()).receipts == 2
    refused = await world.records("", "access.denied")
    assert "another receipt under a number that has one" in str(refused[-1].reasons)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"completion_tokens": 700},
        {"first": 3},
        {"first": 3, "count": 1, "root": receipts_root(KEPT[:1])},
        {"count": 1_000},
        {"partition": "part_01h455vb4pex5vsknk084sn02c"},
    ],
    ids=["again", "again with more", "further range", "one more", "many", "other partition"],
)
async def test_record_written_past_the_code_is_found(world: SessionWorld, changes: dict[str, object]) -> None:
    """Whoever writes the log can state anything; the export verifies, and the tenant's receipts contradict it."""
    tenant = await Tenant.of(world)
    await tenant.forge(**changes)
    with pytest.raises(UsageError):
        await tenant.check()


class TestReceiptsOfATenantWithARoot:
    """What an operator can have signed who runs genuine workers, issues tickets, writes the log, and has no root."""

    @pytest.fixture
    def mine(self) -> World:
        """The tenant's session; all keys but the root's and the session's are the operator's to use."""
        return World(rooted=True)

    @staticmethod
    def by_the_operator(mine: World, *, rooted: bool) -> SavedReceipt:
        """Return what a genuine worker signs that the operator started for a root of its own, or for none."""
        own = World(seed=7, tenant=mine.tenant, rooted=rooted)
        own.log, own.issuer, own.evidence_issuer = mine.log, mine.issuer, mine.evidence_issuer
        own.server = own.make_server()
        return saved_answer(own)

    def test_a_receipt_needs_a_key_that_the_root_certified(self, mine: World) -> None:
        """The tenant's worker signs nothing for a session key of the operator's, nor for a recorded request again."""
        grant, stranger = mine.grant(), World(seed=9)
        recorded = mine.client(grant).begin(Method.GENERATE, b"{}", now_s=NOW_S).envelope
        mine.server.open(recorded, now_s=NOW_S)
        with pytest.raises(ReplayError):
            mine.server.open(recorded, now_s=NOW_S)
        honest = Envelope.parse(recorded)
        ticket = mine.issuer.issue(replace(grant.claims, cnf=stranger.cnf))
        info = RequestInfo(scope=grant.claims.scope, request_id=honest.request_id, sequence=1, method=honest.method)
        signature = stranger.session_key.sign(info.transcript_hash(honest.sealed_secret))
        for certificate, code in (
            (b"", "CERTIFICATE_MISSING"),
            (honest.certificate, "CERTIFICATE_KEY"),
            (mine.certificate(root=stranger.root, cnf=stranger.cnf), "CERTIFICATE_ROOT"),
        ):
            invented = replace(honest, ticket=ticket, sequence=1, signature=signature, certificate=certificate)
            with pytest.raises(CertificateError) as caught:
                mine.server.open(invented.encode(), now_s=NOW_S)
            assert caught.value.code == code

    @pytest.mark.parametrize("rooted", [True, False], ids=["a root of the operator's", "no root"])
    def test_a_receipt_under_another_root_is_not_the_tenants(self, mine: World, rooted: bool) -> None:  # noqa: FBT001
        """A worker started for another root signs, and its evidence says so: the receipt is refused for its root."""
        assert verify_saved(saved_answer(mine), tenant=mine.tenant, anchors=mine.anchors()).counted
        with pytest.raises(TenantRootMismatchError):
            verify_saved(self.by_the_operator(mine, rooted=rooted), tenant=mine.tenant, anchors=mine.anchors())

    def test_evidence_with_the_tenants_root_does_not_carry_it(self, mine: World) -> None:
        """The operator's receipt beside the tenant's evidence: keys, ticket and evidence contradict each other."""
        invented, honest = self.by_the_operator(mine, rooted=True), saved_answer(mine)
        for offer in (replace(invented.offer, evidence=honest.offer.evidence), honest.offer):
            mixed = replace(invented, offer=offer, nonce=honest.nonce)
            with pytest.raises(BulkheadError):
                verify_saved(mixed, tenant=mine.tenant, anchors=mine.anchors())

    def test_without_a_root_the_invention_passes(self, mine: World) -> None:
        """Why nothing is claimed for a tenant without a root: the same receipt verifies under its pins."""
        anchors = replace(mine.anchors(), tenant_roots=())
        assert verify_saved(self.by_the_operator(mine, rooted=False), tenant=mine.tenant, anchors=anchors).counted
