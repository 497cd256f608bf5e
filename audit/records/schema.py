"""The published schema of records, version 1: JSON Schema of the envelope, and the vocabulary of what ``data`` holds.

``docs/audit-schema.md`` is written from here (``python -m audit.records.schema``; a test holds it to be current). Each
field and each member of ``data`` says what it is about a person. There are four answers, and records hold the first
three: ``none``; ``pseudonym`` (a random id, whose mapping lives elsewhere and can be destroyed); ``organisation`` (a
tenant's, model's or policy's name, never a person's); ``personal``, which no record may hold.
"""

import enum
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from audit.records.envelope import Action, Decision, PlatformReason
from bulkhead.encoding import MAX_SAFE_INTEGER, Json, JsonObject
from bulkhead.transparency.leaf import (
    ACTION_PATTERN,
    HEX_DIGEST_PATTERN,
    MAX_LEAF_BYTES,
    MAX_REASONS,
    MAX_ROLES,
    MAX_TEXT,
    SCHEMA_VERSION,
)

__all__ = ["DATA_MEMBERS", "FIELDS", "About", "json_schema", "page"]

_DOCUMENT: Final = Path("docs") / "audit-schema.md"


class About(enum.StrEnum):
    """What a field says about a person."""

    NONE = "none"
    PSEUDONYM = "pseudonym"
    ORGANISATION = "organisation"
    PERSONAL = "personal"


_TEXT: Final[JsonObject] = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}
_COUNT: Final[JsonObject] = {"type": "integer", "minimum": 0, "maximum": MAX_SAFE_INTEGER}
_DIGEST: Final[JsonObject] = {"type": "string", "pattern": f"^{HEX_DIGEST_PATTERN}$"}
_ACTION: Final[JsonObject] = {"type": "string", "pattern": f"^{ACTION_PATTERN}$", "maxLength": MAX_TEXT}
_REQUIRED: Final = ("v", "id", "ts_us", "mono_us", "writer", "tenant", "action", "cause")


def _object(properties: Mapping[str, Json], *required: str) -> JsonObject:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    }


FIELDS: Final[Mapping[str, tuple[JsonObject, About, str]]] = MappingProxyType(
    {
        "v": ({"const": SCHEMA_VERSION}, About.NONE, "schema version"),
        "id": ({"type": "string", "pattern": "^rec_[0-7][0-9a-hjkmnp-tv-z]{25}$"}, About.NONE, "the record's TypeID"),
        "ts_us": (_COUNT, About.NONE, "wall clock, microseconds of UTC since the epoch; the order is the index"),
        "mono_us": (_COUNT, About.NONE, "monotonic clock, microseconds since the writer started"),
        "writer": (_TEXT, About.NONE, "random id of the process that wrote the record"),
        "tenant": ({"anyOf": [_TEXT, {"type": "null"}]}, About.ORGANISATION, "tenant id; null in the platform's log"),
        "action": (_ACTION, About.NONE, "what happened"),
        "cause": (
            _object(
                {
                    "kind": {"enum": ["platform", "tenant"]},
                    "reason": {"enum": sorted(reason.value for reason in PlatformReason)},
                    "credential": _TEXT,
                    "request_id": _TEXT,
                },
                "kind",
            ),
            About.PSEUDONYM,
            "why: a tenant's request (credential id, client-made request id), or one of the platform's reasons",
        ),
        "subject": (
            _object({"id": _TEXT, "roles": {"type": "array", "items": _TEXT, "maxItems": MAX_ROLES}}, "id", "roles"),
            About.PSEUDONYM,
            "who acted: a random subject id, and the roles at the time",
        ),
        "resource": (_object({"type": _TEXT, "id": _TEXT}, "type", "id"), About.NONE, "what was acted upon"),
        "decision": ({"enum": sorted(decision.value for decision in Decision)}, About.NONE, "how it was decided"),
        "reasons": (
            {
                "type": "array",
                "maxItems": MAX_REASONS,
                "items": _object(
                    {name: {"type": "string"} for name in ("code", "policy", "message")}, "code", "policy", "message"
                ),
            },
            About.NONE,
            "why it was decided so: stable code, the policy that gave it, one sentence",
        ),
        "model": (_TEXT, About.ORGANISATION, "name of the model"),
        "tier": (_TEXT, About.NONE, "isolation tier"),
        "session": (_TEXT, About.NONE, "session id"),
        "partition": (_TEXT, About.NONE, "partition id"),
        "pair_id": (_TEXT, About.NONE, "joins a decision with its outcome and receipts"),
        "bundle": (_DIGEST, About.NONE, "SHA-256 of the policy bundle that decided"),
        "evidence": (_DIGEST, About.NONE, "SHA-256 of the evidence that was appraised"),
        "data": ({"type": "object"}, About.NONE, "what only this action has: the members below"),
    }
)  # fmt: skip

