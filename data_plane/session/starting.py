"""Starting a worker: where its model lies, what it may use, how it is confined."""

import os
import socket
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

import data_plane
from bulkhead.attestation.tiers import Tier
from bulkhead.errors import ConfigError, InvalidRequestError, TenantRootRequiredError, UnavailableError
from bulkhead.fields import DIGEST_BYTES
from bulkhead.ids import TENANT, check_id, check_name
from data_plane.config import WorkerConfig
from data_plane.ports import PartitionSpec, PartitionState
from data_plane.sandbox import SandboxConfig, SandboxPlan, Step, plan_for
from data_plane.session.commands import CreatePartition
from data_plane.session.messages import StartWorker, WorkerBooted, WorkerReady
from data_plane.session.partition import Partition, Progress
from data_plane.session.rundir import PartitionRecord, RunDirectory

__all__ = ["WorkerStarter", "authority_of", "needed_paths", "spec_of"]

_log = structlog.get_logger(__name__)

MAX_MODEL_PATH_CHARS: Final = 512
_AUTHORITY_SUFFIX: Final = ".worker.bulkhead.internal"


def authority_of(partition_id: str) -> str:
    """Return the name of a partition's worker at the ingress; a DNS name has no underscore."""
    return partition_id.replace("_", "-") + _AUTHORITY_SUFFIX


def spec_of(partition_id: str, order: CreatePartition) -> PartitionSpec:
    """Return the place that an order asks for.

    Raises:
        InvalidRequestError: an id or tier that is none.
    """
    check_id(order.tenant_id, TENANT)
    try:
        tier = Tier(order.tier)
    except ValueError as error:
        raise InvalidRequestError("unknown tier") from error
    return PartitionSpec(
        partition_id=partition_id,
        tenant_id=order.tenant_id,
        tier=tier,
        gpu_uuids=order.gpu_uuids,
        mig_profile_id=order.mig_profile_id,
        memory_slice_start=order.memory_slice_start,
        memory_slices=order.memory_slices,
        memory_mib=order.memory_mib,
    )


def needed_paths() -> tuple[Path, ...]:
    """Return what every worker reads before its model: interpreter, standard library, packages."""
    packages = Path(data_plane.__file__).parent
    return (Path(sys.executable), Path(sys.prefix), Path(sysconfig.get_path("stdlib")), packages)


