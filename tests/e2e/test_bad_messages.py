"""Messages and bytes that no client of ours would send: each a clear status, never a hang, and the service goes on."""

import asyncio
import contextlib
import os
import ssl
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from bulkhead.client.session import AsyncSession
from bulkhead.errors import InvalidRequestError, MessageTooLargeError
from bulkhead.v1 import inference_pb2
from scripts.local_platform import LocalPlatform
from tests.simulator.live import channel, check_text, cli, client, profile_of, raw_call, reflected_methods, workers
from tests.simulator.session_world import code_of

pytestmark = pytest.mark.e2e

HUNDRED_MB = 100_000_000
ANSWER_S = 15.0
GARBAGE = b"\xff" * 64  # a tag without end
BAD_TEXT = b"\xff\xfe\xfd\xfc"
ROLES = {
    "bulkhead.v1.SessionService": "acme",
    "bulkhead.v1.SessionQueryService": "acme",
    "bulkhead.v1.AuditService": "officer",
}
GENERATE = "/bulkhead.v1.InferenceService/Generate"
TEXT = descriptor_pb2.FieldDescriptorProto.TYPE_STRING


def text_field(message: str) -> int | None:
    """Return the number of a string field of a message type, None if it has none."""
    found = descriptor_pool.Default().FindMessageTypeByName(message)
    return next((field.number for field in found.fields if field.type == TEXT), None)


def keys_of(platform: LocalPlatform, method: str) -> str:
    """Return an API key that reaches a method."""
    key = profile_of(platform, ROLES.get(method.split("/")[1], "admin")).api_key
    assert key is not None
    return key


