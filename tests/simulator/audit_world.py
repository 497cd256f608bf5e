"""Audit logs for tests: a configuration in a directory, records with little in them, keys that are known."""

import itertools
import secrets
import time
from pathlib import Path
from typing import Any

from audit import records
from audit.config import AuditConfig
from audit.keys import LogKeys
from audit.log import AuditLog
from audit.log.opening import lock_store
from audit.model import Failpoint, LogInfo, no_failpoint
from audit.records import Record, Stamper
from audit.sql import open_reader
from audit.sql.verify import DatabaseReport, verify_database
from audit.store import NewLeaf
from bulkhead.transparency.merkle import leaf_hash

TENANT = "tenant_01h455vb4pex5vsknk084sn02q"
OTHER = "tenant_01h455vb4pex5vsknk084sn02r"
DIGEST = "ab" * 32


def stamper(*, writer: str = "test", start_us: int | None = None) -> Stamper:
    """Return a stamper; with ``start_us`` its wall clock begins there and steps by a second."""
    ticks = itertools.count()
    wall = time.time_ns if start_us is None else lambda: (start_us + 1_000_000 * next(ticks)) * 1_000
    return Stamper(
        writer=writer,
        wall_ns=wall,
        monotonic_ns=time.monotonic_ns,
        started_ns=time.monotonic_ns(),
        random_bytes=secrets.token_bytes,
    )


_STAMPER = stamper()


def decision(
    *, tenant: str = TENANT, number: int = 0, allow: bool = True, stamps: Stamper = _STAMPER, padding: str = ""
) -> Record:
    """Return a decision; equal arguments give records that differ in id and time only."""
    return records.decision(
        stamps.stamp(),
        tenant=tenant,
        subject=records.Subject("subj_01h455vb4pex5vsknk084sn02q", ("developer",)),
        cause=records.tenant_cause(credential="cred_1", request_id=f"req_{number}"),
        session=f"sess_{number}",
        pair_id=f"pair_{number}",
        model="tiny",
        tier="gpu",
        decision=records.Decision.ALLOW if allow else records.Decision.DENY,
        reasons=[records.Reason("OK" if allow else "SESSION_LIMIT", "tenancy", "because")],
        bundle=DIGEST,
        policy_input={"subject": {"roles": ["developer"]}, "note": padding},
    )


def closing(number: int, *, tenant: str = TENANT, renewed: bool = False, stamps: Stamper = _STAMPER) -> Record:
    """Return what closes the pair of :func:`decision` with that number: an outcome, or a renewal."""
    pair: dict[str, Any] = {
        "tenant": tenant,
        "subject": records.Subject("subj_01h455vb4pex5vsknk084sn02q", ("developer",)),
        "cause": records.tenant_cause(credential="cred_1", request_id=f"req_{number}"),
        "session": f"sess_{number}",
        "pair_id": f"pair_{number}",
        "partition": "part_1",
        "tier": "gpu",
        "evidence": DIGEST,
    }
    if renewed:
        return records.session_renewed(stamps.stamp(), **pair)
    return records.outcome(stamps.stamp(), result="ready", model="tiny", **pair)


def event(*, stamps: Stamper = _STAMPER) -> Record:
    """Return a record of the platform's log."""
    return records.platform_event(
        stamps.stamp(), action=records.Action.PLATFORM_START, reason=records.PlatformReason.STARTUP
    )


def new_leaf(log_id: int, record: Record) -> NewLeaf:
    """Return a record as a leaf to be committed."""
    return NewLeaf(log_id, record.record_id, record.leaf, leaf_hash(record.leaf))


def opening(info: LogInfo) -> NewLeaf:
    """Return the leaf that opens a log."""
    record = records.log_opened(
        _STAMPER.stamp(), tenant=info.tenant, origin=info.origin, epoch=info.epoch, slot=info.slot
    )
    return NewLeaf(info.log_id, record.record_id, record.leaf, leaf_hash(record.leaf), opens=info)


def config(directory: Path, **changes: Any) -> AuditConfig:
    """Return a configuration whose files (but a database that is named) are under ``directory``; rounds are slow."""
    files = {
        "database": directory / "audit.db",
        "lock": directory / "lock" / "audit.lock",
        "keys_dir": directory / "keys",
    }
    return AuditConfig(**({"domain": "bulkhead.test", "round_interval_s": 600.0} | files | changes))


async def opened(directory: Path, failpoint: Failpoint = no_failpoint, **changes: Any) -> AuditLog:
    """Open an audit log under ``directory``."""
    return await AuditLog.open(config(directory, **changes), failpoint=failpoint)


def verified(directory: Path, database: Path | str, **changes: Any) -> DatabaseReport:
    """Verify a database whose writers have gone, beside its keys and its lock store."""
    where = config(directory, database=database, **changes)
    lock = lock_store(where)
    lock.open(create=False)
    reader = open_reader(where.database)
    keys = LogKeys.load(where.keys_dir)
    try:
        vkeys = {log.origin: keys.signer(log.origin).vkey for log in reader.logs()}
        return verify_database(reader, vkeys=vkeys, locked=lock.read())
    finally:
        reader.close()
        lock.close()
