"""A tenant whose client journals its requests, a log that records them, and a server that shows the log, or lies."""

# ruff: noqa: D102 - the port documents the methods

import asyncio
import io
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from audit.log import AuditLog, RoundsAsked
from audit.log.rounds import PastRound
from audit.model import Head
from audit.records import Record, Subject, audit_read, tenant_cause
from audit.store import NewLeaf
from bulkhead.client.journal import RequestJournal
from bulkhead.client.monitoring import Check, Monitor, MonitorOptions
from bulkhead.errors import NotFoundError, UnavailableError
from bulkhead.ids import REQUEST, new_id
from bulkhead.protocol.saved import PublicPins
from bulkhead.transparency.merkle import leaf_hash
from bulkhead.transparency.rounds import RoundPage, RoundPath
from tests.simulator.audit_world import TENANT, opened, stamper

_STAMPER = stamper()
FAST = {"round_interval_s": 0.05, "publish_interval_s": 0.05}


class Server:
    """A log as a server shows it; each answer can be replaced by a lie."""

    def __init__(self, log: AuditLog, log_id: int) -> None:
        self.log, self.log_id = log, log_id

    @property
    def vkey(self) -> str:
        return self.log.vkey(self.log_id)

    async def checkpoint(self) -> tuple[str, str]:
        return await self.log.checkpoint(self.log_id), self.vkey

    async def consistency(self, old_size: int, new_size: int) -> tuple[tuple[bytes, ...], str]:
        return await self.log.extension(self.log_id, old_size, new_size)

    async def round_path(self) -> RoundPath:
        path = await self.log.round_path(self.log_id)
        if path is None:
            raise UnavailableError("no round yet")
        return path

    async def round_paths(self, after: int, *, limit: int, size: int, platform_size: int) -> RoundPage:
        asked = RoundsAsked(after, limit, size=size, platform_size=platform_size)
        return await self.log.round_paths(self.log_id, asked)

    async def export(self, *, first: int) -> AsyncGenerator[bytes, None]:
        stream = io.BytesIO()
        await self.log.export([self.log_id], stream, first=first)
        yield stream.getvalue()

    async def receipt_proof(self, receipt: object, digest: bytes) -> object:
        raise NotFoundError("no record covers it")


class World:
    """A tenant with a client, its journal, and a log that records what the client does."""

    def __init__(self, directory: Path, log: AuditLog, log_id: int) -> None:
        self.directory, self.log, self.log_id = directory, log, log_id
        self.server = Server(log, log_id)
        self.journal = RequestJournal(directory / "app.journal")
        self.now_us = time.time_ns() // 1_000

    def options(self, **changes: object) -> MonitorOptions:
        values = {
            "vkey": self.server.vkey,
            "state": self.directory / "monitor",
            "journals": (self.directory / "app.journal",),
        }
        return MonitorOptions(**(values | changes))

    def monitor(self, source: object = None, **changes: object) -> Monitor:
        """Return a monitor as after a restart."""
        return Monitor(source or self.server, self.options(**changes), now_us=lambda: self.now_us)

    async def check(self, source: object = None, **changes: object) -> Check:
        return await self.monitor(source, **changes).check()

    async def request(self, *, sent: bool = True, recorded: bool = True, code: str | None = "") -> str:
        """Make a request as the SDK does: journal, record, answer."""
        request_id = new_id(REQUEST)
        if sent:
            self.journal.sent(request_id, "OpenSession")
        if recorded:
            await self.log.append(self.log_id, record_of(request_id))
        if sent and code is not None:
            self.journal.answered(request_id, code)
        return request_id


def record_of(request_id: str) -> Record:
    """Return a record that a tenant's request caused."""
    return audit_read(
        _STAMPER.stamp(),
        tenant=TENANT,
        subject=Subject("subj_01h455vb4pex5vsknk084sn02q", ("officer",)),
        cause=tenant_cause(credential="cred_1", request_id=request_id),
        method="/bulkhead.v1.SessionService/OpenSession",
        query={},
        returned=0,
        size=0,
    )


async def make_round(log: AuditLog, *, forged: Head | None = None) -> PastRound:
    """Make a round at once, over the heads that there are; one may be forged. For a log that makes none by itself."""
    heads = log._known.heads() | ({forged.log_id: forged} if forged else {})
    made = log._rounds.prepare(log.stamp, heads, log._known.newest())
    leaf = NewLeaf(
        log.platform_log.log_id,
        made.record.record_id,
        made.record.leaf,
        leaf_hash(made.record.leaf),
        round_heads=made.changed,
    )
    appended = await log._submit(leaf)
    log._rounds.committed(made)
    return PastRound(made.round, appended)


@asynccontextmanager
async def monitored(directory: Path, pace: Mapping[str, float] = FAST) -> AsyncIterator[World]:
    """Open a log with one tenant."""
    log = await opened(directory / "log", **pace)
    info = await log.ensure_log(TENANT)
    found = World(directory, log, info.log_id)
    try:
        yield found
    finally:
        await found.log.close()


async def split(world: World, pace: Mapping[str, float] = FAST) -> AuditLog:
    """Return a second log that has the world's history so far, keys included, and goes its own way from here."""
    await world.log.close()
    shutil.copytree(world.directory / "log", world.directory / "fork")
    world.log = world.server.log = await opened(world.directory / "log", **pace)
    return await opened(world.directory / "fork", **pace)


def kinds(check: Check) -> list[str]:
    """Return the kinds of a check's alarms."""
    return sorted(alarm.kind for alarm in check.alarms)


async def rounds(world: World, **changes: object) -> Check:
    """Check until a round was verified."""
    pins = PublicPins(platform_vkey=world.log.vkey(1))
    for _ in range(100):
        check = await world.check(**({"pins": pins} | changes))
        if check.round or check.alarms:
            return check
        await asyncio.sleep(0.05)
    raise AssertionError("no round")
