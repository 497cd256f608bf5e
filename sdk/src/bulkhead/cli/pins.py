"""Keys given on a command line."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bulkhead.errors import ConfigError

if TYPE_CHECKING:
    from bulkhead.transparency.cosignature import Witness

__all__ = ["Pins"]


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
            CheckpointError: a key is none.
            ConfigError: the quorum is above the number of witnesses.
        """
        from bulkhead.transparency.cosignature import Witness

        keys = tuple(map(Witness.from_vkey, witnesses))
        names = len({key.name for key in keys})
        if quorum is not None and quorum > names:
            raise ConfigError("the quorum is above the number of witnesses")
        return cls(tuple(vkeys), keys, names if quorum is None else quorum)
