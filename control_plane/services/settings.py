"""How the control plane treats sessions and the fleet; tables of its configuration file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bulkhead.errors import ConfigError

__all__ = ["FleetSettings", "SessionSettings"]

EVIDENCE_KEY_HEX: Final = 64  # Ed25519, 32 bytes
MAX_KEPT_DAYS: Final = 3_650


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """Sessions.

    Attributes:
        ticket_s: life of a ticket; the SDK renews at half of it.
        expiry_grace_s: a session whose last ticket ended this long ago is closed.
        idle_grace_s: a partition that no session has used this long is released.
        open_timeout_s: longest that one open may take, a worker's start included.
        concurrent_opens: opens in placement and attestation at once; the others wait.
        concurrent_requests: requests in flight per session, written into its tickets.
        denials_recorded: of one principal in a minute; further ones are counted and recorded as one sum.
    """

    ticket_s: int = 300
    expiry_grace_s: int = 60
    idle_grace_s: int = 60
    open_timeout_s: int = 240
    concurrent_opens: int = 64
    concurrent_requests: int = 64
    denials_recorded: int = 10

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: one is out of range.
        """
        if not 10 <= self.ticket_s <= 900:
            raise ConfigError("ticket_s: 10 to 900 seconds; a worker refuses tickets that live longer")
        if min(self.expiry_grace_s, self.idle_grace_s, self.denials_recorded) < 0:
            raise ConfigError("expiry_grace_s, idle_grace_s and denials_recorded: not negative")
        if min(self.open_timeout_s, self.concurrent_opens, self.concurrent_requests) < 1:
            raise ConfigError("open_timeout_s, concurrent_opens and concurrent_requests: at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """Node agents and partitions.

    Attributes:
        allow_simulated: whether agents of simulated trays are admitted at all (development).
        evidence_keys: agent id -> hexadecimal Ed25519 key that its evidence must be signed with. An agent that is not
            listed is believed what it says under its certificate, and a change of its key is recorded.
        hardware_policy: trust policy (TOML, docs/trust-policy.md) for agents in confidential guests; without it none is
            admitted. Tenants judge the same evidence again under their own.
        collateral_directory: of what vendors publish for it; without it the user's cache directory.
        heartbeat_timeout_s: an agent that is silent this long counts as disconnected.
        agent_grace_s: a disconnected agent's partitions are lost after this long.
        agent_wait_s: an open that policy would allow on known agents which are not connected waits this long for them
            (they come back within about two seconds of this process's restart); then it is AGENT_UNAVAILABLE.
        lease_s: validity of an audit lease (docs/protocol.md, "Audit lease").
        lease_interval_s: how often it is renewed.
        receipts_interval_s: receipts of a session wait this long for company in one leaf. The agent's events are
            acknowledged only when that leaf is committed, so it must stay well below ``lease_s``; a spool with
            ``receipts_pressing`` receipts is flushed at once.
        receipts_pressing: see above; workers stop at 1,024.
        receipts_kept_days: until so long after a session's last ticket its receipts' digests are kept for `audit prove
            --receipt`; the records that cover them stay in the log for ever.
        create_timeout_s: longest start of a worker, model loading included.
        attest_timeout_s: longest wait for evidence.
        drain_s: how long running requests may finish when a partition is released.
        release_timeout_s: longest wait for the end and the scrub, beyond ``drain_s``.
    """

    allow_simulated: bool = False
    evidence_keys: dict[str, str] = field(default_factory=dict)
    hardware_policy: Path | None = None
    collateral_directory: Path | None = None
    heartbeat_timeout_s: float = 10.0
    agent_grace_s: float = 15.0
    agent_wait_s: float = 5.0
    lease_s: float = 30.0
    lease_interval_s: float = 1.0
    receipts_interval_s: float = 10.0
    receipts_pressing: int = 256
    receipts_kept_days: int = 90
    create_timeout_s: float = 180.0
    attest_timeout_s: float = 15.0
    drain_s: float = 20.0
    release_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: one is out of range, or they contradict each other.
        """
        for agent_id, key in self.evidence_keys.items():
            try:
                valid = len(key) == EVIDENCE_KEY_HEX and bool(bytes.fromhex(key))
            except ValueError as error:
                raise ConfigError(f"evidence_keys.{agent_id}: {EVIDENCE_KEY_HEX} hexadecimal digits") from error
            if not valid:
                raise ConfigError(f"evidence_keys.{agent_id}: {EVIDENCE_KEY_HEX} hexadecimal digits")
        if not 0 < self.lease_interval_s < self.lease_s <= 300:
            raise ConfigError("lease_s: above lease_interval_s, at most 300 seconds")
        if not 0 < self.receipts_interval_s <= self.lease_s / 2:
            raise ConfigError("receipts_interval_s: at most half of lease_s, or leases would run out between leaves")
        if not 1 <= self.receipts_pressing <= 1_024:
            raise ConfigError("receipts_pressing: 1 to 1,024, where workers stop")
        if not 1 <= self.receipts_kept_days <= MAX_KEPT_DAYS:
            raise ConfigError(f"receipts_kept_days: 1 to {MAX_KEPT_DAYS}")
        timeouts = (
            self.heartbeat_timeout_s,
            self.agent_grace_s,
            self.agent_wait_s,
            self.create_timeout_s,
            self.attest_timeout_s,
            self.drain_s,
            self.release_timeout_s,
        )
        if min(timeouts) <= 0:
            raise ConfigError("fleet: every time-out is above 0 seconds")
