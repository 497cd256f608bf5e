"""The decision on a session: facts of one snapshot, policy's answer, its durable record.

Nothing is placed and nothing handed out before :meth:`Decider.decide` has returned :class:`Decided`, which it does only
when an allow is durable in the tenant's log. Whoever wants to use the time that this takes is told of the allow when
its record is made (:class:`Allowed`). A deny, or an obligation that cannot be kept, is returned as :class:`Denied`. An
engine that does not answer properly and a log that cannot be written raise.

A no that stands only because known agents are not connected just now (after a restart of this process all of them) is
no decision: policy is asked again when they are back, and the caller is told to try again if that takes too long.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from audit.model import Appended
from audit.records import Decision as Verdict
from audit.records import Reason as RecordedReason
from audit.records import Record
from audit.records import decision as decision_record
from bulkhead.encoding import canonical_json
from bulkhead.errors import (
    AgentUnavailableError,
    BulkheadError,
    PolicyEngineError,
    SessionLimitError,
    TenantRootRequiredError,
    UnknownObligationError,
)
from bulkhead.transparency.merkle import leaf_hash
from control_plane.authz.decision import (
    Decision,
    Exclusive,
    KeyCustody,
    MaxTokens,
    MinTier,
    Padding,
    Reason,
    Region,
    denial_error,
)
from control_plane.authz.input import Context, PlatformFacts, PolicyInput, SessionResource, Subject, TenantFacts
from control_plane.domain.roles import Caller
from control_plane.domain.sessions import PADDINGS, Session
from control_plane.domain.tiers import Tier
from control_plane.services.authorisation import Policy
from control_plane.services.journal import Journal
from control_plane.services.pool import Wanted
from control_plane.services.refusals import cause_of, subject_of
from control_plane.services.sessions.ahead import begin
from control_plane.services.sessions.denials import DenialLimiter
from control_plane.storage.sessions import ModelFacts, TenantSnapshot

__all__ = ["Allowed", "Asked", "Decided", "Decider", "Denied", "FleetFacts", "OnAllow", "Question"]

FLEET_POLL_S: Final = 0.1
TENANT_CUSTODY: Final = "tenant"
_OWN_POLICY: Final = "control_plane"  # reasons that this process adds to an allow that it cannot act on


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One question about a session.

    Attributes:
        caller: who asks.
        action: ``session.open`` or ``session.renew``.
        session: as it stands; its request is what is judged.
        pair_id: joins this decision with its outcome.
        facts: of the snapshot that the session was read in.
        model: likewise.
        reserved: whether a slot is held for it; without one an allow cannot be acted on.
    """

    caller: Caller
    action: str
    session: Session
    pair_id: str
    facts: TenantSnapshot
    model: ModelFacts
    reserved: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """An allow whose record is made, and not yet known to be durable: nothing may be released on its strength.

    Attributes:
        wanted: what the partition must be.
        decision: as policy gave it.
        leaf_hash: of its record.
        max_output_tokens: per request, at least 1.
        padding: of sealed chunks, the stronger of request and obligation.
    """

    wanted: Wanted
    decision: Decision
    leaf_hash: bytes
    max_output_tokens: int
    padding: str

    @property
    def obligations(self) -> tuple[str, ...]:
        """The obligations as RFC 8785 text."""
        return tuple(canonical_json(item.to_json()).decode() for item in self.decision.obligations)

    def at(self, recorded: Appended) -> "Decided":
        """Return the same, durable at that place in the log."""
        return Decided(
            wanted=self.wanted,
            decision=self.decision,
            leaf_hash=recorded.leaf_hash,
            max_output_tokens=self.max_output_tokens,
            padding=self.padding,
            recorded=recorded,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided(Allowed):
    """An allow, durable in the tenant's log, where it stands at ``recorded``."""

    recorded: Appended


@dataclass(frozen=True, slots=True)
class Denied:
    """A deny. ``recorded`` is false where it was only counted, because the principal has been denied too often."""

    error: BulkheadError
    recorded: bool


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A question that policy was asked; its answer is not recorded, so nothing may be done on its strength."""

    asked: Asked
    platform: PlatformFacts
    input: PolicyInput
    answer: asyncio.Task[Decision]


OnAllow = Callable[[Allowed], None]
"""Takes an allow whose record is on its way."""


class FleetFacts(Protocol):
    """What policy is told of the fleet; see :class:`control_plane.services.fleet.Fleet`."""

    def platform_facts(self) -> PlatformFacts:
        """What is connected offers."""
        ...

    def whole_facts(self) -> PlatformFacts | None:
        """What would be offered if every known agent were connected; None if every one is."""
        ...


class Decider:
    """Asks policy and records its answer.

    Args:
        policy: decides.
        journal: the audit log.
        denials: limits the records of denials.
        fleet: what the fleet offers.
        now_us: wall clock, microseconds since the epoch.
        agent_wait_s: how long agents that are not connected are waited for where policy's answer hangs on them.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        journal: Journal,
        denials: DenialLimiter,
        fleet: FleetFacts,
        now_us: Callable[[], int],
        agent_wait_s: float,
    ) -> None:
        self._policy = policy
        self._journal = journal
        self._denials = denials
        self._fleet = fleet
        self._now_us = now_us
        self._agent_wait_s = agent_wait_s

    def ask(self, asked: Asked) -> Question:
        """Ask policy; for :meth:`decide`, which may come later.

        Raises:
            InvalidRequestError: the request holds a word that policy does not take.
        """
        platform = self._fleet.platform_facts()
        policy_input = self._input(asked, platform)
        return Question(asked, platform, policy_input, begin(self._policy.decide(policy_input)))

    async def decide(
        self, asked: Asked, on_allow: OnAllow | None = None, *, question: Question | None = None
    ) -> Decided | Denied:
        """Return the recorded allow, or the deny.

        Args:
            asked: what policy judges.
            on_allow: told of an allow before its record is durable.
            question: :meth:`ask` of the same, if that was done already.

        Raises:
            PolicyEngineError: no decision; recorded as ``error``.
            AuditUnavailableError: the answer could not be recorded.
            AgentUnavailableError: policy would allow it on agents that are not connected; nothing was decided.
            InvalidRequestError: the request holds a word that policy does not take.
        """
        until_s = time.monotonic() + self._agent_wait_s
        while True:
            question = question or self.ask(asked)
            policy_input = question.input
            try:
                decision = _actionable(asked, await question.answer)
                if decision.allow or not await self._allowed_on_whole_fleet(asked):
                    break
            except UnknownObligationError as error:
                return Denied(error, await self._refused(asked, policy_input, error, verdict=Verdict.DENY))
            except PolicyEngineError as error:
                await self._refused(asked, policy_input, error, verdict=Verdict.ERROR)
                raise
            await self._fleet_changed(question.platform, until_s)
            question = None
        if not decision.allow:
            recorded = self._denials.admit(asked.caller, decision.reasons[0].code)
            if recorded:
                tier = _demanded(asked, None)
                await self._journal.write(self._record(asked, policy_input, decision, verdict=Verdict.DENY, tier=tier))
            return Denied(denial_error(decision), recorded)
        tier = _demanded(asked, decision)
        record = self._record(asked, policy_input, decision, verdict=Verdict.ALLOW, tier=tier)
        allowed = _allowed(asked, decision, leaf_hash(record.leaf), tier)
        if on_allow is not None:
            on_allow(allowed)
        recorded_at = await self._journal.write(record)
        return allowed.at(recorded_at)

    async def _allowed_on_whole_fleet(self, asked: Asked) -> bool:
        whole = self._fleet.whole_facts()
        return whole is not None and _actionable(asked, await self._policy.decide(self._input(asked, whole))).allow

    async def _fleet_changed(self, facts: PlatformFacts, until_s: float) -> None:
        """Return once the fleet offers something else than ``facts``.

        Raises:
            AgentUnavailableError: it does not until ``until_s`` (monotonic).
        """
        while self._fleet.platform_facts() == facts:
            if time.monotonic() >= until_s:
                message = "the part of the fleet that this session needs is not connected: try again in a few seconds"
                raise AgentUnavailableError(message)
            await asyncio.sleep(FLEET_POLL_S)

    def _input(self, asked: Asked, platform: PlatformFacts) -> PolicyInput:
        caller, session, facts = asked.caller, asked.session, asked.facts
        return PolicyInput(
            subject=Subject(
                id=caller.subject_id,
                roles=(caller.role.value,),
                tenant=caller.tenant_id or None,
                credential=caller.credential_kind.value,
            ),
            action=asked.action,
            resource=SessionResource(
                id=session.session_id,
                tenant=session.tenant_id,
                model=asked.model.name,
                model_digest=asked.model.digest.hex(),
                model_status=asked.model.status,
                minimum_tier=session.minimum_tier,
                region=session.region or None,
                purpose=session.purpose or None,
                data_classes=session.data_classes,
                max_output_tokens=session.max_output_tokens or None,
                padding=session.padding,
                key_custody=asked.model.custody,
            ),
            context=Context(
                time_us=self._now_us(),
                network=caller.network,
                tenant=TenantFacts(
                    id=facts.tenant_id,
                    status=facts.status,
                    regions=facts.regions,
                    packs=facts.packs,
                    models=facts.models,
                    minimum_tier=facts.minimum_tier,
                    session_limit=facts.session_limit,
                    sessions_open=facts.sessions_open,
                    max_output_tokens=facts.max_output_tokens,
                    revision=facts.revision,
                ),
                platform=platform,
            ),
        )

    async def _refused(
        self, asked: Asked, policy_input: PolicyInput, error: BulkheadError, *, verdict: Verdict
    ) -> bool:
        if not self._denials.admit(asked.caller, error.code):
            return False
        decision = Decision(
            allow=False,
            reasons=(Reason(error.code, _OWN_POLICY, error.message),),
            obligations=(),
            bundle_digest=error.details.get("bundle_digest", ""),
            input_digest=policy_input.digest(),
        )
        tier = _demanded(asked, None)
        await self._journal.write(self._record(asked, policy_input, decision, verdict=verdict, tier=tier))
        return True

    def _record(
        self, asked: Asked, policy_input: PolicyInput, decision: Decision, *, verdict: Verdict, tier: Tier
    ) -> Record:
        return decision_record(
            self._journal.stamp(),
            tenant=asked.session.tenant_id,
            subject=subject_of(asked.caller),
            # A renewal has no request id of its own: the session's ties it to what the client keeps.
            cause=cause_of(asked.caller, asked.session.request_id),
            session=asked.session.session_id,
            pair_id=asked.pair_id,
            model=asked.model.name,
            tier=tier.label,
            decision=verdict,
            reasons=_reasons(decision.reasons),
            bundle=decision.bundle_digest,
            policy_input=policy_input.to_json(),
            obligations=[item.to_json() for item in decision.obligations],
            on=asked.action,
        )