class WorkerStarter:
    """Starts the workers of one agent.

    Args:
        worker: limits.
        sandbox: confinement.
        model_directory: models lie below it.
        run: the run directory.
        simulated: whether any part of the tray is.
        ticket_issuers: returns the Ed25519 public keys that the control plane named.
        log_arguments: passed on to workers.
    """

    def __init__(
        self,
        *,
        worker: WorkerConfig,
        sandbox: SandboxConfig,
        model_directory: Path,
        run: RunDirectory,
        simulated: bool,
        ticket_issuers: Callable[[], tuple[bytes, ...]],
        log_arguments: tuple[str, ...],
    ) -> None:
        self._worker = worker
        self._sandbox = sandbox
        self._models = model_directory.resolve()
        self._run = run
        self._simulated = simulated
        self._ticket_issuers = ticket_issuers
        self._log_arguments = log_arguments

    async def start(
        self, partition: Partition, order: CreatePartition, *, active: int, timeout_s: float, progress: Progress
    ) -> WorkerReady | WorkerBooted:
        """Start the worker of ``partition`` and return what it says when it listens; the caller undoes a failure.

        The worker of a sealed model says already when it waits for the model's key.

        Args:
            partition: its place is taken.
            order: names the model.
            active: live partitions on the tray, this one included.
            timeout_s: until the command's deadline; the configured time-out if that is shorter.
            progress: takes phase and sentence.

        Raises:
            InvalidRequestError: the model's path leads out of the model directory, or a name or root is none.
            TenantRootRequiredError: tier confidential without a tenant root.
            UnavailableError: no control plane has named a ticket issuer yet.
            ConfigError: confinement that is required is not possible.
            BulkheadError: as :meth:`Partition.start`.
        """
        _check_root(order)
        directory = self._model_path(order)
        issuers = self.ticket_issuers()
        if not issuers:
            raise UnavailableError("no control plane has named a ticket issuer")
        threads = self._worker.threads or max(1, (os.cpu_count() or 1) // max(1, active))
        self._spawn(partition, directory, threads)
        progress(
            "creating", f"worker process started, pid {partition.process.identity.pid if partition.process else 0}"
        )
        return await partition.start(
            self._message(partition, order, directory=directory, issuers=issuers, threads=threads),
            timeout_s=min(timeout_s, self._worker.start_timeout_s),
            progress=progress,
        )

    def ticket_issuers(self) -> tuple[bytes, ...]:
        """Return the Ed25519 public keys whose tickets workers take now; none before a control plane named them."""
        return self._ticket_issuers()

    def _spawn(self, partition: Partition, model: Path, threads: int) -> None:
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            plan = self._plan(partition.slot, keep_fd=theirs.fileno(), model=model)
            cwd = self._run.make(partition.partition_id, uid=plan.uid)
            self._note(partition)
        except BaseException:
            mine.close()
            theirs.close()
            raise
        partition.spawn(
            plan=plan,
            channel=(mine, theirs),
            cwd=cwd,
            environment=_environment(cwd, threads),
            arguments=self._log_arguments,
        )
        self._note(partition)

    def _plan(self, slot: int, *, keep_fd: int, model: Path) -> SandboxPlan:
        plan = plan_for(self._sandbox, slot=slot, keep_fd=keep_fd, needed=(*needed_paths(), model))
        if plan.uid < 0 and self._sandbox.user is Step.IF_POSSIBLE:
            _log.warning("sandbox.shared_user", reason="a user id of its own is not possible here")
        return plan

    def _note(self, partition: Partition) -> None:
        self._run.write(
            PartitionRecord(
                spec=partition.spec,
                fence=partition.fence,
                state=PartitionState.CREATING,
                process=partition.process.identity if partition.process is not None else None,
            )
        )

    def _model_path(self, order: CreatePartition) -> Path:
        check_name(order.model_name, "model_name")
        if not 0 < len(order.model_path) <= MAX_MODEL_PATH_CHARS or "\0" in order.model_path:
            raise InvalidRequestError("model_path: a relative path of at most 512 characters")
        path = (self._models / order.model_path).resolve()
        if not path.is_relative_to(self._models) or path == self._models:
            raise InvalidRequestError("model_path: a path below the agent's model directory")
        if not path.is_dir():
            raise ConfigError(f"model {order.model_name}: the agent has no directory {order.model_path} for it")
        return path

    def _message(
        self, partition: Partition, order: CreatePartition, *, directory: Path, issuers: tuple[bytes, ...], threads: int
    ) -> StartWorker:
        return StartWorker(
            partition_id=partition.partition_id,
            tenant_id=partition.spec.tenant_id,
            tier=partition.spec.tier.value,
            simulated=self._simulated,
            model_name=order.model_name,
            model_directory=str(directory),
            model_digest=order.model_digest,
            socket_path=str(self._run.socket(partition.partition_id)),
            authority=authority_of(partition.partition_id),
            ticket_issuers=issuers,
            threads=threads,
            max_output_tokens=order.max_output_tokens,
            max_running_requests=self._worker.max_running_requests,
            max_queued_requests=self._worker.max_queued_requests,
            kv_cache_mib=self._worker.kv_cache_mib,
            weights=self._worker.weights,
            key_life_s=self._worker.key_life_s,
            manifest_digest=order.manifest_digest,
            manifest_version=order.manifest_version,
            tenant_root=order.tenant_root,
        )


def _check_root(order: CreatePartition) -> None:
    if len(order.tenant_root) not in {0, DIGEST_BYTES}:
        raise InvalidRequestError(f"tenant_root: {DIGEST_BYTES} bytes, or none")
    if order.tier == Tier.CONFIDENTIAL.value and not order.tenant_root:
        raise TenantRootRequiredError("tier confidential needs a tenant root, and the tenant's record has none")


def _environment(cwd: Path, threads: int) -> dict[str, str]:
    """Return all that a worker inherits: nothing of the agent's own environment."""
    return {
        "HOME": str(cwd),
        "LANG": "C.UTF-8",
        "MKL_NUM_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        "PATH": "/usr/bin:/bin",
        "TMPDIR": str(cwd),
    }
