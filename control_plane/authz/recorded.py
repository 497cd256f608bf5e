"""Inputs that earlier builds recorded, in the form in which today's policies are asked.

A decision is *replayed* with the bundle that its record names: that bundle's policies know the input as it stands, and
nothing is done to it. To ask a *newer* bundle about a recorded input (what would it have decided?), the input needs
every field of today, since policies deny where one is missing. :func:`present_form` gives it the fields that did not
exist, with what was true of every request then.

========  ==========================================  ===============================================================
version   lacks                                       what was true
========  ==========================================  ===============================================================
1         a session's ``properties.key_custody``      ``none``: models were not sealed, so none had a key
2         nothing                                     the present form
========  ==========================================  ===============================================================

The fields themselves tell the version: within one, none is optional.
"""

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from bulkhead.encoding import Json, JsonObject
from bulkhead.errors import RecordError

__all__ = ["INPUT_VERSION", "input_version", "present_form"]

INPUT_VERSION: Final = 2
_SESSION: Final = "session"

_Step: TypeAlias = Callable[[JsonObject], JsonObject]


def input_version(recorded: JsonObject) -> int:
    """Return the version of a recorded input.

    Raises:
        RecordError: it has not the shape of one.
    """
    resource = _object(recorded, "resource")
    if resource.get("type") != _SESSION or "key_custody" in _object(resource, "properties"):
        return INPUT_VERSION
    return 1


def present_form(recorded: JsonObject) -> JsonObject:
    """Return a recorded input as today's policies take it; the one given is not changed.

    Args:
        recorded: ``data.input`` of a decision's record, which the caller verified.

    Raises:
        RecordError: it has not the shape of an input.
    """
    for step in _STEPS[input_version(recorded) - 1 :]:
        recorded = step(recorded)
    return recorded


def _with_custody(recorded: JsonObject) -> JsonObject:
    resource = _object(recorded, "resource")
    properties: JsonObject = {**_object(resource, "properties"), "key_custody": "none"}
    return {**recorded, "resource": {**resource, "properties": properties}}


_STEPS: Final[tuple[_Step, ...]] = (_with_custody,)
"""From each version to the next, the first from version 1."""


def _object(parent: Mapping[str, Json], name: str) -> JsonObject:
    found = parent.get(name)
    if not isinstance(found, dict):
        raise RecordError(f"the recorded policy input has no object {name}")
    return found
