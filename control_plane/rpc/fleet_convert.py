"""Messages of ``bulkhead_fleet.v1`` to values and back: the only place where the two meet."""

from collections.abc import Sequence
from typing import Final

from bulkhead.errors import InvalidRequestError
from control_plane.domain.fleet import (
    AgentReport,
    Attested,
    AttestOrder,
    Command,
    CommandProgress,
    CommandResult,
    ControlNotice,
    CreateOrder,
    EventAck,
    Failure,
    Heartbeat,
    Hello,
    LeaseGrant,
    LoadOrder,
    Outcome,
    PartitionBooted,
    PartitionCreated,
    PartitionReport,
    PartitionStep,
    ReceiptReported,
    RefusalReported,
    Released,
    ReleaseOrder,
    SpooledEvent,
    Welcome,
)
from control_plane.domain.inventory import GpuInfo, Inventory
from control_plane.domain.tiers import tier_from_label
from control_plane.placement.geometry import MigProfile
from service.bulkhead_fleet.v1 import fleet_pb2 as pb

__all__ = ["agent_report", "control_message"]

MAX_ITEMS: Final = 1_024  # of any repeated field; the domain's own bounds are lower and say what is wrong
MAX_TEXT_CHARS: Final = 512
_PHASES: Final = ("creating", "loading")


def agent_report(message: pb.AgentMessage) -> AgentReport:
    """Return what an agent says.

    Raises:
        InvalidRequestError: an empty message, a field out of bounds, or an unknown tier.
    """
    match message.WhichOneof("message"):
        case "hello":
            return _hello(message.hello)
        case "heartbeat":
            return Heartbeat(partitions=_partitions(message.heartbeat.partitions))
        case "result":
            return CommandResult(command_id=message.result.command_id, outcome=_outcome(message.result))
        case "progress":
            return _progress(message.progress)
        case "event":
            return _event(message.event)
        case _:
            raise InvalidRequestError("an agent's message says nothing that this build knows")


def control_message(notice: ControlNotice) -> pb.ControlMessage:
    """Return a notice as a message."""
    match notice:
        case Welcome():
            return pb.ControlMessage(
                welcome=pb.Welcome(committed_event_seq=notice.committed_event_seq, ticket_issuers=notice.ticket_issuers)
            )
        case Command():
            return pb.ControlMessage(command=_command(notice))
        case EventAck():
            return pb.ControlMessage(event_ack=pb.EventAck(seq=notice.seq))
        case LeaseGrant():
            return pb.ControlMessage(
                lease=pb.Lease(
                    valid_until_unix_ms=notice.valid_until_unix_ms,
                    committed_event_seq=notice.committed_event_seq,
                    revoked_sessions=notice.revoked_sessions,
                    ticket_issuers=notice.ticket_issuers,
                )
            )


def _hello(message: pb.Hello) -> Hello:
    return Hello(
        agent_id=message.agent_id,
        boot_id=message.boot_id,
        spool_id=message.spool_id,
        last_event_seq=message.last_event_seq,
        inventory=_inventory(message.inventory),
        partitions=_partitions(message.partitions),
        evidence_public_key=message.evidence_public_key,
    )


def _inventory(message: pb.Inventory) -> Inventory:
    _bounded(message.tiers, "inventory.tiers")
    _bounded(message.gpus, "inventory.gpus")
    _bounded(message.mig_profiles, "inventory.mig_profiles")
    return Inventory(
        rack=message.rack,
        tray=message.tray,
        region=message.region,
        simulated=message.simulated,
        tiers=frozenset(tier_from_label(tier) for tier in message.tiers),
        gpus=tuple(
            GpuInfo(
                uuid=gpu.uuid,
                index=gpu.index,
                product=gpu.product,
                memory_mib=gpu.memory_mib,
                memory_slices=gpu.memory_slices,
                compute_slices=gpu.compute_slices,
            )
            for gpu in message.gpus
        ),
        profiles=tuple(
            MigProfile(
                profile_id=profile.profile_id,
                compute_slices=profile.compute_slices,
                memory_slices=profile.memory_slices,
                memory_mib=profile.memory_mib,
                max_instances=profile.max_instances,
                starts=tuple(profile.starts),
            )
            for profile in message.mig_profiles
        ),
        ingress_address=message.ingress_address,
        evidence_kind=message.evidence_kind,
        process_slots=message.process_slots,
        driver_version=_text(message.driver_version, "inventory.driver_version"),
    )


def _partitions(messages: Sequence[pb.PartitionStatus]) -> tuple[PartitionReport, ...]:
    _bounded(messages, "partitions")
    return tuple(
        PartitionReport(
            partition_id=_text(message.partition_id, "partition_id"),
            fence=message.fence,
            state=_text(message.state, "state"),
            running_requests=message.running_requests,
            unacknowledged_receipts=message.unacknowledged_receipts,
        )
        for message in messages
    )