def _actionable(asked: Asked, decision: Decision) -> Decision:
    """Return the decision, or a deny where this process cannot do what an allow demands."""
    if not decision.allow:
        return decision
    custody = decision.obligation(KeyCustody)
    region = decision.obligation(Region)
    reason = None
    if custody is not None and custody.custody == TENANT_CUSTODY != asked.model.custody:
        message = "Policy demands that the tenant holds the model's key, which this model's registration does not say."
        reason = Reason("KEY_CUSTODY", _OWN_POLICY, message)
    elif not asked.reserved:  # a policy without the limit would let more in than the tenant may have
        reason = Reason(SessionLimitError.code, _OWN_POLICY, "The tenant's limit of open sessions is reached.")
    elif _demanded(asked, decision) is Tier.CONFIDENTIAL and not asked.facts.tenant_root:
        message = "Tier confidential needs a tenant root, and the tenant's record has none."
        reason = Reason(TenantRootRequiredError.code, _OWN_POLICY, message)
    elif region is not None and asked.session.region and region.region != asked.session.region:
        reason = Reason("REGION_CONFLICT", _OWN_POLICY, "Policy demands another region than the one asked for.")
    elif _tokens(asked, decision) < 1:
        reason = Reason("TOKEN_LIMIT", _OWN_POLICY, "No output tokens are left to the session.")
    if reason is None:
        return decision
    return replace(decision, allow=False, reasons=(reason,), obligations=())


