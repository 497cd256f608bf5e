"""generation_config.json: what a model's makers sample with where a request does not say (untrusted, bounded)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from bulkhead.encoding import Json
from bulkhead.errors import InvalidRequestError
from bulkhead.models import ModelSource
from data_plane.engine.params import OPENAI_DEFAULTS, SamplingParams
from data_plane.engine.spec import MAX_CONFIG_BYTES, read_json

__all__ = ["read_defaults"]

_FILE: Final = "generation_config.json"
_NAMES: Final[dict[str, tuple[str, type[float] | type[int]]]] = {  # vLLM reads the same, and nothing else
    "temperature": ("temperature", float),
    "top_p": ("top_p", float),
    "top_k": ("top_k", int),
    "min_p": ("min_p", float),
    "repetition_penalty": ("repetition_penalty", float),
    "max_new_tokens": ("max_tokens", int),
}


def read_defaults(source: ModelSource) -> SamplingParams:
    """Return the defaults that a model brings; OpenAI's where it brings none.

    Raises:
        InvalidRequestError: a value that no request could ask for.
    """
    given: dict[str, Any] = {}
    config = read_json(source, _FILE, max_bytes=MAX_CONFIG_BYTES) if _FILE in source.files else {}
    for theirs, (ours, kind) in _NAMES.items():
        if (value := config.get(theirs)) is not None:
            given[ours] = _number(value, theirs, kind)
    try:
        return replace(OPENAI_DEFAULTS, **given)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{_FILE}: {error.message}") from error


def _number(value: Json, name: str, kind: Callable[[float], float]) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or kind(value) != value:
        raise InvalidRequestError(f"{_FILE}: {name} is not a number of its kind")
    return kind(value)
