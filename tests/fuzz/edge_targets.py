"""Fuzz targets of control plane and data plane: what strangers, agents, OPA and policies' authors send them.

Policy bundles are signed here whatever they hold, so that the fuzzer gets behind the signature.
"""

import gzip
import io
import json
import ssl
import tarfile
from contextlib import suppress

from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import DecodeError

from bulkhead.encoding import canonical_json
from control_plane.authz import bundle
from control_plane.authz.archive import pack, unpack
from control_plane.authz.decision import parse_decision
from control_plane.domain.api_keys import ApiKey
from control_plane.domain.fleet import Hello
from control_plane.domain.inventory import Inventory
from control_plane.rpc.fleet_convert import agent_report
from data_plane.ingress.client_hello import MAX_HELLO_BYTES, parse_server_name
from data_plane.session.events import (
    EventKind,
    PartitionStep,
    ReceiptRecorded,
    RequestRefused,
    decode_event,
    encode_event,
    kind_of,
)
from service.bulkhead_fleet.v1 import fleet_pb2
from service.tls import parse_certificate
from tests.fuzz.registry import FuzzTarget

_KEY = ec.derive_private_key(7, ec.SECP256R1())
_KINDS = tuple(EventKind)


def _hello(data: bytes) -> None:
    name = parse_server_name(data)
    if name is not None and parse_server_name(data + b"\0") != name:
        raise AssertionError("bytes behind the hello change its name")


def _hellos() -> list[bytes]:
    made = []
    for versions in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.maximum_version = versions
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        side = context.wrap_bio(incoming, outgoing, server_hostname="part-1.w.bulkhead.test")
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
        made.append(outgoing.read())
    return made


def _agent(data: bytes) -> None:
    """Read an agent's message; the inventory that is taken is stored, and read again."""
    message = fleet_pb2.AgentMessage()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return
    report = agent_report(message)
    if isinstance(report, Hello):
        stored = json.loads(canonical_json(report.inventory.to_json()))
        if Inventory.from_json(stored) != report.inventory:
            raise AssertionError("an inventory changes where it is stored")


def _agents() -> list[bytes]:
    gpu = fleet_pb2.Gpu(uuid="GPU-1", product="H100", memory_mib=81_559, memory_slices=8, compute_slices=7)
    inventory = fleet_pb2.Inventory(
        rack="r1", tray=1, region="eu", simulated=True, tiers=["process", "gpu"], gpus=[gpu],
        ingress_address="10.0.0.1:443", evidence_kind="simulated", process_slots=2,
    )  # fmt: skip
    hello = fleet_pb2.Hello(agent_id="r1-t1", boot_id="boot_1", spool_id="s", inventory=inventory)
    receipt = fleet_pb2.ReceiptEvent(
        session_id="s", session_number=1, tenant_id="t", receipt_digest=bytes(32), status="ok"
    )
    event = fleet_pb2.Event(spool_id="s", seq=1, partition_id="p", ts_us=1, receipt=receipt)
    created = fleet_pb2.Result(command_id="c", created=fleet_pb2.PartitionCreated(authority="a:1"))
    return [
        message.SerializeToString(deterministic=True)
        for message in (
            fleet_pb2.AgentMessage(hello=hello),
            fleet_pb2.AgentMessage(event=event),
            fleet_pb2.AgentMessage(result=created),
        )
    ]


def _bundle(data: bytes) -> None:
    """Read an archive, packed or (first byte 1) to be packed here; then verify it as if it had been signed."""
    files = unpack(gzip.compress(data[1:], 1) if data[:1] == b"\x01" else data[1:])
    files.pop(".signatures.json", None)
    signed = pack(files | {".signatures.json": bundle._sign(files, _KEY)})
    bundle.verify_bundle(signed, _KEY.public_key())


def _bundles() -> list[bytes]:
    files = {"data.json": b'{"bulkhead":{}}', "a/b.rego": b"package bulkhead.a\n"}
    files[".manifest"] = bundle._manifest(bundle._digest(files), 1, 0)
    packed = pack(files | {".signatures.json": bundle._sign(files, _KEY)})
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return [b"\0" + packed, b"\1" + stream.getvalue()]


def _decision(data: bytes) -> None:
    try:
        result = json.loads(data)
    except (ValueError, RecursionError):  # the client's to refuse
        return
    parse_decision(result, bundle_digest="b", input_digest="i")


def _decisions() -> list[bytes]:
    return [
        b'{"allow":true,"obligations":[{"tier":"mig","type":"min_tier"},{"days":3,"type":"retention"}],"reasons":[]}',
        b'{"allow":false,"obligations":[],"reasons":[{"code":"A_B","message":"no","policy":"tenancy"}]}',
    ]


def _api_key(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    if ApiKey.parse(text).text() != text:
        raise AssertionError("a key has one form")


def _api_keys() -> list[bytes]:
    return [ApiKey.new("cred_01h455vb4pex5vsknk084sn02q", random_bytes=bytes).text().encode()]


def _certificates() -> list[bytes]:
    from tests.fuzz.attestation_targets import TARGETS as ATTESTATION

    return list(next(target for target in ATTESTATION if target.name == "certificates").seeds())


def _event(data: bytes) -> None:
    """Read an event of the agent's spool; the first byte chooses its kind."""
    if not data:
        return
    event = decode_event(_KINDS[data[0] % len(_KINDS)], data[1:])
    if encode_event(event) != data[1:]:
        raise AssertionError("two forms of one event")


def _events() -> list[bytes]:
    events = (
        ReceiptRecorded(
            partition_id="p", ts_us=1, tenant_id="t", session_id="s", session_number=1, request_id="r",
            receipt_digest=bytes(32), prompt_tokens=1, completion_tokens=2, status="ok",
        ),
        PartitionStep(
            partition_id="p", ts_us=1, tenant_id="", from_state="", to_state="ready", reason="because", fence=1 << 60
        ),
        RequestRefused(partition_id="p", ts_us=1, code="SEAL", session_id="", tenant_id=""),
    )  # fmt: skip
    return [bytes([_KINDS.index(kind_of(event))]) + encode_event(event) for event in events]


TARGETS = (
    FuzzTarget(name="client-hello", parse=_hello, seeds=_hellos, max_bytes=MAX_HELLO_BYTES + 64),
    FuzzTarget(name="agent-message", parse=_agent, seeds=_agents, max_bytes=4_096),
    FuzzTarget(name="policy-bundle", parse=_bundle, seeds=_bundles, max_bytes=16_384),
    FuzzTarget(name="policy-result", parse=_decision, seeds=_decisions, max_bytes=2_048),
    FuzzTarget(name="api-key", parse=_api_key, seeds=_api_keys, max_bytes=256),
    FuzzTarget(name="peer-certificate", parse=parse_certificate.__wrapped__, seeds=_certificates, max_bytes=4_096),
    FuzzTarget(name="spooled-event", parse=_event, seeds=_events, max_bytes=2_048),
)
