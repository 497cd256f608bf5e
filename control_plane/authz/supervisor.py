"""Keeps one OPA serving the active bundle: starts it, watches it, replaces it, and changes bundles without a gap.

States and rules:

1. `start` verifies a bundle and brings up a process for it; before that, and after `close`, nothing is served.
2. The process is asked for its health each second, at once when a question failed in transport, and its end is noticed
   when it happens. One that has ended, or has failed two probes in a row, is replaced by a new process for the same
   bundle; attempts are spaced by growing pauses. Meanwhile :meth:`OpaSupervisor.connection` refuses.
3. `switch` verifies signature and digest and holds the order of numbers (OPA itself accepts an older signed bundle);
   it starts a new process, which must pass its self-test, and only then takes it into service. The old process ends
   when the questions it was asked must have been answered. Whatever fails before that leaves the old one serving.
"""

import asyncio
from pathlib import Path
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric import ec

from bulkhead.errors import ConflictError, PolicyEngineError
from control_plane.authz.bundle import BundleInfo, VerifiedBundle, verify_bundle
from control_plane.authz.client import DEADLINE_S
from control_plane.authz.connection import OpaConnection
from control_plane.authz.opa_tool import find_opa
from control_plane.authz.process import OpaProcess
from control_plane.authz.rundir import Account, RunDirectory, default_account, reap_stale

__all__ = ["OpaSupervisor"]

log = structlog.get_logger(__name__)

PROBE_INTERVAL_S: Final = 1.0
PROBES_TO_FAIL: Final = 2  # one may be lost to a pause of the machine
RESTART_PAUSES_S: Final = (0.0, 0.2, 0.5, 1.0, 2.0)  # then the last again and again
DRAIN_S: Final = DEADLINE_S + 0.5  # no question outlives its deadline


