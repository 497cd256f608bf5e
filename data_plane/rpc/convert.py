"""Between ``bulkhead_fleet.v1`` messages and the agent's own types."""

from typing import Final

from bulkhead.errors import MalformedRequestError
from data_plane.ports import TrayInventory
from data_plane.session.commands import (
    Attest,
    Attested,
    Command,
    CreatePartition,
    Failed,
    Greeting,
    LoadModel,
    PartitionBooted,
    PartitionCreated,
    PartitionStatus,
    Release,
    Result,
)
from data_plane.session.events import PartitionStep, ReceiptRecorded
from data_plane.session.spool import SpooledEvent
from service.bulkhead_fleet.v1 import fleet_pb2 as pb

__all__ = ["command_from", "event_message", "hello_message", "result_message", "status_message"]

MAX_MESSAGE_CHARS: Final = 1024
_CREATE_FIELDS: Final = tuple(name for name in CreatePartition.__slots__ if name != "gpu_uuids")


def hello_message(greeting: Greeting) -> pb.Hello:
    """Return the first message of a stream."""
    return pb.Hello(
        agent_id=greeting.agent_id,
        boot_id=greeting.boot_id,
        spool_id=greeting.spool_id,
        last_event_seq=greeting.last_event_seq,
        inventory=_inventory(greeting.inventory, greeting),
        partitions=[status_message(status) for status in greeting.partitions],
        evidence_public_key=greeting.evidence_public_key,
    )


def status_message(status: PartitionStatus) -> pb.PartitionStatus:
    """Return one partition's line of a greeting or heartbeat."""
    return pb.PartitionStatus(**{name: getattr(status, name) for name in PartitionStatus.__slots__})


def command_from(message: pb.Command) -> Command:
    """Return the command in a message; its values are checked by the agent.

    Raises:
        MalformedRequestError: an order that this build does not know.
    """
    order: CreatePartition | LoadModel | Attest | Release
    match message.WhichOneof("command"):
        case "create":
            fields = {name: getattr(message.create, name) for name in _CREATE_FIELDS}
            order = CreatePartition(gpu_uuids=tuple(message.create.gpu_uuids), **fields)
        case "attest":
            order = Attest(
                nonce=message.attest.nonce,
                session_context=message.attest.session_context,
                not_after_s=message.attest.not_after_unix_s,
                boot=message.attest.boot,
            )
        case "load":
            order = LoadModel(**{name: getattr(message.load, name) for name in LoadModel.__slots__})
        case "release":
            order = Release(reason=message.release.reason, drain_until_ms=message.release.drain_until_unix_ms)
        case _:
            raise MalformedRequestError("a command without an order that this agent knows")
    return Command(
        command_id=message.command_id,
        partition_id=message.partition_id,
        fence=message.fence,
        deadline_ms=message.deadline_unix_ms,
        order=order,
    )


def result_message(command_id: str, result: Result) -> pb.Result:
    """Return the answer to a command."""
    if isinstance(result, PartitionCreated):
        created = pb.PartitionCreated(
            authority=result.authority,
            worker_certificate=result.certificate,
            keyset=result.keyset,
            context_length=result.context_length,
        )
        return pb.Result(command_id=command_id, created=created)
    if isinstance(result, PartitionBooted):
        return pb.Result(command_id=command_id, booted=pb.PartitionBooted(keyset=result.keyset))
    if isinstance(result, Attested):
        attested = pb.Attested(evidence=result.evidence, keyset=result.keyset, worker_certificate=result.certificate)
        return pb.Result(command_id=command_id, attested=attested)
    if isinstance(result, Failed):
        failure = pb.Failure(code=result.code, message=result.message[:MAX_MESSAGE_CHARS])
        return pb.Result(command_id=command_id, failure=failure)
    return pb.Result(command_id=command_id, released=pb.Released(scrubbed=result.scrubbed, detail=result.detail))


def event_message(spooled: SpooledEvent, *, spool_id: str) -> pb.Event:
    """Return a spooled event."""
    event = spooled.event
    message = pb.Event(seq=spooled.seq, partition_id=event.partition_id, ts_us=event.ts_us, spool_id=spool_id)
    if isinstance(event, ReceiptRecorded):
        fields = {
            name: getattr(event, name) for name in ReceiptRecorded.__slots__ if name not in {"partition_id", "ts_us"}
        }
        message.receipt.CopyFrom(pb.ReceiptEvent(**fields))
    elif isinstance(event, PartitionStep):
        message.partition.CopyFrom(
            pb.PartitionEvent(
                tenant_id=event.tenant_id,
                from_state=event.from_state,
                to_state=event.to_state,
                reason=event.reason,
                fence=event.fence,
            )
        )
    else:
        message.refusal.CopyFrom(
            pb.RefusalEvent(code=event.code, session_id=event.session_id, tenant_id=event.tenant_id)
        )
    return message


def _inventory(inventory: TrayInventory, greeting: Greeting) -> pb.Inventory:
    return pb.Inventory(
        rack=inventory.rack,
        tray=inventory.tray,
        region=inventory.region,
        simulated=inventory.simulated,
        tiers=[tier.value for tier in inventory.tiers],
        gpus=[
            pb.Gpu(
                uuid=gpu.uuid,
                index=gpu.index,
                product=gpu.product,
                memory_mib=gpu.memory_mib,
                memory_slices=gpu.memory_slices,
                compute_slices=gpu.compute_slices,
                power_limit_w=gpu.power_limit_w,
                nvlink_domain=gpu.nvlink_domain,
            )
            for gpu in inventory.gpus
        ],
        mig_profiles=[
            pb.MigProfile(
                profile_id=profile.profile_id,
                compute_slices=profile.compute_slices,
                memory_slices=profile.memory_slices,
                memory_mib=profile.memory_mib,
                max_instances=profile.max_instances,
                starts=profile.starts,
            )
            for profile in inventory.mig_profiles
        ],
        ingress_address=greeting.ingress_address,
        evidence_kind=greeting.evidence_kind,
        process_slots=inventory.process_slots,
        driver_version=inventory.driver_version,
    )
