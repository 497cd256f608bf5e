"""C2SP tlog-proof files: a record's inclusion proof with the checkpoint, and what else proves it, as one text.

Specification: https://c2sp.org/tlog-proof. The ``extra`` line of our files is RFC 8785 JSON::

    {"leaf": "…", "round": {"path": ["…"], "proof": "…", "salt": "…", "slot": 0}, "v": 1}

``leaf`` is the record itself, whose hash the proof starts from. ``round``, where there is one, ties the proof's
checkpoint to a cosigned checkpoint of the platform's log: ``proof`` is the round's own tlog-proof there (its ``extra``
holds the round's leaf), the rest is the tenant's path in the round. Nothing in ``extra`` is trusted: it is verified.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from bulkhead.encoding import Json, b64decode, b64encode, canonical_json, parse_canonical
from bulkhead.errors import BulkheadError, ConsistencyError, MalformedRequestError, ProofError
from bulkhead.transparency.cosignature import Witness, open_cosigned
from bulkhead.transparency.merkle import HASH_BYTES, MAX_PROOF_HASHES, MAX_TREE_SIZE
from bulkhead.transparency.note import MAX_NOTE_BYTES, NoteVerifier, split_note
from bulkhead.transparency.receipt import AuditReceipt, VerifiedLeaf, verify_receipt
from bulkhead.transparency.rounds import RoundPath, VerifiedRound, verify_round_path

__all__ = [
    "ProvenRecord",
    "RecordProof",
    "TlogProof",
    "read_record_proof",
    "read_round_member",
    "round_member",
    "verify_record_proof",
    "write_record_proof",
]

_HEADER: Final = "c2sp.org/tlog-proof@v1"
_MAX_EXTRA_BYTES: Final = 4 * MAX_NOTE_BYTES
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class TlogProof:
    """The file's parts; nothing in it is verified yet.

    Attributes:
        index: the entry's place, from 0.
        proof: inclusion proof, the leaf's sibling first.
        checkpoint: signed note.
        extra: bytes that the format gives no meaning.
    """

    index: int
    proof: tuple[bytes, ...]
    checkpoint: str
    extra: bytes = b""

    def encode(self) -> str:
        """Return the file's text."""
        extra = [f"extra {b64encode(self.extra)}"] if self.extra else []
        lines = [_HEADER, *extra, f"index {self.index}", *(b64encode(node) for node in self.proof), ""]
        return "\n".join([*lines, self.checkpoint])

    @classmethod
    def parse(cls, text: str) -> "TlogProof":
        """Parse a file.

        Raises:
            ProofError: it is malformed.
        """
        head, separator, checkpoint = text.partition("\n\n")
        lines = head.split("\n")
        if not separator or lines.pop(0) != _HEADER or len(lines) > MAX_PROOF_HASHES + 2:
            raise ProofError("not a tlog-proof of version 1")
        extra = b""
        if lines and lines[0].startswith("extra "):
            extra = _base64(lines.pop(0).removeprefix("extra "), "extra")
        digits = lines.pop(0).removeprefix("index ") if lines and lines[0].startswith("index ") else ""
        if not digits.isascii() or not digits.isdigit() or len(digits) > 19 or str(int(digits)) != digits:
            raise ProofError("the tlog-proof does not name an index")
        proof = tuple(_base64(line, "hash") for line in lines)
        if int(digits) >= MAX_TREE_SIZE or any(len(node) != HASH_BYTES for node in proof):
            raise ProofError("the tlog-proof's index or a hash of it is out of range")
        split_note(checkpoint)
        return cls(int(digits), proof, checkpoint, extra)


@dataclass(frozen=True, slots=True)
class RecordProof:
    """A record's proof file as read; nothing in it is verified yet."""

    receipt: AuditReceipt
    round: RoundPath | None


@dataclass(frozen=True, slots=True)
class ProvenRecord:
    """A record that its log committed to, and what else is known of that log. Made by :func:`verify_record_proof`.

    Attributes:
        leaf: the record.
        round: the platform's round that commits to the log's head, if the file has one and a platform key is pinned.
        witnesses: who cosigned the platform's checkpoint over that round, with the time of each.
    """

    leaf: VerifiedLeaf
    round: VerifiedRound | None
    witnesses: tuple[tuple[str, int], ...]


def write_record_proof(receipt: AuditReceipt, path: RoundPath | None = None) -> str:
    """Return a record's proof file.

    Args:
        receipt: the record, proven in the tree that ``path`` commits to (if one is given).
        path: the round that commits to that tree.

    Raises:
        ConsistencyError: receipt and path are of different trees.
    """
    extra: dict[str, Json] = {"v": _VERSION, "leaf": receipt.leaf.decode("utf-8")}
    if path is not None:
        if not receipt.checkpoint.startswith(f"{path.checkpoint_text}\n"):
            raise ConsistencyError("the round commits to another tree than the one that the record is proven in")
        extra["round"] = round_member(path)
    return TlogProof(receipt.index, receipt.proof, receipt.checkpoint, canonical_json(extra)).encode()