async def test_garbage_to_every_method(platform: LocalPlatform) -> None:
    """Bytes that are no message are INVALID_ARGUMENT MALFORMED_REQUEST at each method that reflection tells of."""
    async with channel(platform) as opened:
        methods = [method for method in await reflected_methods(opened) if method.startswith("/bulkhead.")]
        assert len(methods) > 25
        for method in methods:
            error = await raw_call(opened, method, GARBAGE, key=keys_of(platform, method))
            assert error is not None, method
            assert (error.code(), code_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST"), method


async def test_text_that_is_not_utf8_to_every_method(platform: LocalPlatform) -> None:
    """A string field with invalid UTF-8 is INVALID_ARGUMENT MALFORMED_REQUEST at each method that has one."""
    tried = 0
    async with channel(platform) as opened:
        for method, described in (await reflected_methods(opened)).items():
            number = text_field(described.input_type.lstrip(".")) if method.startswith("/bulkhead.") else None
            if number is None:
                continue
            tried += 1
            message = bytes([number << 3 | 2, len(BAD_TEXT)]) + BAD_TEXT
            error = await raw_call(opened, method, message, key=keys_of(platform, method))
            assert error is not None, method
            assert (error.code(), code_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST"), method
    assert tried > 15


async def test_a_method_that_is_not_there(platform: LocalPlatform) -> None:
    """An unknown service, an unknown method and a path that is none are UNIMPLEMENTED."""
    async with channel(platform) as opened:
        for method in ("/bulkhead.v1.SessionService/Drop", "/bulkhead.v9.Root/Shell", "/x"):
            error = await raw_call(
                opened, method, b"", key=keys_of(platform, method if method.count("/") > 1 else "/x/y")
            )
            assert error is not None
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_hundred_megabytes_to_the_control_plane(platform: LocalPlatform) -> None:
    """A 100 MB message is RESOURCE_EXHAUSTED at once and takes no memory; with the SDK MESSAGE_TOO_LARGE, unsent."""
    plane = next(entry.pid for entry in platform.processes.remembered() if entry.name == "control-plane")
    before_mib = peak_mib(plane)
    async with channel(platform) as opened:
        method = "/bulkhead.v1.SessionService/OpenSession"
        began = time.monotonic()
        error = await raw_call(opened, method, bytes(HUNDRED_MB), key=keys_of(platform, method))
        assert error is not None
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert time.monotonic() - began < ANSWER_S
    assert peak_mib(plane) - before_mib < 50
    async with client(platform) as sdk:
        with pytest.raises(MessageTooLargeError) as caught:
            await sdk.open_session(purpose="p" * HUNDRED_MB)
        check_text(caught.value.message)
        async with sdk.open_session():
            pass


def peak_mib(pid: int) -> float:
    """Return the largest memory that a process ever had resident."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1_024


@pytest.fixture
async def session(platform: LocalPlatform) -> Any:
    """An open session, and at the end the proof that its worker still serves."""
    async with client(platform) as opened, opened.open_session() as session:
        before = workers(platform)
        yield session
        assert (await session.generate_text("hello", max_tokens=4)).receipt.status == "ok"
        assert workers(platform) == before


async def at_worker(session: AsyncSession, message: bytes) -> grpc.aio.AioRpcError:
    """Send bytes to the session's worker; return its refusal."""
    error = await raw_call(session.link.channel.raw, GENERATE, message)
    assert error is not None
    return error


async def test_garbage_to_a_worker(session: AsyncSession) -> None:
    """What is no message is MALFORMED_REQUEST, an envelope that is none a typed error; the worker serves on."""
    error = await at_worker(session, GARBAGE)
    assert (error.code(), code_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")
    for envelope, chunks in (
        (b"", []),
        (os.urandom(300), [os.urandom(64)]),
        (b"{}", [b""] * 1_000),
        (bytes(10**6), []),
    ):
        error = await at_worker(
            session, inference_pb2.SealedRequest(envelope=envelope, chunk=chunks).SerializeToString()
        )
        assert code_of(error), "a status of ours, not of the transport"
        assert error.code() not in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}


async def test_a_hundred_megabytes_to_a_worker(platform: LocalPlatform, session: AsyncSession) -> None:
    """The SDK refuses a 100 MB prompt before sealing; a raw 100 MB message is RESOURCE_EXHAUSTED; the worker serves."""
    with pytest.raises((MessageTooLargeError, InvalidRequestError)) as caught:
        session.generate("x" * HUNDRED_MB)
    check_text(caught.value.message)
    began = time.monotonic()
    big = grpc.aio.secure_channel(*dialled(session), options=[*dialled_options(session)])
    async with big:
        error = await raw_call(big, GENERATE, bytes(HUNDRED_MB))
    assert error is not None
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert time.monotonic() - began < ANSWER_S
    done = cli(platform, "acme", "bulkhead", "chat", stdin="x" * HUNDRED_MB)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.strip().splitlines()[-1].startswith("error ")


def dialled(session: AsyncSession) -> tuple[str, grpc.ChannelCredentials]:
    """Return address and credentials of the session's worker, as the SDK has verified them."""
    certificate = ssl.DER_cert_to_PEM_cert(session.link.received.offer.worker_certificate).encode()
    return session.link.received.address, grpc.ssl_channel_credentials(certificate)


def dialled_options(session: AsyncSession) -> list[tuple[str, Any]]:
    """Return the options of a channel to the session's worker that sends anything."""
    return [
        ("grpc.ssl_target_name_override", session.link.received.offer.authority),
        ("grpc.max_send_message_length", -1),
    ]


@pytest.mark.parametrize("port", ["public", "public_mtls", "internal"])
async def test_bytes_that_are_no_tls(platform: LocalPlatform, port: str) -> None:
    """Plain HTTP, noise and silence on a port end with the connection or are left alone; calls go on meanwhile."""
    number = platform.ports_wanted()[port]
    streams = []
    for said in (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", os.urandom(10_000), b""):
        reader, writer = await asyncio.open_connection("127.0.0.1", number)
        writer.write(said)
        await writer.drain()
        streams.append((said, reader, writer))
    async with client(platform) as opened, opened.open_session():
        pass
    for said, reader, writer in streams:
        if said:
            got = await asyncio.wait_for(reader.read(65_536), 10)
            assert b"Traceback" not in got
        writer.close()


async def test_noise_at_the_ingress(platform: LocalPlatform, session: AsyncSession) -> None:
    """A tray's ingress drops what is no TLS hello, or names no worker; sessions go on."""
    host, _, port = session.link.received.address.rpartition(":")
    for said in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(20_000), b"\x16\x03\x01\xff\xff" + bytes(70_000)):
        reader, writer = await asyncio.open_connection(host, int(port))
        with contextlib.suppress(ConnectionError):  # being hung up on is what is wanted
            writer.write(said)
            await writer.drain()
            assert len(await asyncio.wait_for(reader.read(1_000), 15)) < 100  # nothing, or a TLS alert
        writer.close()
