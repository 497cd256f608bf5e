"""Follows the platform's rounds over a tenant's log: every one, in order, up to the newest that was shown.

1. What is shown as the newest round is asked for before the log's own checkpoint: the log that is followed then is no
   smaller than in any round up to that one, so that each round's head must be of the history that was followed.
2. The rounds between the last one that was followed and the newest are gone through in pages: each number once, each
   path, each head (:func:`~bulkhead.transparency.rounds.verify_round_page`), each page under a checkpoint of the
   platform's log that extends the one before and that the quorum of witnesses has cosigned.
3. What was followed is remembered after each page: a check that was interrupted goes on there.

A page in which something does not hold is an alarm, and nothing of it is taken over.
"""

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from bulkhead.errors import (
    BulkheadError,
    ConfigError,
    ConsistencyError,
    InvalidRequestError,
    NotFoundError,
    ProofError,
    UnavailableError,
)
from bulkhead.protocol.saved import PublicPins
from bulkhead.transparency.checkpoint import Checkpoint
from bulkhead.transparency.cosignature import CosignedCheckpoint, open_cosigned
from bulkhead.transparency.monitor import Alarm, Followed, alarm_of
from bulkhead.transparency.note import NoteVerifier
from bulkhead.transparency.rounds import (
    RoundPage,
    RoundPath,
    VerifiedRound,
    verify_round_page,
    verify_round_path,
)

__all__ = ["RoundFollower", "RoundSource"]

_US_PER_S: Final = 1_000_000
_PAGE: Final = 64  # rounds that are asked for at once: some 100 KiB


class RoundSource(Protocol):
    """Rounds as a server shows them; nothing it returns is trusted."""

    async def round_path(self) -> RoundPath:
        """Return the path into the platform's newest published round."""
        ...

    async def round_paths(self, after: int, *, limit: int, size: int, platform_size: int) -> RoundPage:
        """Return paths into the rounds behind ``after``."""
        ...


