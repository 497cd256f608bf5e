"""Recorded decisions asked again: what would these policies have answered?

A decision is a function of input and bundle. With the policies of the bundle that a record names, every answer comes
out as recorded; with others, the differences are what a change of policy does to the requests of the past.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bulkhead.encoding import Json, JsonObject
from bulkhead.errors import BulkheadError, BundleError, RecordError
from bulkhead.transparency.leaf import LeafFields
from control_plane.authz.decision import parse_decision
from control_plane.authz.opa_tool import OpaRun, run_opa
from control_plane.authz.recorded import input_version, present_form
from control_plane.authz.sources import check_sources, write_sources
from control_plane.authz.vocabulary import ACTIONS

__all__ = ["Replayed", "replay"]

BATCH: Final = 100  # decisions that one run of OPA is asked for
MAX_SHOWN_CHARS: Final = 2_000
_QUERY: Final = "[answer | some each in input.asked; answer := data.{entrypoint} with input as each]"
_ANSWERED: Final = frozenset({"allow", "deny"})  # `error` is no answer of policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One recorded decision, asked again.

    Attributes:
        record_id: of the record.
        version: of the recorded input (:mod:`control_plane.authz.recorded`).
        recorded: ``allow`` or ``deny``.
        now: likewise.
        codes: of the reasons now, in order.
    """

    record_id: str
    version: int
    recorded: str
    now: str
    codes: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether the answer is another one."""
        return self.recorded != self.now


def replay(records: Iterable[LeafFields], sources: Mapping[str, bytes], *, opa: Path) -> Iterator[Replayed]:
    """Ask policies about the decisions among verified records; inputs of earlier builds get today's form. Blocks.

    Args:
        records: of a verified export; other records than decisions are passed over.
        sources: path -> content, untrusted.
        opa: the program.

    Raises:
        BundleError: the sources are none, or give no well-formed answer.
        RecordError: a decision's record holds no input.
        ConfigError, TimeoutError: `opa` cannot be started, or takes too long.
    """
    check_sources(sources)
    with tempfile.TemporaryDirectory(prefix="bulkhead-replay-") as name:
        directory = Path(name)
        write_sources(sources, directory / "policies")
        batches: dict[str, list[LeafFields]] = {}
        for record in records:
            if record.action == "decision" and record.decision in _ANSWERED:
                batch = batches.setdefault(_entrypoint(record), [])
                batch.append(record)
                if len(batch) == BATCH:
                    yield from _asked(batch, directory, opa)
                    batch.clear()
        for batch in batches.values():
            yield from _asked(batch, directory, opa)


def _asked(batch: Sequence[LeafFields], directory: Path, opa: Path) -> Iterator[Replayed]:
    """Ask about decisions of one entrypoint."""
    if not batch:
        return
    inputs = [_input(record) for record in batch]
    asked: list[Json] = [dict(present_form(item)) for item in inputs]
    (directory / "input.json").write_text(json.dumps({"asked": asked}))
    query = _QUERY.format(entrypoint=_entrypoint(batch[0]).replace("/", "."))
    run = run_opa(opa, "eval", "--format=raw", "--bundle", "policies", "--input", "input.json", query, cwd=directory)
    for record, recorded, answer in zip(batch, inputs, _answers(run, len(batch)), strict=True):
        try:
            decision = parse_decision(answer, bundle_digest="", input_digest="")
        except BulkheadError as error:
            raise BundleError(f"the policies do not answer record {record.record_id}: {error.message}") from error
        yield Replayed(
            record_id=record.record_id,
            version=input_version(recorded),
            recorded=record.decision,
            now="allow" if decision.allow else "deny",
            codes=tuple(reason.code for reason in decision.reasons),
        )


def _entrypoint(record: LeafFields) -> str:
    """Return the entrypoint that decides the recorded action."""
    action = _input(record).get("action")
    name = action.get("name") if isinstance(action, dict) else None
    if not isinstance(name, str) or name not in ACTIONS:
        raise RecordError(f"record {record.record_id} is a decision on an action that this build does not know")
    return ACTIONS[name]


def _input(record: LeafFields) -> JsonObject:
    found = record.data.get("input")
    if not isinstance(found, dict):
        raise RecordError(f"record {record.record_id} is a decision without an input")
    return found


def _answers(run: OpaRun, count: int) -> list[Json]:
    try:
        answers = json.loads(run.output)
    except ValueError as error:
        raise BundleError(f"the policies do not answer:\n{run.said[:MAX_SHOWN_CHARS]}") from error
    if run.code != 0 or not isinstance(answers, list) or len(answers) != count:
        raise BundleError(f"the policies do not answer every question:\n{run.said[:MAX_SHOWN_CHARS]}")
    return answers
