"""What a witness does, over our own and transparency-dev's omniwitness: both cosign our logs and refuse a fork."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp
import pytest

from audit.witness.client import WitnessClient
from bulkhead.errors import ConsistencyError, UnavailableError
from bulkhead.transparency.checkpoint import Checkpoint, sign_checkpoint
from bulkhead.transparency.cosignature import open_cosigned
from bulkhead.transparency.merkle import Frontier, consistency_proof, leaf_hash, tree_root
from bulkhead.transparency.note import NoteSigner
from tests.simulator.witnesses import WITNESSES, pinned

ORIGIN = "audit.bulkhead.test/platform/1"
SIGNER = NoteSigner.from_seed(ORIGIN, bytes(range(32)))
NAME = "witness.test/w1"
LEAVES = [leaf_hash(b"%d" % number) for number in range(40)]
FORKED = [*LEAVES[:4], *(leaf_hash(b"other %d" % number) for number in range(36))]


def note(size: int, leaves: Sequence[bytes] = LEAVES, signer: NoteSigner = SIGNER) -> str:
    root = Frontier().extend(leaves[:size]).root()
    return sign_checkpoint(Checkpoint(signer.verifier.name, size, root), signer)


def proofs(leaves: Sequence[bytes] = LEAVES):
    async def consistency(old: int, new: int) -> tuple[bytes, ...]:
        return consistency_proof(old, new, lambda level, at: tree_root(leaves[at << level : (at + 1) << level]))

    return consistency


@pytest.fixture(params=WITNESSES)
async def witness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[WitnessClient]:
    async with WITNESSES[request.param](NAME, tmp_path / "witness", [SIGNER.vkey]) as url:
        yield WitnessClient(url, pinned(NAME), 5.0)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_a_growing_log_is_cosigned(witness, http):
    """First at any size, then as the log grows or stays: the cosignatures of both its keys make its quorum."""
    for size in (1, 7, 7, 8, 40):
        lines = await witness.cosign(http, note(size), proofs())
        assert len(lines) == 2
        for key in pinned(NAME):
            found = open_cosigned(
                note(size) + "".join(lines), vkey=SIGNER.vkey, origin=ORIGIN, witnesses=[key], quorum=1
            )
            assert found.checkpoint.size == size


async def test_an_unknown_size_is_learnt(witness, http):
    """One who does not know what the witness has is told, and proves from there."""
    await witness.cosign(http, note(9), proofs())
    witness.size = 0
    assert await witness.cosign(http, note(30), proofs())
    witness.size = 9
    assert await witness.cosign(http, note(31), proofs())


@pytest.mark.parametrize("size", [12, 20])
async def test_a_fork_is_refused(witness, http, size):
    """Another history, at the same size or behind a proof of its own, is not cosigned: it is called a fork."""
    await witness.cosign(http, note(12), proofs())
    with pytest.raises(ConsistencyError):
        await witness.cosign(http, note(size, FORKED), proofs(FORKED))
    assert await witness.cosign(http, note(13), proofs())


async def test_a_rewind_is_refused(witness, http):
    """A smaller tree than the one that was cosigned is told apart from a witness that is down."""
    await witness.cosign(http, note(12), proofs())
    with pytest.raises(ConsistencyError, match="records are gone"):
        await witness.cosign(http, note(11), proofs())
    witness.size = 0
    with pytest.raises(ConsistencyError, match="records are gone"):
        await witness.cosign(http, note(11), proofs())


async def test_another_key_is_refused(witness, http):
    """A checkpoint that the log's key did not sign is not cosigned, nor one of a log that is not known."""
    for signer in (NoteSigner.from_seed(ORIGIN, bytes(32)), NoteSigner.from_seed("audit.test/x/1", bytes(32))):
        with pytest.raises(UnavailableError, match="did not cosign"):
            await witness.cosign(http, note(3, signer=signer), proofs())


async def test_a_witness_that_is_away(http):
    """A witness that does not answer is unavailable, in bounded time."""
    with pytest.raises(UnavailableError, match="cannot be reached"):
        await WitnessClient("http://127.0.0.1:9", pinned(NAME), 1.0).cosign(http, note(3), proofs())
