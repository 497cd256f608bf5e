"""The audit lease on both sides: ends in time, is never prolonged by clocks, joins replicas."""

import pytest

from bulkhead.errors import AuditLeaseError
from data_plane.session.lease import LEASE_S, AgentLease, WorkerLease
from data_plane.session.messages import LeaseGrant, NamedEvidence


class Clocks:
    """A wall clock and a monotonic one that tests set."""

    def __init__(self) -> None:
        self.wall = 1_900_000_000.0
        self.monotonic = 100.0

    def pass_s(self, seconds: float) -> None:
        """Let time pass."""
        self.wall += seconds
        self.monotonic += seconds


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def worker(clocks: Clocks) -> WorkerLease:
    return WorkerLease(wall_s=lambda: clocks.wall, monotonic_s=lambda: clocks.monotonic)


def agent(clocks: Clocks) -> AgentLease:
    return AgentLease(wall_s=lambda: clocks.wall, monotonic_s=lambda: clocks.monotonic)


def grant(
    clocks: Clocks,
    *,
    seconds: float = 30.0,
    unacknowledged: int = 0,
    evidence: tuple[NamedEvidence, ...] = (),
    **changes: frozenset[str],
) -> LeaseGrant:
    return LeaseGrant(
        valid_until_ms=int((clocks.wall + seconds) * 1000),
        revoked_sessions=changes.get("revoked", frozenset()),
        unacknowledged_receipts=unacknowledged,
        evidence=evidence,
    )


def holds(lease: WorkerLease) -> bool:
    try:
        lease.check()
    except AuditLeaseError:
        return False
    return True


def test_without_a_grant_nothing_begins(clocks: Clocks) -> None:
    """A worker starts without a lease."""
    assert not holds(worker(clocks))


def test_a_lease_ends_in_time(clocks: Clocks) -> None:
    """Requests may begin until the grant's end and not after it."""
    lease = worker(clocks)
    lease.grant(grant(clocks, seconds=10))
    clocks.pass_s(9.9)
    assert holds(lease)
    clocks.pass_s(0.2)
    assert not holds(lease)


def test_no_grant_is_longer_than_thirty_seconds(clocks: Clocks) -> None:
    """A control plane whose clock runs ahead grants 30 s and no more."""
    lease = worker(clocks)
    lease.grant(grant(clocks, seconds=3600))
    clocks.pass_s(LEASE_S + 0.1)
    assert not holds(lease)
    joined = agent(clocks)
    joined.grant("a", valid_until_ms=int((clocks.wall + 3600) * 1000), revoked=frozenset())
    assert joined.remaining_s == pytest.approx(LEASE_S)


def test_setting_the_clock_back_prolongs_nothing(clocks: Clocks) -> None:
    """The time since a grant is counted on the monotonic clock."""
    lease = worker(clocks)
    lease.grant(grant(clocks, seconds=10))
    clocks.pass_s(11)
    clocks.wall -= 3600
    assert not holds(lease)


def test_a_grant_that_has_ended_on_arrival_grants_nothing(clocks: Clocks) -> None:
    """Old grants are not made young by being late."""
    lease = worker(clocks)
    lease.grant(grant(clocks, seconds=-1))
    assert not holds(lease)


@pytest.mark.parametrize(("unacknowledged", "expected"), [(1023, True), (1024, False)])
def test_too_many_waiting_receipts_stop_requests(clocks: Clocks, unacknowledged: int, *, expected: bool) -> None:
    """At 1,024 unacknowledged receipts nothing begins, however fresh the lease."""
    lease = worker(clocks)
    lease.grant(grant(clocks, unacknowledged=unacknowledged))
    assert holds(lease) is expected


def test_evidence_is_known_while_granted(clocks: Clocks) -> None:
    """Tickets may name evidence that any grant named, until it ends."""
    lease = worker(clocks)
    assert not lease.knows_evidence(bytes(32))
    lease.grant(grant(clocks, evidence=(NamedEvidence(digest=bytes(32), not_after_s=int(clocks.wall) + 100),)))
    assert lease.knows_evidence(bytes(32))
    lease.grant(grant(clocks))
    assert lease.knows_evidence(bytes(32))
    clocks.wall += 100
    assert not lease.knows_evidence(bytes(32))
    lease.grant(grant(clocks))
    assert not lease.knows_evidence(bytes(32))


def test_the_agent_joins_its_replicas(clocks: Clocks) -> None:
    """The longest time counts, and every revocation of a grant that has not ended."""
    lease = agent(clocks)
    assert lease.remaining_s <= 0
    lease.grant("a", valid_until_ms=int((clocks.wall + 5) * 1000), revoked=frozenset({"s1"}))
    lease.grant("b", valid_until_ms=int((clocks.wall + 20) * 1000), revoked=frozenset({"s2"}))
    assert lease.remaining_s == pytest.approx(20)
    assert lease.revoked == {"s1", "s2"}
    clocks.pass_s(6)
    assert lease.revoked == {"s2"}
    clocks.pass_s(20)
    assert lease.remaining_s <= 0
    assert lease.revoked == frozenset()


def test_a_revocation_list_beyond_the_bound_grants_nothing(clocks: Clocks) -> None:
    """Rather than forget a revocation, the lease ends."""
    lease = agent(clocks)
    lease.grant(
        "a",
        valid_until_ms=int((clocks.wall + 30) * 1000),
        revoked=frozenset(str(number) for number in range(65_537)),
    )
    assert lease.remaining_s <= 0
