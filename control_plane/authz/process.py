"""One OPA server process: loopback, token, one verified bundle, an authorisation policy that allows only questions."""

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
import signal
import socket
import sys
from collections import deque
from pathlib import Path
from typing import Final, Self

import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bulkhead.encoding import canonical_json
from bulkhead.errors import PolicyEngineError
from control_plane.authz.bundle import VerifiedBundle
from control_plane.authz.client import DEADLINE_S
from control_plane.authz.connection import BUNDLE_NAME, OpaConnection
from control_plane.authz.deadline import within
from control_plane.authz.rundir import Account, RunDirectory
from control_plane.authz.selftest import self_test
from control_plane.authz.vocabulary import ACTIONS

__all__ = ["OpaProcess"]

log = structlog.get_logger(__name__)

HOST: Final = "127.0.0.1"
START_TIMEOUT_S: Final = 10.0  # 0.2 s is usual; a loaded machine takes more
STOP_TIMEOUT_S: Final = 2.0
HEALTH_TIMEOUT_S: Final = 1.0
MAX_REQUEST_BYTES: Final = 64 * 1024  # an input is at most 12 KiB
_POLL_S: Final = 0.02
_DAY_S: Final = 86_400
_KEY_ID: Final = "bulkhead"
_LOG_LINES: Final = 20
_LOG_LINE_BYTES: Final = 4096
_LAUNCHER: Final = Path(__file__).with_name("launch.py")


class OpaProcess:
    """A server that has answered its self-test; made by :meth:`start`.

    Attributes:
        bundle: what it serves.
        connection: how to ask it.
        exited: done when the process has ended, for whatever reason.
    """

    def __init__(
        self,
        *,
        bundle: VerifiedBundle,
        connection: OpaConnection,
        child: asyncio.subprocess.Process,
        pidfd: int,
        directory: Path,
    ) -> None:
        self.bundle = bundle
        self.connection = connection
        self.exited = asyncio.ensure_future(child.wait())
        self._child = child
        # asyncio's own kill() may reap the child behind its watcher, and a bare pid may be another's by then.
        self._pidfd: int | None = pidfd
        self._directory = directory
        self._lines: deque[str] = deque(maxlen=_LOG_LINES)
        self._reader = asyncio.ensure_future(self._read_log())

    @classmethod
    async def start(
        cls,
        *,
        bundle: VerifiedBundle,
        public_key: ec.EllipticCurvePublicKey,
        directory: RunDirectory,
        account: Account | None,
    ) -> Self:
        """Start a server for ``bundle``, wait until it serves and answers its self-test.

        Call it on the main thread: the parent-death signal fires when the thread that spawned the process ends.

        Raises:
            PolicyEngineError: it did not come up or failed its self-test; it has been ended.
        """
        token = secrets.token_urlsafe(32)
        try:
            port = _free_port()
            path = directory.new_process()
            directory.put(path, _files(path, bundle, public_key, token))
            child = await asyncio.create_subprocess_exec(
                *_command(directory, path, port, account),
                cwd=path,
                env={"PATH": ""},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            directory.note_pid(path, child.pid)
            pidfd = os.pidfd_open(child.pid)  # fails when the child has ended, and been reaped, already
        except OSError as error:  # the parent-death signal and the pid file of the next attempt leave nothing running
            raise PolicyEngineError(f"The policy engine cannot be started: {error.strerror}.") from error
        connection = OpaConnection(
            host=HOST, port=port, token=token, revision=bundle.info.digest, timeout_s=2 * DEADLINE_S
        )
        process = cls(bundle=bundle, connection=connection, child=child, pidfd=pidfd, directory=path)
        uid = os.geteuid() if account is None else account.uid
        try:
            await connection.open()
            async with asyncio.timeout(START_TIMEOUT_S):
                await process._come_up(port, uid)
        except (PolicyEngineError, OSError) as error:  # a TimeoutError is an OSError
            await process.stop()
            told = error.message if isinstance(error, PolicyEngineError) else "it did not serve in time"
            raise PolicyEngineError(f"The policy engine did not start: {told}. {process._said()}") from error
        except BaseException:  # cancelled: nothing may be left running
            await process.stop()
            raise
        return process

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._child.pid

    async def healthy(self) -> bool:
        """Return whether the server runs and answers within a second."""
        if self.exited.done():
            return False
        try:
            return await within(self.connection.healthy(), timeout_s=HEALTH_TIMEOUT_S)
        except TimeoutError:
            return False

    async def stop(self, *, at_once: bool = False) -> None:
        """End the process, unless ``at_once`` first by asking, and remove its files. Idempotent."""
        await self.connection.close()
        if not at_once:
            self._signal(signal.SIGTERM)
            await asyncio.wait({self.exited}, timeout=STOP_TIMEOUT_S)
        self._signal(signal.SIGKILL)
        await asyncio.wait({self.exited, self._reader}, timeout=STOP_TIMEOUT_S)
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        shutil.rmtree(self._directory, ignore_errors=True)

    def _signal(self, number: int) -> None:
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def _come_up(self, port: int, uid: int) -> None:
        while not (_listens(port, uid) and await self.healthy()):
            if self.exited.done():
                raise PolicyEngineError("it ended at once")
            await asyncio.sleep(_POLL_S)
        await self_test(self.connection)
        if self.exited.done():  # then somebody else answered on its port
            raise PolicyEngineError("it ended at once")

    async def _read_log(self) -> None:
        stream = self._child.stdout
        if stream is None:
            return
        rest = b""
        while chunk := await stream.read(_LOG_LINE_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _LOG_LINE_BYTES:
                lines, rest = [*lines, rest], b""
            for line in lines:
                said = line[:_LOG_LINE_BYTES].decode("utf-8", errors="replace")
                self._lines.append(said)
                log.info("opa.said", pid=self._child.pid, line=said)

    def _said(self) -> str:
        return " ".join(self._lines)[-1000:]


def _command(directory: RunDirectory, path: Path, port: int, account: Account | None) -> list[str]:
    uid, gid = (-1, -1) if account is None else (account.uid, account.gid)
    launch = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), str(uid), str(gid)]
    serve = [str(directory.opa), "run", "--server", "--addr", f"{HOST}:{port}"]
    guard = [
        "--authentication=token",
        "--authorization=basic",
        "--skip-version-check",
        "--optimize-store-for-read-speed",
    ]
    quiet = ["--log-level=error", "--log-level-request=debug", "--shutdown-grace-period=1"]
    return [*launch, *serve, *guard, *quiet, "--config-file", str(path / "config.json"), str(path / "authz.rego")]


