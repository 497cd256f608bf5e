"""Rounds of the platform's log: each commits to one head of every tenant's log, and shows a tenant its own only.

A round's leaf is a record with action ``log.round`` and ``data`` {round, slots, root}. The root is RFC 6962's over one
leaf per slot, ``lp(round) ‖ lp(slot) ‖ lp(salt) ‖ lp(checkpoint text)`` with round and slot as 8 bytes big-endian. A
tenant's slot stands in leaf 0 of its log. The salt (32 bytes, secret, new for each round and slot) hides the
neighbours' heads: a path's hashes tell nothing about what they were made from.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from bulkhead.encoding import MAX_SAFE_INTEGER, lp_join
from bulkhead.errors import ConsistencyError, InclusionError, ProofError, RecordError
from bulkhead.transparency.checkpoint import Checkpoint, open_checkpoint
from bulkhead.transparency.cosignature import CosignedCheckpoint, Witness, open_cosigned
from bulkhead.transparency.leaf import LeafFields
from bulkhead.transparency.merkle import Frontier, leaf_hash, verify_consistency, verify_inclusion
from bulkhead.transparency.note import NoteVerifier
from bulkhead.transparency.receipt import AuditReceipt, verify_record

__all__ = [
    "ROUND_ACTION",
    "SALT_BYTES",
    "RoundPage",
    "RoundPath",
    "RoundsSeen",
    "VerifiedRound",
    "next_round",
    "round_leaf",
    "verify_round_page",
    "verify_round_path",
]

ROUND_ACTION: Final = "log.round"
SALT_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class RoundPath:
    """What ties a tenant's log to a round of the platform's log; nothing in it is verified yet.

    Attributes:
        slot: the tenant's slot.
        salt: 32 bytes.
        checkpoint_text: the text (unsigned) of the tenant's checkpoint that the round commits to.
        path: from the slot's leaf to the round's root, the leaf's sibling first.
        receipt: the round's record in the platform's log.
    """

    slot: int
    salt: bytes
    checkpoint_text: str
    path: tuple[bytes, ...]
    receipt: AuditReceipt


@dataclass(frozen=True, slots=True)
class RoundPage:
    """Paths into successive rounds, under one checkpoint of the platform's log; nothing in it is verified yet.

    Attributes:
        checkpoint: of the platform's log, cosigned where witnesses are required; the same in each path.
        extension: consistency proof to it from the size of the platform's log that was named in the question.
        paths: one for each round, in order.
        heads: for each path, the consistency proof from its head to the tenant's tree that was named in the question;
            empty where the head is that of the path before.
    """

    checkpoint: str
    extension: tuple[bytes, ...]
    paths: tuple[RoundPath, ...]
    heads: tuple[tuple[bytes, ...], ...]


@dataclass(frozen=True, slots=True)
class RoundsSeen:
    """How far somebody has followed the rounds over a log.

    Attributes:
        round: the last one, 0 before the first.
        size: of the log in it; 0 if that is not known.
        root: of that tree.
        platform_size: of the platform's log that was seen with it; 0: none was.
        platform_root: of that tree.
    """

    round: int
    size: int
    root: bytes
    platform_size: int
    platform_root: bytes


@dataclass(frozen=True, slots=True)
class VerifiedRound:
    """A round that commits to exactly one head of the tenant's log. Made by the verifiers here only.

    Attributes:
        round: its number.
        ts_us: when the platform recorded it, by its own clock.
        checkpoint: the tenant's head in it.
        platform_size: tree size of the platform's log that was verified.
    """

    round: int
    ts_us: int
    checkpoint: Checkpoint
    platform_size: int


def round_leaf(*, round_number: int, slot: int, salt: bytes, checkpoint_text: str) -> bytes:
    """Return the leaf (not yet hashed) of one slot of a round."""
    return lp_join(round_number.to_bytes(8, "big"), slot.to_bytes(8, "big"), salt, checkpoint_text.encode("utf-8"))


def verify_round_path(
    path: RoundPath, *, slot: int, origin: str, platform_vkey: str, platform_origin: str
) -> VerifiedRound:
    """Verify that a round of the platform's log commits to a head of the tenant's log ``origin``.

    1. The round's record is in the platform's log under its pinned key, and is a round.
    2. The tenant's checkpoint is of ``origin`` and stands in ``slot`` of the round.

    With the caller: that ``slot`` is the one in leaf 0 of its log, and that the checkpoint is consistent with those
    it has seen.

    Raises:
        CheckpointError: the platform's checkpoint does not hold, or the tenant's is of another log.
        InclusionError: the record or the slot is not where it should be.
        RecordError: the platform's record is not a round.
    """
    return _verify_path(
        path, slot, origin, open_checkpoint(path.receipt.checkpoint, vkey=platform_vkey, origin=platform_origin)
    )


def _verify_path(path: RoundPath, slot: int, origin: str, platform: Checkpoint) -> VerifiedRound:
    """Verify a path, the note of whose platform checkpoint has been opened."""
    verified = verify_record(path.receipt, platform)  # 1
    data = verified.fields.data
    number, slots, root_hex = data.get("round"), data.get("slots"), data.get("root")
    if (
        verified.fields.action != ROUND_ACTION
        or type(number) is not int
        or not 0 <= number <= MAX_SAFE_INTEGER
        or type(slots) is not int
        or not isinstance(root_hex, str)
        or len(root_hex) != 64
    ):
        raise RecordError("the platform's record is not a round")
    try:
        root = bytes.fromhex(root_hex)
    except ValueError as error:
        raise RecordError("the round's root is not a hash") from error
    checkpoint = Checkpoint.parse(path.checkpoint_text)  # 2
    if checkpoint.origin != origin or path.slot != slot:
        raise InclusionError("the round's path is of another log")
    if len(path.salt) != SALT_BYTES:
        raise InclusionError(f"a round's salt is {SALT_BYTES} bytes")
    leaf = round_leaf(round_number=number, slot=slot, salt=path.salt, checkpoint_text=path.checkpoint_text)
    verify_inclusion(index=slot, size=slots, leaf=leaf_hash(leaf), proof=path.path, root=root)
    return VerifiedRound(number, verified.fields.ts_us, checkpoint, verified.size)


def verify_round_page(
    page: RoundPage,
    *,
    seen: RoundsSeen,
    own: Frontier,
    slot: int,
    origin: str,
    platform_vkey: str,
    witnesses: Collection[Witness] = (),
    quorum: int = 0,
) -> tuple[CosignedCheckpoint, tuple[VerifiedRound, ...]]:
    """Verify that the rounds behind those that were seen, without a gap, commit to heads of one history of the log.

    1. The checkpoint is the platform's, under its pinned key, cosigned by ``quorum`` of the witnesses, and extends
       what was seen of its log.
    2. The rounds have the numbers that come next, one by one.
    3. Each commits to a head of the log ``origin``, in the tree of that very checkpoint, whose signatures are verified
       once (:func:`verify_round_path`).
    4. No head is smaller than in the round before, and each is of the history that ``own`` is of.

    With the caller: that ``own`` is built from leaves that it verified, and that ``slot`` is the one in leaf 0.

    Raises:
        ConsistencyError: 2 or 4 fails, or the checkpoint does not extend what was seen; names the round.
        ProofError: the page is malformed, its checkpoint does not hold, or as :func:`verify_round_path`.
    """
    name = NoteVerifier.from_vkey(platform_vkey).name
    cosigned = open_cosigned(page.checkpoint, vkey=platform_vkey, origin=name, witnesses=witnesses, quorum=quorum)  # 1
    platform = cosigned.checkpoint
    if platform.size < seen.platform_size:
        raise _rewind(f"a platform log of {platform.size} records was shown, one of {seen.platform_size} before")
    if seen.platform_size:
        _extends(
            "the platform's log", Checkpoint(name, seen.platform_size, seen.platform_root), platform, page.extension
        )
    if not page.paths or len(page.paths) != len(page.heads):
        raise ProofError("a page of rounds holds at least one, each with its proof")
    found: list[VerifiedRound] = []
    number, head = seen.round, Checkpoint(origin, seen.size, seen.root)
    for path, proof in zip(page.paths, page.heads, strict=True):
        if path.receipt.checkpoint != page.checkpoint:
            raise ProofError("a path of the page is under another checkpoint")
        number += 1
        verified = _verify_path(path, slot, origin, platform)  # 3
        if verified.round != number:  # 2
            raise ConsistencyError(
                f"round {number} is missing: round {verified.round} was shown in its place", details={"kind": "gap"}
            )
        _follows(verified, head, own, proof)  # 4
        head = verified.checkpoint
        found.append(verified)
    return cosigned, tuple(found)


def next_round(fields: LeafFields, before: int) -> int:
    """Return the number of the newest round in the platform's log, after its next record.

    A monitor sees one record of each number; that there is no second one is seen by whoever reads the platform's log.

    Args:
        fields: the record.
        before: the number before it; 0 if no round came before.

    Raises:
        RecordError: the record is a round, and not the next one.
    """
    if fields.action != ROUND_ACTION:
        return before
    number = fields.data.get("round")
    if type(number) is not int or number < 1 or before not in (0, number - 1):
        raise RecordError(f"it is round {number}, and comes after round {before}", details={"record": fields.record_id})
    return number


def _follows(verified: VerifiedRound, before: Checkpoint, own: Frontier, proof: tuple[bytes, ...]) -> None:
    """Check that a round's head is of the own history, and not before that of the round before."""
    head, what = verified.checkpoint, f"round {verified.round}"
    if head.size < before.size:
        raise _rewind(f"{what} commits to {head.size} records of the log, the round before to {before.size}")
    if head.size == before.size and head.root == before.root:
        return
    if head.size > own.size:
        raise ConsistencyError(
            f"{what} commits to root {head.root.hex()} for size {head.size}; the log shows {own.size} records"
        )
    _extends(what, head, Checkpoint(head.origin, own.size, own.root()), proof)


def _extends(what: str, old: Checkpoint, new: Checkpoint, proof: tuple[bytes, ...]) -> None:
    try:
        verify_consistency(old_size=old.size, old_root=old.root, new_size=new.size, new_root=new.root, proof=proof)
    except ConsistencyError as error:
        raise ConsistencyError(
            f"a fork: {what} has root {old.root.hex()} for size {old.size}, which is not of the history with root "
            f"{new.root.hex()} for size {new.size}"
        ) from error


def _rewind(what: str) -> ConsistencyError:
    return ConsistencyError(f"a rewind: {what}", details={"kind": "rewind"})
