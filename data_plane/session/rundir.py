"""The agent's run directory: what each partition leaves on disk, and how an agent that restarts finds it.

``partitions/<partition id>.json`` is the agent's own record of a live or cordoned partition. ``<26 characters>/`` is
its worker's directory, owned by the worker's user, with the socket. All of a partition is removed when it ends.
"""

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from bulkhead.attestation.tiers import Tier
from bulkhead.encoding import Json, canonical_json
from bulkhead.errors import ConfigError, StateUnavailableError
from bulkhead.fields import Fields
from bulkhead.ids import PARTITION, check_id
from data_plane.ports import PartitionSpec, PartitionState
from data_plane.session.process import ProcessIdentity
from service.files import make_private_directory, write_file

__all__ = ["PartitionRecord", "RunDirectory"]

_log = structlog.get_logger(__name__)

MAX_RECORD_BYTES: Final = 65_536
MAX_RECORDS: Final = 1_024
MAX_GPUS: Final = 576
MAX_SOCKET_PATH: Final = 107  # sun_path of unix(7), without its final zero
SOCKET_NAME: Final = "w.sock"
_DIRECTORY_NAME: Final = 26  # the suffix of a TypeID


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionRecord:
    """One partition as an agent finds it again.

    Attributes:
        spec: its place.
        fence: under which it was created.
        state: ``creating`` or later when it was written.
        process: of its worker; None before that was spawned.
    """

    spec: PartitionSpec
    fence: int
    state: PartitionState
    process: ProcessIdentity | None

    def encode(self) -> bytes:
        """Return the RFC 8785 JSON."""
        spec = self.spec
        process: Json = (
            None if self.process is None else {"pid": self.process.pid, "started": str(self.process.started)}
        )
        return canonical_json(
            {
                "partition": spec.partition_id,
                "tenant": spec.tenant_id,
                "tier": spec.tier.value,
                "gpus": list(spec.gpu_uuids),
                "mig_profile_id": spec.mig_profile_id,
                "memory_slice_start": spec.memory_slice_start,
                "memory_slices": spec.memory_slices,
                "memory_mib": spec.memory_mib,
                "fence": str(self.fence),
                "state": self.state.value,
                "process": process,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> "PartitionRecord":
        """Return the record in a file.

        Raises:
            StateUnavailableError: it is none.
        """
        with Fields.parse(data, max_bytes=MAX_RECORD_BYTES, what="partition", error=StateUnavailableError) as fields:
            process = None
            if not fields.is_null("process"):
                with fields.nested("process") as inner:
                    process = ProcessIdentity(inner.integer("pid", low=1), inner.decimal("started"))
            try:
                return cls(
                    spec=PartitionSpec(
                        partition_id=check_id(fields.text("partition"), PARTITION),
                        tenant_id=fields.text("tenant"),
                        tier=Tier(fields.text("tier")),
                        gpu_uuids=fields.texts("gpus", max_items=MAX_GPUS),
                        mig_profile_id=fields.integer("mig_profile_id"),
                        memory_slice_start=fields.integer("memory_slice_start"),
                        memory_slices=fields.integer("memory_slices"),
                        memory_mib=fields.integer("memory_mib"),
                    ),
                    fence=fields.decimal("fence"),
                    state=PartitionState(fields.text("state")),
                    process=process,
                )
            except ValueError as error:
                raise StateUnavailableError("partition: not a record of this agent") from error


class RunDirectory:
    """The directory of one agent.

    Args:
        root: a short path; created if it does not exist.
        shared: whether workers run under user ids of their own, who must be able to pass through ``root``.

    Raises:
        ConfigError: it cannot be created, or its path is too long for sockets below it.
    """

    def __init__(self, root: Path, *, shared: bool) -> None:
        self._root = make_private_directory(root.resolve())
        longest = len(os.fsencode(self._root)) + 1 + _DIRECTORY_NAME + 1 + len(SOCKET_NAME)
        if longest > MAX_SOCKET_PATH:
            raise ConfigError(
                f"run_directory: {self._root} is {longest - MAX_SOCKET_PATH} characters too long for the sockets in it"
            )
        self._records = make_private_directory(self._root / "partitions")
        if shared:
            self._root.chmod(0o711)

    def directory(self, partition_id: str) -> Path:
        """Return where the worker of a partition lives."""
        return self._root / partition_id.rpartition("_")[2]

    def socket(self, partition_id: str) -> Path:
        """Return where it listens."""
        return self.directory(partition_id) / SOCKET_NAME

    def make(self, partition_id: str, *, uid: int) -> Path:
        """Create the worker's directory, for ``uid`` (-1: the agent's own) and nobody else.

        Raises:
            StateUnavailableError: it cannot be created.
        """
        directory = self.directory(partition_id)
        try:
            directory.mkdir(mode=0o700)
            if uid >= 0:
                os.chown(directory, uid, uid)
        except OSError as error:
            raise StateUnavailableError(f"cannot create {directory}: {error.strerror}") from error
        return directory

    def write(self, record: PartitionRecord) -> None:
        """Note a partition, durably.

        Raises:
            StateUnavailableError: it cannot be written.
        """
        try:
            write_file(self._record_path(record.spec.partition_id), record.encode())
        except ConfigError as error:
            raise StateUnavailableError(error.message) from error

    def remove(self, partition_id: str) -> bool:
        """Remove the worker's directory; tell whether nothing of it is left."""
        directory = self.directory(partition_id)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(directory, ignore_errors=True)
        return not directory.exists()

    def forget(self, partition_id: str) -> None:
        """Remove the agent's record of a partition that has ended."""
        self._record_path(partition_id).unlink(missing_ok=True)

    def records(self) -> list[PartitionRecord]:
        """Return what an earlier agent left; a file that is no record is set aside and reported."""
        found: list[PartitionRecord] = []
        for path in sorted(self._records.glob("*.json"))[:MAX_RECORDS]:
            try:
                found.append(PartitionRecord.decode(path.read_bytes()))
            except (OSError, StateUnavailableError) as error:
                _log.error("agent.unreadable_record", file=path.name, error=type(error).__name__)
                path.rename(path.with_suffix(".unreadable"))
        return found

    def _record_path(self, partition_id: str) -> Path:
        return self._records / f"{partition_id}.json"
