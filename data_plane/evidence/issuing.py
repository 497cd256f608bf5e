"""The agent's evidence port: a key that signs, or hardware that quotes.

Hardware gives one quote at a time, and hosts throttle it: callers that wait while one is in flight share the next. The
order of work for a batch is GPU reports first, then the quote that covers them (docs/protocol.md section 3).
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from bulkhead.attestation import AttestationRequest, EvidenceBatch, EvidenceIssuer, EvidenceKind, PartitionDescriptor
from bulkhead.attestation.parts import GpuPart, GpuParts, ProcessorPart
from bulkhead.attestation.policy import Technology
from bulkhead.errors import BulkheadError, EvidenceError, ExhaustedError, InternalError
from data_plane.evidence.nvml import GpuQuote
from data_plane.evidence.tsm import TsmQuote

__all__ = ["EvidencePort", "GpuReporter", "HardwareEvidence", "IssuedEvidence", "ProcessorQuoter", "SignedEvidence"]

MAX_WAITING: Final = 4_096  # callers; the control plane gives up on one long before so many wait
MAX_SHARED: Final = 1_024  # callers of one quote; the path to each has ten hashes then


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedEvidence:
    """Encoded evidence for one caller, and the Unix second at which it ends."""

    evidence: bytes
    not_after_s: int


class EvidencePort(Protocol):
    """Port: what vouches for the agent's workers."""

    @property
    def kind(self) -> EvidenceKind:
        """Which kind it issues."""
        ...

    @property
    def public_key(self) -> bytes:
        """Raw Ed25519 public key (32 bytes) by which the control plane knows this agent's evidence."""
        ...

    async def issue(
        self, request: AttestationRequest, *, keyset: bytes, descriptor: PartitionDescriptor, not_after_s: int
    ) -> IssuedEvidence:
        """Return evidence for one caller.

        Args:
            request: the caller's nonce and session.
            keyset: of the partition's worker.
            descriptor: of the partition.
            not_after_s: Unix seconds; evidence may end before, never after.

        Raises:
            EvidenceError: this kind cannot vouch for such a partition.
            UnsupportedError, ConfigError: the host has no such hardware, or not in the state that evidence takes.
            UnavailableError: the hardware is busy or out of reach.
        """
        ...


class SignedEvidence:
    """The operator's key, or a simulator's."""

    def __init__(self, issuer: EvidenceIssuer, *, kind: EvidenceKind) -> None:
        self._issuer = issuer
        self._kind = kind

    @property
    def kind(self) -> EvidenceKind:
        """See :class:`EvidencePort`."""
        return self._kind

    @property
    def public_key(self) -> bytes:
        """See :class:`EvidencePort`."""
        return self._issuer.public_key

    async def issue(
        self, request: AttestationRequest, *, keyset: bytes, descriptor: PartitionDescriptor, not_after_s: int
    ) -> IssuedEvidence:
        """See :class:`EvidencePort`."""
        (evidence,) = self._issuer.issue([request], keyset=keyset, descriptor=descriptor, not_after_s=not_after_s)
        return IssuedEvidence(evidence=evidence, not_after_s=not_after_s)


class ProcessorQuoter(Protocol):
    """Port: quotes of the processor; :class:`data_plane.evidence.tsm.TsmQuotes`."""

    def quote(self, report_data: bytes) -> TsmQuote:
        """Return a quote over 64 bytes; blocks."""
        ...