class OpaSupervisor:
    """The supervised policy engine. Construct it in the main thread's event loop.

    Args:
        public_key: P-256 key that bundles are signed with.
        run_dir: base of the run directory; None is the system's temporary directory.
        opa: the program; None looks for it (:func:`~control_plane.authz.opa_tool.find_opa`).
        account: what OPA runs as; None is nobody's account when this process is root, else this process's own.
    """

    def __init__(
        self,
        *,
        public_key: ec.EllipticCurvePublicKey,
        run_dir: Path | None = None,
        opa: Path | None = None,
        account: Account | None = None,
    ) -> None:
        self._public_key = public_key
        self._base = run_dir
        self._opa = opa
        self._account = account or default_account()
        self._directory: RunDirectory | None = None
        self._bundle: VerifiedBundle | None = None
        self._process: OpaProcess | None = None
        self._lock = asyncio.Lock()  # one process is started at a time
        self._wake = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def active(self) -> BundleInfo:
        """What the active bundle says of itself, also while its process is being replaced.

        Raises:
            PolicyEngineError: not started.
        """
        if self._bundle is None:
            raise PolicyEngineError("The policy engine has not been started.")
        return self._bundle.info

    @property
    def pid(self) -> int | None:
        """Process id of the serving OPA; None while there is none."""
        return None if self._process is None else self._process.pid

    def connection(self) -> OpaConnection:
        """Return the connection to the OPA that serves the active bundle.

        Raises:
            PolicyEngineError: none serves now.
        """
        if self._process is None or self._process.exited.done():
            raise PolicyEngineError("The policy engine is not running; it is being restarted.")
        return self._process.connection

    def suspect(self, connection: OpaConnection) -> None:
        """Probe the serving process now, if ``connection`` is still its own."""
        if self._process is not None and self._process.connection is connection:
            self._wake.set()

    async def start(self, data: bytes, *, minimum_number: int = 1) -> BundleInfo:
        """Verify the bundle in ``data`` (untrusted) and serve it. Ends what an earlier, killed supervisor left.

        Args:
            data: the bundle.
            minimum_number: number of the bundle that was active last, as the state database knows it.

        Raises:
            BundleError: signature, digest or contents do not hold.
            ConflictError: older than ``minimum_number``, or already started.
            ConfigError: no `opa`, or no usable run directory.
            PolicyEngineError: the process did not come up, or failed its self-test.
        """
        async with self._lock:
            if self._watcher is not None:
                raise ConflictError("The policy engine is already started.")
            bundle = verify_bundle(data, self._public_key)
            if bundle.info.number < minimum_number:
                raise ConflictError(f"The bundle is number {bundle.info.number}; {minimum_number} was active last.")
            reap_stale(self._base)
            self._directory = RunDirectory.create(base=self._base, opa=self._opa or find_opa(), account=self._account)
            try:
                self._process = await self._launch(bundle)
            except BaseException:
                self._directory.remove()
                raise
            self._bundle = bundle
            self._watcher = asyncio.create_task(self._watch(), name="opa-supervisor")
        return bundle.info

    async def switch(self, data: bytes, *, rollback: bool = False) -> BundleInfo:
        """Verify the bundle in ``data`` (untrusted) and serve it instead of the active one.

        Args:
            data: the bundle.
            rollback: accept a bundle that is not newer; the caller has had `policy.rollback` decided.

        Raises:
            BundleError: signature, digest or contents do not hold.
            ConflictError: not newer than the active bundle, and no rollback.
            PolicyEngineError: not started, the process did not come up, or it failed its self-test. In every case the
                active bundle stays.
        """
        bundle = verify_bundle(data, self._public_key)
        async with self._lock:
            if bundle.info.number <= self.active.number and not rollback:
                raise ConflictError(
                    f"The bundle is number {bundle.info.number}, not newer than the active {self.active.number}."
                )
            process = await self._launch(bundle)
            old, self._process, self._bundle = self._process, process, bundle
            self._wake.set()
        if old is not None:
            self._retire(old)
        log.info("opa.switched", bundle_digest=bundle.info.digest, number=bundle.info.number)
        return bundle.info

    async def close(self) -> None:
        """End every process and remove the run directory. Idempotent."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait({self._watcher})
        async with self._lock:
            for task in tuple(self._retiring):
                task.cancel()
            if self._retiring:
                await asyncio.wait(self._retiring)
            process, self._process = self._process, None
            if process is not None:
                await process.stop()
            if self._directory is not None:
                self._directory.remove()

    async def _launch(self, bundle: VerifiedBundle) -> OpaProcess:
        if self._directory is None:
            raise PolicyEngineError("The policy engine has not been started.")
        process = await OpaProcess.start(
            bundle=bundle, public_key=self._public_key, directory=self._directory, account=self._account
        )
        log.info("opa.started", pid=process.pid, bundle_digest=bundle.info.digest)
        return process

    def _retire(self, process: OpaProcess) -> None:
        async def drain() -> None:
            try:
                await asyncio.sleep(DRAIN_S)
            finally:
                await process.stop()

        task = asyncio.create_task(drain(), name="opa-drain")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _watch(self) -> None:
        while True:
            process = self._process
            if process is None:
                await self._restart()
                continue
            await self._until_failed(process)
            async with self._lock:
                if self._process is process:
                    self._process = None
                    log.warning("opa.failed", pid=process.pid, exited=process.exited.done())
                    await process.stop(at_once=True)

    async def _until_failed(self, process: OpaProcess) -> None:
        """Return when ``process`` has failed or no longer serves."""
        failed = 0
        while failed < PROBES_TO_FAIL and self._process is process and not process.exited.done():
            self._wake.clear()
            wake = asyncio.ensure_future(self._wake.wait())
            try:
                await asyncio.wait(
                    {wake, process.exited},
                    timeout=0.0 if failed else PROBE_INTERVAL_S,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                wake.cancel()
            if self._process is process:
                failed = 0 if await process.healthy() else failed + 1

    async def _restart(self) -> None:
        attempt = 0
        while self._process is None:
            await asyncio.sleep(RESTART_PAUSES_S[min(attempt, len(RESTART_PAUSES_S) - 1)])
            attempt += 1
            async with self._lock:
                if self._process is not None or self._bundle is None:
                    return
                try:
                    self._process = await self._launch(self._bundle)
                except PolicyEngineError as error:
                    log.warning("opa.restart_failed", attempt=attempt, reason=error.message)
