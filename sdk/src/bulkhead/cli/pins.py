"""Keys and checkpoints given on a command line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bulkhead.errors import CheckpointError, ConfigError, InvalidRequestError

if TYPE_CHECKING:
    from bulkhead.transparency.cosignature import Witness

__all__ = ["Pins", "read_note"]

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Pins:
    """Log keys, and the witnesses of whom a quorum must have cosigned."""

    vkeys: tuple[str, ...]
    witnesses: "tuple[Witness, ...]"
    quorum: int

    @classmethod
    def of(cls, vkeys: Sequence[str], witnesses: Sequence[str], quorum: int | None) -> "Pins":
        """Return pins from options; without a number every named witness is needed.

        Raises:
            ConfigError: a key is none, or the quorum is above the number of witnesses.
        """
        from bulkhead.transparency.cosignature import Witness
        from bulkhead.transparency.note import NoteVerifier

        for vkey in vkeys:
            _read("log key", vkey, NoteVerifier.from_vkey)
        keys = tuple(_read("witness", vkey, Witness.from_vkey) for vkey in witnesses)
        names = len({key.name for key in keys})
        if quorum is not None and quorum > names:
            raise ConfigError("the quorum is above the number of witnesses")
        return cls(tuple(vkeys), keys, names if quorum is None else quorum)


def read_note(path: Path) -> str:
    """Return the signed note that a file holds; its signature is not checked yet.

    Raises:
        InvalidRequestError: the file cannot be read.
        CheckpointError: it holds no signed note.
    """
    from bulkhead.transparency.note import split_note

    try:
        note = path.read_text("utf-8")
        split_note(note)
    except OSError as error:
        raise InvalidRequestError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"cannot read {path}: it is not text") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path} is no checkpoint: {error.message}") from error
    return note


def _read(what: str, vkey: str, parse: Callable[[str], Key]) -> Key:
    try:
        return parse(vkey)
    except CheckpointError as error:
        raise ConfigError(f"{what} {vkey!r}: {error.message}; expected name+8 hexadecimal digits+base64") from error
