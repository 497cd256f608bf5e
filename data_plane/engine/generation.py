"""generation_config.json: what a model's makers sample with where a request does not say (untrusted, bounded)."""

from collections.abc import Callable
from typing import Final

from bulkhead.encoding import Json
from bulkhead.errors import InvalidRequestError
from bulkhead.models import ModelSource
from data_plane.engine.params import SamplingDefaults, SamplingParams
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


def read_defaults(source: ModelSource) -> SamplingDefaults:
    """Return the defaults that a model brings; OpenAI's where it brings none.

    Raises:
        InvalidRequestError: a value that no request could ask for.
    """
    if _FILE not in source.files:
        return SamplingDefaults()
    config = read_json(source, _FILE, max_bytes=MAX_CONFIG_BYTES)
    given = {ours: _number(config[theirs], theirs, kind) for theirs, (ours, kind) in _NAMES.items() if theirs in config}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        SamplingParams(**given)  # type: ignore[arg-type]  # checked by kind above; the bounds stand there
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{_FILE}: {error.message}") from error
    return SamplingDefaults(**given)  # type: ignore[arg-type]


def _number(value: Json, name: str, kind: Callable[[float], float]) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or kind(value) != value:
        raise InvalidRequestError(f"{_FILE}: {name} is not a number of its kind")
    return kind(value)
