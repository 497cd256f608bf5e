"""Administrative actions before policy: one question, its answer recorded, nothing done on anything but an allow.

Sessions have a flow of their own, since their decisions carry obligations; here an obligation cannot be kept, so an
allow with one is a refusal.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from audit.records import Action, Reason, build_record
from audit.records import Decision as Verdict
from bulkhead.encoding import Json
from bulkhead.errors import BulkheadError, PolicyEngineError, UnknownObligationError
from control_plane.authz.decision import Decision, denial_error
from control_plane.authz.input import Context, PlatformFacts, PolicyInput, Resource, Subject, TenantFacts
from control_plane.domain.roles import Caller
from control_plane.services.journal import Journal
from control_plane.services.refusals import cause_of, subject_of
from control_plane.storage.engine import Database
from control_plane.storage.sessions import Sessions

__all__ = ["AdminCall", "Authorisation", "Policy", "Question"]


class Policy(Protocol):
    """Where decisions come from: :class:`control_plane.authz.client.PolicyClient`, or a test's."""

    async def decide(self, request: PolicyInput) -> Decision:
        """Return the decision, or raise as the client does."""


@dataclass(frozen=True, slots=True)
class AdminCall:
    """One administrative call: who, and under which request id."""

    caller: Caller
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What policy is asked about an administrative action.

    Attributes:
        action: policy's name of it, e.g. ``tenant.create``.
        resource: as policy sees it.
        named: (type, id) as the records name it.
        tenant_id: existing tenant whose facts count and whose log takes the records; empty for the platform's.
    """

    action: str
    resource: Resource
    named: tuple[str, str]
    tenant_id: str = ""


class Authorisation:
    """Asks policy about administrative actions and records the answers.

    Args:
        database: facts of the tenant come from it.
        journal: the audit log.
        policy: decides.
        platform_facts: what the fleet offers now.
        now_us: Unix time in microseconds.
    """

    def __init__(
        self,
        *,
        database: Database,
        journal: Journal,
        policy: Policy,
        platform_facts: Callable[[], PlatformFacts],
        now_us: Callable[[], int],
    ) -> None:
        self._database = database
        self._journal = journal
        self._policy = policy
        self._platform_facts = platform_facts
        self._now_us = now_us

    async def authorise(self, call: AdminCall, question: Question, *, record_allow: bool = True) -> str:
        """Return the digest of the bundle that allowed the action.

        Args:
            call: admitted; its scope was checked.
            question: what for.
            record_allow: false for reads, of which only refusals are recorded.

        Raises:
            PolicyDeniedError: policy said no; recorded as ``deny``.
            UnknownObligationError: policy allows under an obligation; recorded as ``deny``.
            PolicyEngineError: policy said nothing usable; recorded as ``error``.
            AuditUnavailableError: the decision could not be recorded.
            NotFoundError: the question's tenant does not exist.
        """
        asked = await self._input(call.caller, question)
        try:
            decision = _without_obligations(await self._policy.decide(asked))
        except (PolicyEngineError, UnknownObligationError) as error:
            verdict = Verdict.ERROR if isinstance(error, PolicyEngineError) else Verdict.DENY
            bundle = error.details.get("bundle_digest", "")
            await self._record(call, question, asked, verdict=verdict, reasons=_because(error), bundle=bundle)
            raise
        if record_allow or not decision.allow:
            reasons = [Reason(reason.code, reason.policy, reason.message) for reason in decision.reasons]
            verdict = Verdict.ALLOW if decision.allow else Verdict.DENY
            bundle = decision.bundle_digest
            await self._record(call, question, asked, verdict=verdict, reasons=reasons, bundle=bundle)
        if not decision.allow:
            raise denial_error(decision)
        return decision.bundle_digest

    async def _input(self, caller: Caller, question: Question) -> PolicyInput:
        return PolicyInput(
            subject=Subject(
                id=caller.subject_id,
                roles=(caller.role.value,),
                tenant=caller.tenant_id or None,
                credential=caller.credential_kind.value,
            ),
            action=question.action,
            resource=question.resource,
            context=Context(
                time_us=self._now_us(),
                network=caller.network,
                tenant=await self._facts(question.tenant_id) if question.tenant_id else None,
                platform=self._platform_facts(),
            ),
        )

    async def _facts(self, tenant_id: str) -> TenantFacts:
        found = await self._database.read(lambda tx: Sessions(tx.connection).snapshot(tenant_id))
        return TenantFacts(
            id=found.tenant_id,
            status=found.status,
            regions=found.regions,
            packs=found.packs,
            models=found.models,
            minimum_tier=found.minimum_tier,
            session_limit=found.session_limit,
            sessions_open=found.sessions_open,
            max_output_tokens=found.max_output_tokens,
            revision=found.revision,
        )

    async def _record(
        self,
        call: AdminCall,
        question: Question,
        asked: PolicyInput,
        *,
        verdict: Verdict,
        reasons: Sequence[Reason],
        bundle: str,
    ) -> None:
        data: dict[str, Json] = {"input": asked.to_json(), "obligations": [], "on": question.action}
        await self._journal.write(
            build_record(
                self._journal.stamp(),
                action=Action.DECISION,
                tenant=question.tenant_id or None,
                cause=cause_of(call.caller, call.request_id),
                subject=subject_of(call.caller),
                resource=question.named,
                decision=verdict,
                reasons=reasons,
                data=data,
                bundle=bundle,
            )
        )


def _without_obligations(decision: Decision) -> Decision:
    if decision.allow and decision.obligations:
        raise UnknownObligationError(
            "Policy demands something that an administrative change cannot keep.",
            details={"bundle_digest": decision.bundle_digest},
        )
    return decision


def _because(error: BulkheadError) -> list[Reason]:
    return [Reason(error.code, "", error.message)]