_N, _P, _O = About.NONE, About.PSEUDONYM, About.ORGANISATION

DATA_MEMBERS: Final[Mapping[str, tuple[About, str]]] = MappingProxyType(
    {
        "input": (_N, "policy input in full: roles and derived facts (`policies/input.schema.json`)"),
        "obligations": (_N, "what the decision imposed"),
        "on": (_N, "the policy's action that was decided"),
        "index": (_N, "place of a record in its log"),
        "result": (_N, "`ready`, `failed` or `unknown`"),
        "code": (_N, "stable error code"),
        "message": (_N, "one sentence of the platform's"),
        "reason": (_N, "one sentence of the platform's"),
        "evidence_kind": (_N, "`hardware`, `operator` or `simulated`"),
        "simulated": (_N, "whether the partition or agent is simulated"),
        "agent": (_N, "agent id"),
        "agent_code": (_N, "error code of the agent"),
        "region": (_N, "region"),
        "regions": (_N, "regions"),
        "keyset_digest": (_N, "SHA-256 of the worker's keyset"),
        "model_digest": (_N, "SHA-256 of the model's manifest"),
        "policy_digest": (_N, "SHA-256 of the policy bundle"),
        "bundle_digest": (_N, "SHA-256 of the policy bundle"),
        "root": (_N, "Merkle root, hexadecimal"),
        "first": (_N, "first number or index of a range"),
        "count": (_N, "how many"),
        "prompt_tokens": (_N, "token total"),
        "completion_tokens": (_N, "token total"),
        "final": (_N, "whether the session has ended with it"),
        "fence": (_N, "version of the partition's row"),
        "gpus": (_N, "GPU UUIDs"),
        "mig_profile_id": (_N, "MIG profile id"),
        "memory_slice_start": (_N, "placement, memory slices"),
        "memory_slices": (_N, "placement, memory slices"),
        "memory_mib": (_N, "memory, MiB"),
        "score": (_N, "placement score"),
        "model": (_O, "name of a model"),
        "model_name": (_O, "name of a model"),
        "state": (_N, "state of a partition"),
        "partitions_lost": (_N, "how many partitions an agent's loss ended"),
        "boot_id": (_N, "random id of the agent's boot"),
        "evidence_key_sha256": (_N, "SHA-256 of the agent's evidence key"),
        "evidence_key_changed": (_N, "whether it is another than before"),
        "role": (_N, "role of a principal"),
        "subject": (_P, "random subject id, or the policy input's subject"),
        "kind": (_N, "kind of a credential or key"),
        "scopes": (_N, "scopes of a credential"),
        "expires_us": (_N, "expiry, microseconds"),
        "fingerprint": (_N, "SHA-256 of a public key or certificate"),
        "at_once": (_N, "whether it ended without overlap"),
        "credential_id": (_P, "credential id"),
        "name": (_O, "name of a tenant, or of a policy's action"),
        "revision": (_N, "revision of the tenant's facts"),
        "digest": (_N, "SHA-256"),
        "path": (_O, "where a model's files are"),
        "context_length": (_N, "tokens"),
        "number": (_N, "number of a policy bundle"),
        "files": (_N, "how many files"),
        "undone": (_N, "error code because of which a change was undone"),
        "left_out": (_N, "denials that were counted instead of recorded"),
        "codes": (_N, "how many of each code"),
        "since_us": (_N, "beginning of a span, microseconds"),
        "until_us": (_N, "end of a span, microseconds"),
        "query": (_N, "filter of a read"),
        "action": (_N, "of a filter, or of the policy input"),
        "decision": (_N, "of a filter"),
        "session": (_N, "of a filter"),
        "returned": (_N, "how many records a read returned"),
        "size": (_N, "size of a log"),
        "origin": (_N, "name of a log"),
        "epoch": (_N, "epoch of a log"),
        "slot": (_N, "place of a log in the platform's rounds"),
        "predecessor": (_N, "last checkpoint of the epoch before"),
        "break": (_N, "the declared break after which a log's epoch begins"),
        "round": (_N, "number of a round"),
        "slots": (_N, "logs in a round"),
        "policy": (_N, "SHA-256 of the active policy bundle"),
        "configuration": (_N, "SHA-256 of the configuration, paths in place of secrets"),
        "version": (_N, "version of the build, or of a sealed model's manifest"),
        "status": (_N, "status of a tenant"),
        "models": (_O, "names of models"),
        "packs": (_N, "compliance packs"),
        "minimum_tier": (_N, "isolation tier"),
        "session_limit": (_N, "largest number of open sessions"),
        "max_output_tokens": (_N, "tokens"),
        "tenant_root": (_N, "SHA-256 of the public key of the tenant's root; empty where it has none"),
        "replaced_root": (_N, "the same of the root before"),
        "broker": (_O, "where a tenant's key broker is"),
        "broker_certificate_sha256": (_N, "SHA-256 of its certificate"),
        "custody": (_N, "who holds a sealed model's key"),
        "manifest_digest": (_N, "SHA-256 of a sealed model's manifest"),
        "decision_leaf_hash": (_N, "leaf hash of the decision that a key was released for"),
        "trust_domain": (_O, "DNS-like name of the platform"),
        "initialised": (_N, "whether the platform was set up with it"),
    }
)
"""Members of ``data``, at its first level."""