def _outcome(message: pb.Result) -> Outcome:
    match message.WhichOneof("result"):
        case "created":
            return PartitionCreated(
                authority=message.created.authority,
                worker_certificate=message.created.worker_certificate,
                keyset=message.created.keyset,
                context_length=message.created.context_length,
            )
        case "booted":
            return PartitionBooted(keyset=message.booted.keyset)
        case "attested":
            return Attested(
                evidence=message.attested.evidence,
                keyset=message.attested.keyset,
                worker_certificate=message.attested.worker_certificate,
            )
        case "released":
            return Released(scrubbed=message.released.scrubbed, detail=_cut(message.released.detail))
        case "failure":
            return Failure(code=_cut(message.failure.code), message=_cut(message.failure.message))
        case _:
            raise InvalidRequestError("a command's result says nothing that this build knows")


def _progress(message: pb.Progress) -> CommandProgress:
    if message.phase not in _PHASES:
        raise InvalidRequestError(f"progress: phase is one of {', '.join(_PHASES)}")
    return CommandProgress(command_id=message.command_id, phase=message.phase, text=_cut(message.text))


def _event(message: pb.Event) -> SpooledEvent:
    event: ReceiptReported | PartitionStep | RefusalReported
    match message.WhichOneof("event"):
        case "receipt":
            receipt = message.receipt
            event = ReceiptReported(
                session_id=_text(receipt.session_id, "session_id"),
                session_number=receipt.session_number,
                tenant_id=_text(receipt.tenant_id, "tenant_id"),
                request_id=_text(receipt.request_id, "request_id"),
                receipt_digest=receipt.receipt_digest,
                prompt_tokens=receipt.prompt_tokens,
                completion_tokens=receipt.completion_tokens,
                status=_text(receipt.status, "status"),
            )
        case "partition":
            step = message.partition
            event = PartitionStep(
                tenant_id=_text(step.tenant_id, "tenant_id"),
                from_state=_text(step.from_state, "from_state"),
                to_state=_text(step.to_state, "to_state"),
                reason=_cut(step.reason),
                fence=step.fence,
            )
        case "refusal":
            refusal = message.refusal
            event = RefusalReported(
                code=_text(refusal.code, "code"),
                session_id=_text(refusal.session_id, "session_id"),
                tenant_id=_text(refusal.tenant_id, "tenant_id"),
            )
        case _:
            raise InvalidRequestError("an event says nothing that this build knows")
    return SpooledEvent(
        spool_id=message.spool_id,
        seq=message.seq,
        partition_id=_text(message.partition_id, "partition_id"),
        ts_us=message.ts_us,
        event=event,
    )


def _command(command: Command) -> pb.Command:
    message = pb.Command(
        command_id=command.command_id,
        partition_id=command.partition_id,
        fence=command.fence,
        deadline_unix_ms=command.deadline_unix_ms,
    )
    match command.order:
        case CreateOrder() as create:
            message.create.CopyFrom(
                pb.CreatePartition(
                    tenant_id=create.tenant_id,
                    tier=create.tier.label,
                    gpu_uuids=create.gpu_uuids,
                    mig_profile_id=create.mig_profile_id,
                    memory_slice_start=create.memory_slice_start,
                    memory_slices=create.memory_slices,
                    model_name=create.model_name,
                    model_path=create.model_path,
                    model_digest=create.model_digest,
                    memory_mib=create.memory_mib,
                    max_output_tokens=create.max_output_tokens,
                    manifest_digest=create.manifest_digest,
                    manifest_version=create.manifest_version,
                    tenant_root=create.tenant_root,
                )
            )
        case AttestOrder() as attest:
            message.attest.CopyFrom(
                pb.Attest(
                    nonce=attest.nonce,
                    session_context=attest.session_context,
                    not_after_unix_s=attest.not_after_unix_s,
                    boot=attest.boot,
                )
            )
        case LoadOrder() as load:
            message.load.CopyFrom(
                pb.LoadModel(
                    sealed_key=load.sealed_key,
                    nonce=load.nonce,
                    evidence_digest=load.evidence_digest,
                    decision_leaf_hash=load.decision_leaf_hash,
                )
            )
        case ReleaseOrder() as release:
            message.release.CopyFrom(pb.Release(reason=release.reason, drain_until_unix_ms=release.drain_until_unix_ms))
    return message


def _text(value: str, what: str) -> str:
    if len(value) > MAX_TEXT_CHARS:
        raise InvalidRequestError(f"{what}: at most {MAX_TEXT_CHARS} characters")
    return value


def _cut(value: str) -> str:
    """Sentences for people are cut, not refused."""
    return value[:MAX_TEXT_CHARS]


def _bounded(values: Sequence[object], what: str) -> None:
    if len(values) > MAX_ITEMS:
        raise InvalidRequestError(f"{what}: at most {MAX_ITEMS}")