class GpuReporter(Protocol):
    """Port: reports of GPUs; :class:`data_plane.evidence.nvml.GpuQuotes`."""

    def report(self, uuid: str, nonce: bytes) -> GpuQuote:
        """Return a report of one GPU that answers 32 bytes; blocks."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Waiting:
    request: AttestationRequest
    keyset: bytes
    descriptor: PartitionDescriptor
    not_after_s: int
    answer: "asyncio.Future[IssuedEvidence]"

    def shares_with(self, other: "_Waiting") -> bool:
        return self.keyset == other.keyset and self.descriptor == other.descriptor


class HardwareEvidence:
    """Quotes of the processor over reports of the partition's GPUs.

    Args:
        processor: gives quotes.
        gpus: give reports.
        public_key: by which the control plane knows the agent; it signs no hardware evidence.
    """

    def __init__(self, *, processor: ProcessorQuoter, gpus: GpuReporter, public_key: bytes) -> None:
        self._processor = processor
        self._gpus = gpus
        self._public_key = public_key
        self._waiting: deque[_Waiting] = deque()
        self._working: asyncio.Task[None] | None = None

    @property
    def kind(self) -> EvidenceKind:
        """See :class:`EvidencePort`."""
        return EvidenceKind.HARDWARE

    @property
    def public_key(self) -> bytes:
        """See :class:`EvidencePort`."""
        return self._public_key

    async def issue(
        self, request: AttestationRequest, *, keyset: bytes, descriptor: PartitionDescriptor, not_after_s: int
    ) -> IssuedEvidence:
        """See :class:`EvidencePort`; callers that wait share a quote, whose validity is the shortest of theirs."""
        if descriptor.simulated:
            raise EvidenceError("hardware vouches for no partition with a simulated part")
        if len(self._waiting) >= MAX_WAITING:
            raise ExhaustedError("too many callers wait for the hardware's quote")
        waiting = _Waiting(
            request=request,
            keyset=keyset,
            descriptor=descriptor,
            not_after_s=not_after_s,
            answer=asyncio.get_running_loop().create_future(),
        )
        self._waiting.append(waiting)
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return await waiting.answer

    async def _work(self) -> None:
        while batch := self._next_batch():
            try:
                issued = await asyncio.to_thread(self._quote, batch)
            except BulkheadError as error:
                _settle(batch, error)
            except Exception as error:  # a defect of a collector must not leave callers waiting for ever
                _settle(batch, InternalError(f"collecting evidence failed: {type(error).__name__}"))
                raise
            else:
                for waiting, evidence in zip(batch, issued, strict=True):
                    if not waiting.answer.done():  # the caller has gone
                        waiting.answer.set_result(evidence)

    def _next_batch(self) -> list[_Waiting]:
        """Take the callers that share a quote with the first who still waits."""
        while self._waiting and self._waiting[0].answer.done():
            self._waiting.popleft()
        if not self._waiting:
            return []
        first = self._waiting[0]
        batch = [waiting for waiting in self._waiting if waiting.shares_with(first) and not waiting.answer.done()]
        batch = batch[:MAX_SHARED]
        taken = set(map(id, batch))
        self._waiting = deque(waiting for waiting in self._waiting if id(waiting) not in taken)
        return batch

    def _quote(self, batch: Sequence[_Waiting]) -> list[IssuedEvidence]:
        descriptor = batch[0].descriptor
        not_after_s = min(waiting.not_after_s for waiting in batch)
        callers = EvidenceBatch([waiting.request for waiting in batch], keyset=batch[0].keyset)
        device = self._device(descriptor, callers.gpu_nonce)
        statement = callers.statement(device=device, descriptor=descriptor, not_after_s=not_after_s)
        given = self._processor.quote(statement)
        quote = ProcessorPart(
            technology=Technology(given.technology), quote=given.quote, auxiliary=given.auxiliary
        ).encode()
        return [
            IssuedEvidence(evidence=evidence, not_after_s=not_after_s)
            for evidence in callers.evidence(
                kind=self.kind, descriptor=descriptor, device=device, not_after_s=not_after_s, quote=quote
            )
        ]

    def _device(self, descriptor: PartitionDescriptor, nonce: bytes) -> bytes:
        if not descriptor.gpus:
            return b""
        reports = [self._gpus.report(uuid, nonce) for uuid in descriptor.gpus]
        parts = [GpuPart(uuid=gpu.uuid, report=gpu.report, certificates=gpu.certificates) for gpu in reports]
        return GpuParts(tuple(parts)).encode()


def _settle(batch: Sequence[_Waiting], error: BulkheadError) -> None:
    for waiting in batch:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)