def read_record_proof(text: str) -> RecordProof:
    """Read a record's proof file.

    Raises:
        ProofError: it is malformed, or its ``extra`` is not of this format.
    """
    outer, leaf, member = _read(text)
    receipt = AuditReceipt(leaf, outer.index, outer.proof, outer.checkpoint)
    if member is None:
        return RecordProof(receipt, None)
    return RecordProof(receipt, read_round_member(member, split_note(outer.checkpoint)[0]))


def round_member(path: RoundPath) -> dict[str, Json]:
    """Return a path into a round as JSON, without the checkpoint that it is about."""
    return {
        "slot": path.slot,
        "salt": b64encode(path.salt),
        "path": [b64encode(node) for node in path.path],
        "proof": write_record_proof(path.receipt),
    }


def read_round_member(member: Json, checkpoint_text: str) -> RoundPath:
    """Read what :func:`round_member` wrote, for a tenant's checkpoint.

    Raises:
        ProofError: it is malformed.
    """
    match member:
        case {"slot": int(slot), "salt": str(salt), "path": list(path), "proof": str(proof), **rest} if not rest:
            inner, leaf, nested = _read(proof)
        case _:
            raise ProofError("the path into a round is malformed")
    if nested is not None or len(path) > MAX_PROOF_HASHES or not all(isinstance(node, str) for node in path):
        raise ProofError("the path into a round is malformed")
    return RoundPath(
        slot=slot,
        salt=_base64(salt, "salt"),
        checkpoint_text=checkpoint_text,
        path=tuple(_base64(str(node), "hash") for node in path),
        receipt=AuditReceipt(leaf, inner.index, inner.proof, inner.checkpoint),
    )


def verify_record_proof(
    text: str,
    *,
    vkey: str,
    platform_vkey: str | None = None,
    slot: int | None = None,
    witnesses: Collection[Witness] = (),
    quorum: int = 0,
) -> ProvenRecord:
    """Verify a record's proof file offline.

    1. The record is in its log under the pinned key ``vkey`` (:func:`verify_receipt`).
    2. With a ``platform_vkey``: a round of the platform's log commits to exactly that tree, in the log's slot
       (``slot``, where the caller knows it from leaf 0 of the log).
    3. With a ``quorum``: that many pinned witnesses cosigned the platform's checkpoint over the round.

    Raises:
        ProofError: any of these fails, or 2 or 3 is asked for and the file has no round.
    """
    proof = read_record_proof(text)
    leaf = verify_receipt(proof.receipt, vkey=vkey, origin=NoteVerifier.from_vkey(vkey).name)  # 1
    if platform_vkey is None:
        if quorum:
            raise ProofError("witnesses cosign the platform's log: its key is needed")
        return ProvenRecord(leaf, None, ())
    if proof.round is None:
        raise ProofError("the proof does not reach the platform's log: get it again in a few seconds")
    platform = NoteVerifier.from_vkey(platform_vkey).name
    verified = verify_round_path(
        proof.round,
        slot=proof.round.slot if slot is None else slot,
        origin=NoteVerifier.from_vkey(vkey).name,
        platform_vkey=platform_vkey,
        platform_origin=platform,
    )  # 2
    if (verified.checkpoint.size, verified.checkpoint.root) != (leaf.size, leaf.root):
        raise ConsistencyError("the round commits to another tree than the one that the record is proven in")
    cosigned = open_cosigned(
        proof.round.receipt.checkpoint, vkey=platform_vkey, origin=platform, witnesses=witnesses, quorum=quorum
    )  # 3
    return ProvenRecord(leaf, verified, cosigned.witnesses)


def _read(text: str) -> tuple[TlogProof, bytes, Json]:
    """Return a file's parts, its leaf and its round's member."""
    parsed = TlogProof.parse(text)
    try:
        extra = parse_canonical(parsed.extra, max_bytes=_MAX_EXTRA_BYTES, what="the tlog-proof's extra data")
    except BulkheadError as error:
        raise ProofError(error.message) from error
    leaf = extra.get("leaf")
    if extra.get("v") != _VERSION or not isinstance(leaf, str) or not extra.keys() <= {"v", "leaf", "round"}:
        raise ProofError("the tlog-proof's extra data is not a Bulkhead record of version 1")
    try:
        return parsed, leaf.encode("utf-8"), extra.get("round")
    except UnicodeEncodeError as error:
        raise ProofError("the tlog-proof's record is not UTF-8") from error


def _base64(text: str, what: str) -> bytes:
    try:
        return b64decode(text, what=f"the tlog-proof's {what}")
    except MalformedRequestError as error:
        raise ProofError(error.message) from error
