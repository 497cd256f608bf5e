"""What a running control plane holds open, in the order in which it is opened; closing goes the other way round.

1. Keys and certificates, made where they are missing.
2. The state database, brought to this build's schema.
3. The audit log. Without it nothing else starts.
4. The policy engine, serving the bundle that the state names active.
"""

import contextlib
from dataclasses import dataclass

from audit.log import AuditLog
from bulkhead.errors import ConfigError
from control_plane.authz.client import PolicyClient
from control_plane.authz.supervisor import OpaSupervisor
from control_plane.config import ControlPlaneConfig
from control_plane.keys import KeyRing
from control_plane.services.journal import Journal
from control_plane.storage.engine import Database, Transaction
from control_plane.storage.migrate import migrate
from control_plane.storage.policy import Bundles
from service.files import make_private_directory

__all__ = ["Resources", "open_resources"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What services are built on."""

    config: ControlPlaneConfig
    keys: KeyRing
    database: Database
    journal: Journal
    supervisor: OpaSupervisor
    policy: PolicyClient


async def open_resources(config: ControlPlaneConfig, stack: contextlib.AsyncExitStack) -> Resources:
    """Open everything; ``stack`` closes what was opened, also when a later step fails.

    Raises:
        ConfigError: the platform was never initialised, or a file is wrong.
        StateUnavailableError, AuditUnavailableError, LogForkError: a database cannot be used.
        BundleError, PolicyEngineError: the active bundle cannot be served.
    """
    make_private_directory(config.state_directory)
    keys = KeyRing.load_or_create(config)  # 1
    database = Database(url=config.database_url(), timeout_s=config.state.timeout_s)
    stack.push_async_callback(database.close)
    await migrate(database)  # 2
    number, bundle = await database.read(_active_bundle)
    make_private_directory(config.audit_config().keys_dir.parent)
    audit = await AuditLog.open(config.audit_config())  # 3
    stack.push_async_callback(audit.close)
    supervisor = OpaSupervisor(
        public_key=keys.bundle_signing.public_key(),
        run_dir=config.policy.run_directory,
        opa=config.policy.opa,
    )
    stack.push_async_callback(supervisor.close)
    await supervisor.start(bundle, minimum_number=number)  # 4
    policy = PolicyClient(
        engine=supervisor, deadline_s=config.policy.deadline_s, max_in_flight=config.policy.max_in_flight
    )
    return Resources(
        config=config,
        keys=keys,
        database=database,
        journal=Journal(audit=audit),
        supervisor=supervisor,
        policy=policy,
    )


def _active_bundle(tx: Transaction) -> tuple[int, bytes]:
    active = Bundles.of(tx).active()
    content = None if active is None else Bundles.of(tx).content(active.bundle_id)
    if active is None or content is None:
        raise ConfigError("this platform was never initialised: run `python -m control_plane init --config FILE`")
    return active.number, content
