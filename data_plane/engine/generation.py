"""generation_config.json: what a model's makers sample with where a request does not say (untrusted, bounded)."""

from dataclasses import replace
from typing import Any, Final

from bulkhead.errors import InvalidRequestError
from bulkhead.fields import Fields
from bulkhead.models import ModelSource
from data_plane.engine.spec import MAX_CONFIG_BYTES, read_json
from data_plane.inference.sampling_params import OPENAI_DEFAULTS, SamplingParams

__all__ = ["read_defaults"]

_FILE: Final = "generation_config.json"
# vLLM reads the same, and nothing else.
_NUMBERS: Final = ("temperature", "top_p", "min_p", "repetition_penalty")
_COUNTS: Final = {"top_k": "top_k", "max_new_tokens": "max_tokens"}
MAX_NUMBER: Final = 2.0**53  # what a request may ask for is less, and checked by what it asks with


def read_defaults(source: ModelSource) -> SamplingParams:
    """Return the defaults that a model brings; OpenAI's where it brings none.

    Raises:
        InvalidRequestError: a value that no request could ask for.
    """
    if _FILE not in source.files:
        return OPENAI_DEFAULTS
    config = Fields(read_json(source, _FILE, max_bytes=MAX_CONFIG_BYTES), what=_FILE, error=InvalidRequestError)
    given: dict[str, Any] = {
        name: config.number(name, low=-MAX_NUMBER, high=MAX_NUMBER) for name in _NUMBERS if name in config
    }
    given |= {ours: config.integer(theirs, low=-1) for theirs, ours in _COUNTS.items() if theirs in config}
    try:
        return replace(OPENAI_DEFAULTS, **given)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{_FILE}: {error.message}") from error
