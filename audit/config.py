"""Configuration of the audit log; the process that opens the log reads it from its own file."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bulkhead.errors import CheckpointError, ConfigError
from bulkhead.transparency.cosignature import Witness

__all__ = ["AuditConfig", "WitnessTarget"]

_DOMAIN: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,126}[a-z0-9])?")  # the origin stays below 255 bytes
_URL: Final = re.compile(r"https?://[!-~]{1,512}(?<!/)")
_MAX_BUSY_SHARE: Final = 0.35  # of the append's time-out: a commit that waits for the database twice still fits


@dataclass(frozen=True, slots=True)
class WitnessTarget:
    """A witness of the platform's log.

    Attributes:
        url: submission prefix, ``https://…`` (or ``http://…``: its answers are signed), without ``/add-checkpoint``.
        vkeys: its pinned keys (an Ed25519 and an ML-DSA-44 one, say), all under one name.
    """

    url: str
    vkeys: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: the URL is none, or the keys are not one witness's.
        """
        if not _URL.fullmatch(self.url):
            raise ConfigError(f"audit witness: {self.url!r} is not a URL without a trailing slash")
        try:
            names = {Witness.from_vkey(vkey).name for vkey in self.vkeys}
        except CheckpointError as error:
            raise ConfigError(f"audit witness {self.url}: {error.message}") from error
        if len(names) != 1:
            raise ConfigError(f"audit witness {self.url}: expected one or more keys, all under one name")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig:
    """Where the log is and how it behaves.

    Attributes:
        database: a file (SQLite), or a URL (`postgresql://…`).
        lock: the lock store: a file for the processes of one host, or the URL of a second PostgreSQL server for those
            of several. Keep it out of the database's backups.
        keys_dir: directory of the log keys (0700, files 0600).
        domain: DNS-like name under which this platform's logs are named (``audit.<domain>/…``).
        high_availability: the PostgreSQL servers have standbys that may be promoted; they must be synchronous.
        append_timeout_s: an append that is not durable by then fails.
        round_interval_s: least time between two rounds of the platform's log.
        quiet_round_interval_s: a round is made this often even when nothing changed.
        witnesses: who cosigns the platform's log.
        witness_quorum: how many of them must, before a checkpoint of it is shown to anybody; 0: none.
        publish_interval_s: least time between two publications.
    """

    database: Path | str
    lock: Path | str
    keys_dir: Path
    domain: str
    high_availability: bool = False
    append_timeout_s: float = 2.0
    round_interval_s: float = 1.0
    quiet_round_interval_s: float = 600.0
    witnesses: tuple[WitnessTarget, ...] = ()
    witness_quorum: int = 0
    publish_interval_s: float = 5.0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: one is out of range.
        """
        if not _DOMAIN.fullmatch(self.domain):
            raise ConfigError("audit domain: expected lower-case letters, digits, dots and hyphens, at most 128")
        if isinstance(self.database, Path) and not isinstance(self.lock, Path):
            raise ConfigError("audit lock: a database in a file has its lock store in a file, too")
        if not 0.1 <= self.append_timeout_s <= 60:
            raise ConfigError("audit append_timeout_s: expected 0.1 to 60 seconds")
        if not 0.05 <= self.round_interval_s <= self.quiet_round_interval_s:
            raise ConfigError("audit round_interval_s: expected 0.05 seconds to quiet_round_interval_s")

        if not 0 <= self.witness_quorum <= len(self.witnesses):
            raise ConfigError("audit witness_quorum: expected 0 to the number of witnesses")
        if not 0.05 <= self.publish_interval_s <= 600:
            raise ConfigError("audit publish_interval_s: expected 0.05 to 600 seconds")

    @property
    def busy_timeout_s(self) -> float:
        """How long one statement waits for a locked database, or a commit for another writer's."""
        return self.append_timeout_s * _MAX_BUSY_SHARE
