"""Policy inputs, signed bundles and a talkative fake of OPA for tests."""

import asyncio
import contextlib
import dataclasses
import functools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from control_plane.authz.bundle import VerifiedBundle, build_bundle
from control_plane.authz.connection import OpaConnection
from control_plane.authz.input import (
    ACTIONS,
    AdminResource,
    BundleResource,
    Context,
    LogResource,
    PlatformFacts,
    PolicyInput,
    Resource,
    SessionResource,
    Subject,
    TenantFacts,
)
from control_plane.authz.opa_tool import find_opa
from control_plane.authz.sources import read_sources
from control_plane.authz.supervisor import OpaSupervisor
from control_plane.domain.tiers import Tier

POLICIES: Final = Path(__file__).parents[2] / "policies"
TENANT: Final = "tenant_01h455vb4pex5vsknk084sn02q"
OTHER_TENANT: Final = "tenant_01h455vb4pex5vsknk084sn02r"
DEVELOPER: Final = "subj_01h455vb4pex5vsknk084sn02q"
OFFICER: Final = "subj_01h455vb4pex5vsknk084sn02r"
SESSION: Final = "sess_01h455vb4pex5vsknk084sn02q"
MODEL: Final = "smollm2-135m-instruct"
REVISION: Final = "ab" * 32

PLATFORM: Final = PlatformFacts(
    tiers=(Tier.PROCESS, Tier.MIG, Tier.GPU), regions=("eu-central", "us-east"), simulated=True
)
FACTS: Final = TenantFacts(
    id=TENANT,
    status="active",
    regions=("eu-central", "us-east"),
    packs=(),
    models=(MODEL,),
    minimum_tier=Tier.PROCESS,
    session_limit=100,
    sessions_open=0,
    max_output_tokens=256,
    revision=1,
)


def open_session(*, facts: dict[str, Any] | None = None, **properties: Any) -> PolicyInput:
    """Return a developer's `session.open`, with some facts of the tenant and properties of the session replaced."""
    session = SessionResource(id=SESSION, tenant=TENANT, model=MODEL, model_digest="0" * 64)
    return PolicyInput(
        subject=Subject(id=DEVELOPER, roles=("developer",), tenant=TENANT, credential="api_key"),
        action="session.open",
        resource=dataclasses.replace(session, **properties),
        context=Context(
            time_us=1_767_225_600_000_000,
            network="public",
            tenant=dataclasses.replace(FACTS, **(facts or {})),
            platform=PLATFORM,
        ),
    )


@functools.cache
def signing_key() -> ec.EllipticCurvePrivateKey:
    """Return the key of this test run."""
    return ec.generate_private_key(ec.SECP256R1())


@functools.cache
def bundle(number: int = 1) -> VerifiedBundle:
    """Return a signed bundle of the repository's policies."""
    return build_bundle(
        read_sources(POLICIES), number=number, created_us=number, signing_key=signing_key(), opa=find_opa()
    )


@contextlib.asynccontextmanager
async def supervised(number: int = 1, **options: Any) -> AsyncIterator[OpaSupervisor]:
    """Run a supervised OPA with the repository's policies."""
    supervisor = OpaSupervisor(public_key=signing_key().public_key(), **options)
    await supervisor.start(bundle(number).data)
    try:
        yield supervisor
    finally:
        await supervisor.close()


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def fake_opa(answer: Answer, *, timeout_s: float = 3.0) -> AsyncIterator[OpaConnection]:
    """Serve TCP connections with ``answer`` and give a connection that takes the server for OPA."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await answer(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connection = OpaConnection(host="127.0.0.1", port=port, token="t", revision=REVISION, timeout_s=timeout_s)
    await connection.open()
    try:
        yield connection
    finally:
        await connection.close()
        server.close()


def replying(body: bytes, *, status: str = "200 OK", headers: str = "") -> Answer:
    """Return an answer that reads one request after the other and replies to each with ``body``."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0]) if b"content-length" in head else 0
            await reader.readexactly(length)
            lines = (f"HTTP/1.1 {status}", "content-type: application/json", f"content-length: {len(body)}", headers)
            writer.write("\r\n".join((*filter(None, lines), "", "")).encode() + body)
            await writer.drain()

    return answer


def random_input(rng: random.Random) -> PolicyInput:
    """Return some well-formed question; some one in four is allowed."""

    def mostly(good: Any, *others: Any) -> Any:
        return good if rng.random() < 0.93 else rng.choice(others)

    action = rng.choice([*ACTIONS, *["session.open"] * len(ACTIONS)])
    domain = ACTIONS[action].split("/")[1]
    about = None if domain == "policy" else mostly(TENANT, OTHER_TENANT, TENANT if domain == "session" else None)
    role = {"session": "developer", "audit": "officer"}.get(domain, "admin")
    classes = ("public", "internal", "personal", "special", "phi", "odd")
    facts = dataclasses.replace(
        FACTS,
        id=about or TENANT,
        status=mostly("active", "suspended", "closed"),
        regions=tuple(rng.sample(("eu-central", "us-east", "moon"), rng.choice([0, 2, 3, 3, 3, 3]))),
        packs=rng.choice([(), (), ("hipaa",), ("gdpr",), ("gdpr", "hipaa"), ("gdpr",)]),
        minimum_tier=mostly(Tier.PROCESS, Tier.MIG, Tier.GPU),
        sessions_open=mostly(0, 99, 100, 101),
        max_output_tokens=mostly(256, 0),
    )
    resource: Resource
    match domain:
        case "session":
            resource = SessionResource(
                id=SESSION,
                tenant=about,
                model=mostly(MODEL, "other"),
                model_digest="0" * 64,
                model_status=mostly("active", "retired"),
                minimum_tier=mostly(None, *Tier),
                region=mostly(None, "eu-central", "us-east", "moon", "mars"),
                purpose=rng.choice([None, "treatment", "treatment", "support", "support", "marketing"]),
                data_classes=tuple(rng.sample(classes, rng.choice([0, 0, 1, 1, 2]))),
                max_output_tokens=mostly(None, 1, 256, 257),
                padding=rng.choice(["off", "default"]),
            )
        case "tenancy":
            resource = AdminResource(type="tenant", id=about, tenant=about)
        case "audit":
            resource = LogResource(tenant=about)
        case _:
            resource = BundleResource(
                number=rng.choice([None, 1, 2, 3, 3, 3]),
                published_by=mostly(OFFICER, None, DEVELOPER),
                was_active=rng.random() < 0.5,
                active_number=2,
            )
    return PolicyInput(
        subject=Subject(
            id=DEVELOPER,
            roles=mostly((role,), (), ("developer",), ("officer",), ("admin",), ("admin", "officer")),
            tenant=mostly(None if role == "admin" else about, TENANT, OTHER_TENANT, None),
            credential=rng.choice(["api_key", "certificate"]),
            type=mostly("user", "service"),
        ),
        action=action,
        resource=resource,
        context=Context(
            time_us=rng.randrange(2**50),
            network=rng.choice(["loopback", "private", "public"]),
            tenant=None if about is None else facts,
            platform=mostly(PLATFORM, dataclasses.replace(PLATFORM, tiers=(Tier.PROCESS,))),
        ),
    )