class RoundFollower:
    """Follows the rounds for one monitor.

    Args:
        source: the rounds as the server shows them.
        pins: platform key and witnesses.
        origin: name of the tenant's log.
        agree: checks that a checkpoint is of the history that was followed.
        now_us: wall clock, microseconds.
        save: writes down what is remembered.
        progress: told after each page which round was reached, and which is the newest.
    """

    def __init__(
        self,
        source: RoundSource,
        pins: PublicPins,
        *,
        origin: str,
        agree: Callable[[Checkpoint, str], Awaitable[None]],
        now_us: Callable[[], int],
        save: Callable[[], None],
        progress: Callable[[int, int], None],
    ) -> None:
        self._source = source
        self._pins = pins
        self._origin = origin
        self._agree = agree
        self._now_us = now_us
        self._save = save
        self._progress = progress
        self._platform_vkey = pins.platform_vkey or ""
        self.witnesses: tuple[str, ...] = ()
        """Who cosigned the platform's last checkpoint that was verified."""
        self.checked = 0
        """How many rounds were verified in this check."""
        self.note = ""
        """What could not be asked for in this check; empty if everything was."""

    async def newest(self, followed: Followed) -> RoundPath | None:
        """Begin a check: return what the server shows as the newest round, or None; see the module, 1."""
        self.checked, self.note = 0, ""
        if not self._platform_vkey:
            return None
        try:
            return await self._source.round_path()
        except UnavailableError as error:
            self.note = f"no round: {error.message}"
        except ProofError as error:  # the platform says of itself that it cannot show it
            followed.alarm(alarm_of(error, "the newest round"))
        return None

    async def follow(self, followed: Followed, newest: RoundPath | None, *, first: int | None, max_age_s: int) -> None:
        """Follow the rounds up to the newest; what is wrong becomes an alarm.

        Args:
            followed: the log, its records followed already.
            newest: what :meth:`newest` returned.
            first: where to begin if no round was followed before; None: at the newest.
            max_age_s: how old the newest round may be, and for how long the rounds up to it may be out of reach.

        Raises:
            ConfigError: ``first`` is a round that is not there yet, or before the one that was begun with; what is
                remembered cannot be written.
        """
        if not self._platform_vkey or followed.slot is None:
            self.note = ""
            return
        if newest is not None:
            try:
                await self._follow(followed, followed.slot, newest, first)
            except (ConsistencyError, ProofError) as error:
                followed.alarm(alarm_of(error, f"the rounds after {followed.round}"))
                return
        self._tell_age(followed, max_age_s)

    async def _follow(self, followed: Followed, slot: int, newest: RoundPath, first: int | None) -> None:
        verified, platform = await self._verified(followed, slot, newest)
        if first is not None:
            _check_first(first, followed.first_round, verified.round)
        if followed.first_round:
            followed.check_newest(verified, platform)
        elif first is None:
            followed.begin_rounds(verified.round)
            followed.take_rounds((verified,), platform, now_us=self._now_us())
            self.checked = 1
        else:
            followed.begin_rounds(first)
        try:
            await self._pages(followed, slot, verified.round)
        except (ConfigError, ConsistencyError, ProofError):
            raise
        except (NotFoundError, InvalidRequestError) as error:
            if followed.round < followed.first_round:  # of the first one that is checked only its number is known
                raise ConfigError(f"begin at a later round than {followed.first_round}: {error.message}") from error
            raise ConsistencyError(
                f"the platform denies round {followed.round + 1}, though it shows round {verified.round}: "
                f"{error.message}",
                details={"kind": "gap"},
            ) from error
        except BulkheadError as error:  # it cannot be asked now: the next check goes on here
            self.note = f"rounds {followed.round + 1} to {verified.round} are not checked yet: {error.message}"
            followed.behind_us = followed.behind_us or self._now_us()
        else:
            followed.behind_us = 0

    async def _verified(self, followed: Followed, slot: int, path: RoundPath) -> tuple[VerifiedRound, Checkpoint]:
        """Verify what is shown as the newest round, with the quorum of the platform's witnesses."""
        platform_origin = NoteVerifier.from_vkey(self._platform_vkey).name
        verified = verify_round_path(
            path,
            slot=slot,
            origin=self._origin,
            platform_vkey=self._platform_vkey,
            platform_origin=platform_origin,
        )
        cosigned = open_cosigned(
            path.receipt.checkpoint,
            vkey=self._platform_vkey,
            origin=platform_origin,
            witnesses=self._pins.witnesses,
            quorum=self._pins.quorum,
        )
        self._seen(cosigned)
        if (verified.checkpoint.size, verified.checkpoint.root.hex()) != (followed.round_size, followed.round_root):
            await self._agree(verified.checkpoint, f"the tree that round {verified.round} commits to")
        return verified, cosigned.checkpoint

    async def _pages(self, followed: Followed, slot: int, newest: int) -> None:
        while followed.round < newest:
            wanted = min(_PAGE, newest - followed.round)
            page = await self._source.round_paths(
                followed.round, limit=wanted, size=followed.size, platform_size=followed.platform_size
            )
            if len(page.paths) > wanted:
                raise ProofError("the platform shows more rounds than it was asked for")
            cosigned, rounds = verify_round_page(
                page,
                seen=followed.rounds_seen,
                own=followed.frontier,
                slot=slot,
                origin=self._origin,
                platform_vkey=self._platform_vkey,
                witnesses=self._pins.witnesses,
                quorum=self._pins.quorum,
            )
            self._seen(cosigned)
            followed.take_rounds(rounds, cosigned.checkpoint, now_us=self._now_us())
            self.checked += len(rounds)
            self._save()
            self._progress(followed.round, newest)

    def _seen(self, cosigned: CosignedCheckpoint) -> None:
        self.witnesses = tuple(name for name, _ in cosigned.witnesses)

    def _tell_age(self, followed: Followed, max_age_s: int) -> None:
        """Raise an alarm if the newest round is too old, or the rounds up to it were out of reach for too long."""
        since_us = followed.behind_us or followed.round_ts_us or followed.since_us
        age_s = (self._now_us() - since_us) // _US_PER_S
        if age_s <= max_age_s:
            return
        what = f"round {followed.round}" if followed.round else "no round at all"
        if followed.behind_us:
            message = f"the platform shows a newer round, but for {age_s} s not the rounds behind {what}"
        else:
            message = f"the platform shows {what} since {age_s} s: rounds leave this log out"
        followed.alarm(Alarm("gap", message, what))


def _check_first(first: int, begun: int, newest: int) -> None:
    if begun and first < begun:
        raise ConfigError(
            f"the state follows rounds from {begun} on: to begin at round {first}, begin with another state file"
        )
    if first > newest and not begun:
        raise ConfigError(f"round {first} is not there yet: the newest is round {newest}")
