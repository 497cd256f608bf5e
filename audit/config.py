"""Configuration of the audit log; the process that opens the log reads it from its own file."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bulkhead.errors import ConfigError

__all__ = ["AuditConfig"]

_DOMAIN: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,126}[a-z0-9])?")  # the origin stays below 255 bytes
_MAX_BUSY_SHARE: Final = 0.35  # of the append's time-out: a commit that waits for the database twice still fits


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig:
    """Where the log is and how it behaves.

    Attributes:
        database: SQLite file.
        lock: the lock store's file; keep it out of the database's backups.
        keys_dir: directory of the log keys (0700, files 0600).
        domain: DNS-like name under which this platform's logs are named (``audit.<domain>/…``).
        append_timeout_s: an append that is not durable by then fails.
        round_interval_s: least time between two rounds of the platform's log.
        quiet_round_interval_s: a round is made this often even when nothing changed.
    """

    database: Path
    lock: Path
    keys_dir: Path
    domain: str
    append_timeout_s: float = 2.0
    round_interval_s: float = 1.0
    quiet_round_interval_s: float = 600.0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: one is out of range.
        """
        if not _DOMAIN.fullmatch(self.domain):
            raise ConfigError("audit domain: expected lower-case letters, digits, dots and hyphens, at most 128")
        if not 0.1 <= self.append_timeout_s <= 60:
            raise ConfigError("audit append_timeout_s: expected 0.1 to 60 seconds")
        if not 0.05 <= self.round_interval_s <= self.quiet_round_interval_s:
            raise ConfigError("audit round_interval_s: expected 0.05 seconds to quiet_round_interval_s")

    @property
    def busy_timeout_s(self) -> float:
        """How long one statement waits for a locked database."""
        return self.append_timeout_s * _MAX_BUSY_SHARE
