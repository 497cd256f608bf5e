"""C2SP tlog-witness: the request that asks a witness for its cosignature, and what its answers mean. No I/O.

Specification: https://c2sp.org/tlog-witness. The request is ``old N``, the consistency proof from N to the checkpoint's
size (one base64 hash a line), an empty line, the checkpoint. Answers: 200 with signature lines; 409 with the size that
the witness has (``text/x.tlog.size``), or because it has another root of that very size; 422 when the proof does not
lead there; 400, 403, 404 for what cannot be looked at.
"""

from dataclasses import dataclass
from typing import Final

from bulkhead.encoding import b64decode, b64encode
from bulkhead.errors import BulkheadError, ConsistencyError, MalformedRequestError, UnavailableError
from bulkhead.transparency.checkpoint import Checkpoint
from bulkhead.transparency.cosignature import Witness
from bulkhead.transparency.merkle import HASH_BYTES, MAX_TREE_SIZE
from bulkhead.transparency.note import split_note

__all__ = ["MAX_REQUEST_BYTES", "SIZE_TYPE", "AddCheckpoint", "WitnessSize", "read_answer"]

MAX_PROOF_LINES: Final = 63  # the specification's limit
MAX_REQUEST_BYTES: Final = 128 * 1024  # the proof, and a checkpoint with sixteen post-quantum signatures
SIZE_TYPE: Final = "text/x.tlog.size"
_DIGITS: Final = 19
_WHY: Final = {
    400: "malformed, or of a smaller tree than before",
    403: "signed by a key that it does not pin",
    404: "of a log that it does not know",
}


@dataclass(frozen=True, slots=True)
class AddCheckpoint:
    """The request; nothing in it is verified.

    Attributes:
        old_size: the size that the proof starts from.
        proof: consistency proof.
        note: the checkpoint.
    """

    old_size: int
    proof: tuple[bytes, ...]
    note: str

    def encode(self) -> bytes:
        """Return the request's body."""
        return "\n".join([f"old {self.old_size}", *map(b64encode, self.proof), "", self.note]).encode("utf-8")

    @classmethod
    def parse(cls, body: bytes) -> "AddCheckpoint":
        """Parse a body.

        Raises:
            MalformedRequestError: it is none, or above its bounds.
        """
        try:
            head, separator, note = body.decode("utf-8").partition("\n\n")
        except UnicodeDecodeError as error:
            raise MalformedRequestError("add-checkpoint: not UTF-8") from error
        first, *lines = head.split("\n")
        if not separator or not first.startswith("old ") or len(lines) > MAX_PROOF_LINES:
            raise MalformedRequestError(
                "add-checkpoint: expected `old N`, at most 63 hashes, an empty line, a checkpoint"
            )
        proof = tuple(b64decode(line, what="add-checkpoint: a hash") for line in lines)
        if any(len(node) != HASH_BYTES for node in proof):
            raise MalformedRequestError("add-checkpoint: a hash is 32 bytes")
        return cls(_size(first.removeprefix("old ")), proof, note)


@dataclass(frozen=True, slots=True)
class WitnessSize:
    """The witness cosigned last at this size: ask again with a proof from there."""

    size: int


def read_answer(
    status: int, content_type: str, body: bytes, *, request: AddCheckpoint, witnesses: tuple[Witness, ...]
) -> "tuple[str, ...] | WitnessSize":
    """Read a witness's answer: its cosignature lines, verified, or the size that it knows.

    Args:
        status: HTTP status.
        content_type: without parameters.
        body: at most :data:`MAX_REQUEST_BYTES`.
        request: what was asked.
        witnesses: the pinned keys of this witness; lines of others are left out.

    Raises:
        ConsistencyError: the witness has seen another history of the log: a fork or a rewind.
        CheckpointError: a line of a pinned key does not hold.
        UnavailableError: it did not cosign for another reason; the message says which.
    """
    text = body.decode("utf-8", "replace")
    origin, size = request.note.partition("\n")[0], Checkpoint.parse(split_note(request.note)[0]).size
    if status == 200:
        return _lines(request, text, witnesses)
    if status == 409 and content_type == SIZE_TYPE:
        try:
            known = _size(text.removesuffix("\n"))
        except BulkheadError as error:
            raise UnavailableError("the witness answered 409 without a size") from error
        if known != request.old_size:
            return WitnessSize(known)
    if status in {409, 422}:
        raise ConsistencyError(
            f"{origin}: a witness has cosigned another history than the one of this checkpoint (size {size}, proof "
            f"from {request.old_size}): a fork",
            details={"origin": origin, "size": str(size)},
        )
    why = _WHY.get(status, "not what it expected")
    raise UnavailableError(f"the witness did not cosign: status {status}, the checkpoint is {why}")


def _lines(request: AddCheckpoint, text: str, witnesses: tuple[Witness, ...]) -> tuple[str, ...]:
    signed, signatures = split_note(request.note + text)
    own = len(split_note(request.note)[1])
    known = {(witness.name, witness.key_id): witness for witness in witnesses}
    lines = text.removesuffix("\n").split("\n") if text else []
    found: list[str] = []
    for line, signature in zip(lines, signatures[own:], strict=True):
        witness = known.get((signature.name, signature.key_id))
        if witness is not None:
            witness.verify(signed, signature.data)
            found.append(f"{line}\n")
    if not found:
        raise UnavailableError("the witness answered without a cosignature of its pinned key")
    return tuple(found)


def _size(digits: str) -> int:
    if not digits.isascii() or not digits.isdigit() or len(digits) > _DIGITS or str(int(digits)) != digits:
        raise MalformedRequestError("add-checkpoint: the old size is not a decimal number")
    if int(digits) > MAX_TREE_SIZE:
        raise MalformedRequestError("add-checkpoint: the old size is out of range")
    return int(digits)
