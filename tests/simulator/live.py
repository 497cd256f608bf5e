"""A running platform as tests look at it: its rows, its processes, raw calls, the commands of a person."""

import json
import os
import secrets
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from bulkhead import ids
from bulkhead.client import AsyncBulkhead
from bulkhead.client.config import Profile, load_profile
from bulkhead.client.transport import RetryPolicy
from bulkhead.errors import BulkheadError
from bulkhead.v1 import session_pb2
from scripts.local_platform import BIN, LocalPlatform
from service.tls import channel_credentials
from tests.simulator.commands import run_command

ONCE = RetryPolicy(attempts=1)
"""No repetition: a test sees what the platform said first."""


def profile_of(platform: LocalPlatform, name: str, **changes: Any) -> Profile:
    """Return a profile of the platform, changed."""
    return replace(load_profile(name, path=platform.client_config), **changes)


def client(platform: LocalPlatform, name: str = "acme", **changes: Any) -> AsyncBulkhead:
    """Return a client that repeats nothing."""
    return AsyncBulkhead(profile=profile_of(platform, name, **changes), retry=ONCE)


async def refusal(work: Any) -> tuple[BulkheadError, float]:
    """Return the typed error that ``work`` ends with, and how long that took in seconds."""
    began = time.monotonic()
    try:
        await work
    except BulkheadError as error:
        check_text(error.message)
        return error, time.monotonic() - began
    raise AssertionError("it was not refused")


def check_text(text: str) -> None:
    """Fail when a person would see the inside of a program."""
    for mark in ("Traceback", 'File "', "sqlalchemy", "sqlite3.", "grpc._", "0x7f", "\n"):
        assert mark not in text, text


def cli(platform: LocalPlatform, name: str, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command as a person with profile ``name`` would; no stack trace may reach them."""
    profile = {"BULKHEAD_CONFIG": str(platform.client_config), "BULKHEAD_PROFILE": name}
    done = run_command([str(BIN / command[0]), *command[1:]], os.environ | profile, stdin=stdin)
    assert "Traceback" not in done.stdout + done.stderr
    return done


def channel(platform: LocalPlatform, port: str = "public", *, roots: bytes | None = None) -> grpc.aio.Channel:
    """Return a channel without the SDK's care."""
    authority = json.loads((platform.root / "init.json").read_text())["authority"]
    credentials = channel_credentials(roots or Path(authority).read_bytes(), None)
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    return grpc.aio.secure_channel(f"localhost:{platform.ports_wanted()[port]}", credentials, options=options)


def open_request(**changes: Any) -> session_pb2.OpenSessionRequest:
    """Return a well-formed request to open a session of the tiny model."""
    fields = {
        "request_id": ids.new_id(ids.REQUEST),
        "model": "tiny",
        "session_public_key": Ed25519PrivateKey.generate().public_key().public_bytes_raw(),
        "nonce": secrets.token_bytes(32),
    }
    return session_pb2.OpenSessionRequest(**(fields | changes))


def bearer(key: str) -> Sequence[tuple[str, str]]:
    """Return the metadata of a call with an API key."""
    return [("authorization", f"Bearer {key}")]


def rows(platform: LocalPlatform, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Return rows of the state database."""
    with closing(sqlite3.connect(f"file:{platform.root}/control/state.db?mode=ro", uri=True, timeout=10)) as database:
        return database.execute(query, parameters).fetchall()


def partitions(platform: LocalPlatform, tenant: str = "%") -> int:
    """Return how many partitions there ever were, of the tenants whose name is like ``tenant``."""
    query = "select count(*) from partitions join tenants using (tenant_id) where tenants.name like ?"
    return int(rows(platform, query, tenant)[0][0])


def workers(platform: LocalPlatform) -> set[int]:
    """Return the process ids of the platform's workers."""
    agents = {entry.pid for entry in platform.processes.remembered() if entry.name in platform.agent_ids}
    return {pid for agent in agents for pid, command in children(agent) if " worker " in command}


def opa_pid(platform: LocalPlatform) -> int | None:
    """Return the process id of the serving OPA, None while there is none."""
    plane = next(entry.pid for entry in platform.processes.remembered() if entry.name == "control-plane")
    found = [pid for pid, command in children(plane) if "/opa run --server" in command]
    return found[-1] if found else None


def children(parent: int) -> Iterator[tuple[int, str]]:
    """Yield process id and command line of the live children of ``parent``."""
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            state, ppid = (directory / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if int(ppid) == parent and state != "Z":
            yield int(directory.name), command


def wait_until(holds: Callable[[], object], *, timeout_s: float, what: str) -> float:
    """Wait until ``holds`` returns something true; return after how many seconds that was."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < timeout_s, f"waited {timeout_s} s in vain until {what}"
        time.sleep(0.02)
    return time.monotonic() - began


def decisions(platform: LocalPlatform, officer: str = "officer") -> list[dict[str, Any]]:
    """Return the decisions that an officer's ``bulkhead audit list`` shows."""
    done = cli(platform, officer, "bulkhead", "audit", "list", "--json", "--limit", "100", "--action", "decision")
    assert done.returncode == 0, done.stderr
    return [record["fields"] for record in json.loads(done.stdout)]


async def reflected(on: grpc.aio.Channel) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """Return the services that a server tells of by reflection, each with the file it stands in."""
    stub = reflection_pb2_grpc.ServerReflectionStub(on)  # type: ignore[no-untyped-call]

    async def ask(request: reflection_pb2.ServerReflectionRequest) -> reflection_pb2.ServerReflectionResponse:
        async for reply in stub.ServerReflectionInfo(iter([request]), timeout=10):
            return reply
        raise AssertionError("reflection did not answer")

    listed = await ask(reflection_pb2.ServerReflectionRequest(list_services=""))
    services: dict[str, descriptor_pb2.FileDescriptorProto] = {}
    for service in listed.list_services_response.service:
        reply = await ask(reflection_pb2.ServerReflectionRequest(file_containing_symbol=service.name))
        for data in reply.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(data)
            if any(f"{file.package}.{found.name}" == service.name for found in file.service):
                services[service.name] = file
    return services


async def reflected_methods(on: grpc.aio.Channel) -> dict[str, descriptor_pb2.MethodDescriptorProto]:
    """Return the methods that a server tells of by reflection, by full name."""
    return {
        f"/{name}/{method.name}": method
        for name, file in (await reflected(on)).items()
        for found in file.service
        if f"{file.package}.{found.name}" == name
        for method in found.method
    }


async def raw_call(
    on: grpc.aio.Channel, method: str, message: bytes, *, key: str | None = None, timeout_s: float = 20.0
) -> grpc.aio.AioRpcError | None:
    """Send bytes to a method, whatever its shape; return how it was refused, None if it was not."""
    call = on.unary_stream(method)(message, metadata=bearer(key) if key else None, timeout=timeout_s)
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        check_text(error.details() or "")
        return error
    return None
