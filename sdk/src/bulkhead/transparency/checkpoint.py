"""C2SP checkpoints: a log's origin, size and root as the text of a signed note.

Specification: https://c2sp.org/tlog-checkpoint. Text: ``origin LF size LF base64(root) LF`` and optional further
lines, which are carried and given no meaning.
"""

from dataclasses import dataclass
from typing import Final

from bulkhead.encoding import b64decode, b64encode
from bulkhead.errors import CheckpointError, MalformedRequestError
from bulkhead.transparency.merkle import EMPTY_ROOT, HASH_BYTES, MAX_TREE_SIZE
from bulkhead.transparency.note import NoteSigner, NoteVerifier, open_note, sign_note

__all__ = ["Checkpoint", "open_checkpoint", "sign_checkpoint"]

_MAX_SIZE_DIGITS: Final = 19  # decimal digits of 2^63 - 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint says.

    Attributes:
        origin: the log's name, also its key's name.
        size: leaves in the tree.
        root: RFC 6962 root hash, 32 bytes.
        extensions: further lines of the text, without newlines.
    """

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the note text that signatures stand on."""
        return "".join(f"{line}\n" for line in (self.origin, self.size, b64encode(self.root), *self.extensions))

    @classmethod
    def parse(cls, text: str) -> "Checkpoint":
        """Parse note text; nothing is known yet about who wrote it.

        Raises:
            CheckpointError: malformed, or a text that this class would write differently.
        """
        lines = text.removesuffix("\n").split("\n")
        if len(lines) < 3 or not text.endswith("\n") or not all(lines):
            raise CheckpointError("a checkpoint has at least three lines and no empty one")
        origin, digits, encoded, *extensions = lines
        if len(digits) > _MAX_SIZE_DIGITS or not digits.isascii() or not digits.isdigit() or str(int(digits)) != digits:
            raise CheckpointError("the checkpoint's size is not a decimal number")
        try:
            root = b64decode(encoded, what="the checkpoint's root")
        except MalformedRequestError as error:
            raise CheckpointError(error.message) from error
        size = int(digits)
        if size > MAX_TREE_SIZE or len(root) != HASH_BYTES:
            raise CheckpointError("the checkpoint's size or root is out of range")
        if size == 0 and root != EMPTY_ROOT:
            raise CheckpointError("the checkpoint gives an empty tree another root than the empty one")
        return cls(origin, size, root, tuple(extensions))


def sign_checkpoint(checkpoint: Checkpoint, signer: NoteSigner) -> str:
    """Return the checkpoint as a signed note.

    Raises:
        CheckpointError: the origin is not the signer's name.
    """
    if checkpoint.origin != signer.verifier.name:
        raise CheckpointError("a checkpoint is signed by its own origin's key")
    return sign_note(checkpoint.text(), [signer])


def open_checkpoint(note: str, *, vkey: str, origin: str) -> Checkpoint:
    """Verify a checkpoint against a pinned key.

    1. The note carries a valid signature by ``vkey`` (cosignatures by others are ignored).
    2. Its origin is exactly ``origin``.

    Freshness and consistency with earlier checkpoints stay with the caller.

    Raises:
        CheckpointError: either fails, or the note is malformed.
    """
    verifier = NoteVerifier.from_vkey(vkey)
    checkpoint = Checkpoint.parse(open_note(note, [verifier]).text)  # 1
    if checkpoint.origin != origin or verifier.name != origin:  # 2
        raise CheckpointError("the checkpoint is of another log")
    return checkpoint
