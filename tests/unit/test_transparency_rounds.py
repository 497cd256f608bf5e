import asyncio
import dataclasses

import pytest

from bulkhead.errors import CheckpointError, InclusionError, ProofError, RecordError
from bulkhead.transparency.rounds import verify_round_path
from tests.simulator.audit_world import OTHER, TENANT, decision, event, opened


@pytest.fixture
async def served(tmp_path):
    """A log with two tenants, after a round; the first tenant's path and everything needed to check it."""
    log = await opened(tmp_path, round_interval_s=0.05)
    mine = await log.ensure_log(TENANT)
    await log.ensure_log(OTHER)
    await log.append(mine.log_id, decision())
    path = None
    for _ in range(200):
        path = await log.round_path(mine.log_id)
        if path is not None and "\n2\n" in path.checkpoint_text:
            break
        await asyncio.sleep(0.02)
    platform = log.platform_log
    yield (
        path,
        {
            "slot": mine.slot,
            "origin": mine.origin,
            "platform_vkey": log.vkey(platform.log_id),
            "platform_origin": platform.origin,
        },
        log,
    )
    await log.close()


async def test_a_round_commits_to_the_tenants_head(served):
    """The path shows the tenant's own head, of the size it has, in the platform's log."""
    path, pinned, _ = served
    verified = verify_round_path(path, **pinned)
    assert (verified.checkpoint.origin, verified.checkpoint.size) == (pinned["origin"], 2)
    assert verified.round >= 1


async def test_a_changed_path_is_refused(served):
    """Another head, slot, salt, path or record is refused."""
    path, pinned, log = served
    rewound = path.checkpoint_text.replace("\n2\n", "\n1\n")
    not_a_round = await log.append(log.platform_log.log_id, event())
    other_leaf = await log.receipt(log.platform_log.log_id, not_a_round.index)
    for change, error in (
        ({"checkpoint_text": rewound}, InclusionError),
        ({"checkpoint_text": path.checkpoint_text.replace("audit.", "other.")}, InclusionError),
        ({"checkpoint_text": "nonsense"}, CheckpointError),
        ({"salt": bytes(32)}, InclusionError),
        ({"salt": b""}, InclusionError),
        ({"slot": 1}, InclusionError),
        ({"path": ()}, InclusionError),
        ({"receipt": other_leaf}, RecordError),
    ):
        with pytest.raises(error):
            verify_round_path(dataclasses.replace(path, **change), **pinned)
    for change in ({"slot": 1}, {"origin": "audit.test/t/x/1"}, {"platform_vkey": log.vkey(2)}):
        with pytest.raises(ProofError):
            verify_round_path(path, **(pinned | change))


async def test_nothing_about_neighbours_is_shown(served):
    """What a tenant receives holds neither the neighbour's origin nor its tenant id."""
    path, _, log = served
    neighbour = await log.ensure_log(OTHER)
    shown = repr(path)
    assert neighbour.origin not in shown
    assert OTHER not in shown


async def test_the_platforms_own_log_is_in_no_round(served):
    """Only tenants' logs have slots."""
    _, _, log = served
    assert await log.round_path(log.platform_log.log_id) is None