def _allowed(asked: Asked, decision: Decision, leaf: bytes, tier: Tier) -> Allowed:
    padding = decision.obligation(Padding)
    modes = (asked.session.padding, padding.mode if padding else PADDINGS[0])
    return Allowed(
        wanted=Wanted(
            tenant_id=asked.session.tenant_id,
            model=asked.model,
            tier=tier,
            regions=_regions(asked, decision),
            exclusive=decision.obligation(Exclusive) is not None,
            purpose=asked.session.purpose,
            custody=asked.model.custody,
            max_output_tokens=asked.facts.max_output_tokens,
            tenant_root=asked.facts.tenant_root,
        ),
        decision=decision,
        leaf_hash=leaf,
        max_output_tokens=_tokens(asked, decision),
        padding=max(modes, key=PADDINGS.index),
    )


def _demanded(asked: Asked, decision: Decision | None) -> Tier:
    """Return the highest tier that request, tenant, obligations and the session's own past demand."""
    obliged = decision.obligation(MinTier) if decision is not None else None
    tiers = (asked.session.minimum_tier, asked.session.tier_floor, obliged.tier if obliged else None)
    return max([asked.facts.minimum_tier, *(tier for tier in tiers if tier is not None)])


def _regions(asked: Asked, decision: Decision) -> frozenset[str]:
    region = decision.obligation(Region)
    if region is not None:
        return frozenset({region.region})
    return frozenset({asked.session.region}) if asked.session.region else frozenset(asked.facts.regions)


def _tokens(asked: Asked, decision: Decision) -> int:
    obliged = decision.obligation(MaxTokens)
    limits = (
        asked.session.max_output_tokens,
        asked.facts.max_output_tokens,
        obliged.max if obliged else 0,
        asked.model.context_length,
    )
    return min((limit for limit in limits if limit > 0), default=0)


def _reasons(reasons: Sequence[Reason]) -> list[RecordedReason]:
    return [RecordedReason(reason.code, reason.policy, reason.message) for reason in reasons]