def _files(path: Path, bundle: VerifiedBundle, public_key: ec.EllipticCurvePublicKey, token: str) -> dict[str, bytes]:
    pem = public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")
    config = canonical_json(
        {
            "keys": {_KEY_ID: {"algorithm": "ES256", "key": pem}},
            "bundles": {
                BUNDLE_NAME: {
                    "resource": f"file://{path}/bundle.tar.gz",
                    "signing": {"keyid": _KEY_ID},  # without it an unsigned bundle loads
                    "polling": {"min_delay_seconds": _DAY_S, "max_delay_seconds": _DAY_S},
                }
            },
            "server": {"decoding": {"max_length": MAX_REQUEST_BYTES}},
        }
    )
    return {"config.json": config, "authz.rego": _authorisation(token), "bundle.tar.gz": bundle.data}


def _authorisation(token: str) -> bytes:
    """Return the policy that guards OPA's own API: without it a data PUT could forge even the revision."""
    digest = hashlib.sha256(token.encode("ascii")).hexdigest()
    entrypoints = ", ".join(
        "[" + ", ".join(f'"{part}"' for part in ("v1", "data", *entrypoint.split("/"))) + "]"
        for entrypoint in sorted(set(ACTIONS.values()))
    )
    return f"""package system.authz

default allow := false

known if crypto.sha256(input.identity) == "{digest}"

allow if {{
	known
	input.method == "POST"
	input.path in {{{entrypoints}}}
	every name, _ in input.params {{
		name == "provenance"
	}}
}}

allow if {{
	known
	input.method == "GET"
	input.path == ["health"]
}}
""".encode("ascii")


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _listens(port: int, uid: int) -> bool:
    """Return whether a process of account ``uid`` listens on the port: the token goes to nobody else (proc(5), net)."""
    local = f"0100007F:{port:04X}"
    for line in Path("/proc/self/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        if fields[1] == local and fields[3] == "0A" and fields[7] == str(uid):
            return True
    return False