def json_schema() -> JsonObject:
    """Return the JSON Schema (draft 2020-12) of a record."""
    properties: dict[str, Json] = {
        name: {**shape, "description": meaning, "x-about-a-person": about.value}
        for name, (shape, about, meaning) in FIELDS.items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Bulkhead audit record, version {SCHEMA_VERSION}",
        **_object(properties, *_REQUIRED),
    }


def page() -> str:
    """Return the text of ``docs/audit-schema.md``."""
    lines = [
        f"# Audit records, schema version {SCHEMA_VERSION}",
        "",
        "Written from `audit/records/schema.py` (`python -m audit.records.schema`). A record is one JSON object in its",
        f"RFC 8785 form, at most {MAX_LEAF_BYTES:,} bytes: exactly these bytes are the leaf in the Merkle log, stored",
        "once, never rewritten. `bulkhead.transparency.leaf` parses them strictly: an unknown version or field, a",
        "missing field, another type or encoding is refused. [audit.md](audit.md) says what they mean together.",
        "",
        "A record never holds a prompt, an answer, a key, a token, or a person's name or address. The last column says",
        "what a field is about a person; `pseudonym`: a random id, whose mapping is kept elsewhere and can be",
        "destroyed; `organisation`: a tenant's, model's or policy's name.",
        "",
        "## Fields",
        "",
        "| field | always | about a person | meaning |",
        "|---|---|---|---|",
    ]
    for name, (_shape, about, meaning) in FIELDS.items():
        lines.append(f"| `{name}` | {'yes' if name in _REQUIRED else ''} | {about.value} | {meaning} |")
    lines += ["", "## Actions", "", ", ".join(f"`{action.value}`" for action in Action) + ".", ""]
    lines += ["## Members of `data`", "", "| member | about a person | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | {about.value} | {meaning} |" for name, (about, meaning) in sorted(DATA_MEMBERS.items())]
    lines += ["", "## JSON Schema", "", "```json", json.dumps(json_schema(), indent=2), "```", ""]
    return "\n".join(lines)


def main() -> None:
    """Write the document, or with ``--check`` say whether it is current."""
    current = _DOCUMENT.is_file() and _DOCUMENT.read_text(encoding="utf-8") == page()
    if "--check" in sys.argv:
        sys.exit(0 if current else f"{_DOCUMENT} is not current: python -m audit.records.schema")
    _DOCUMENT.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
