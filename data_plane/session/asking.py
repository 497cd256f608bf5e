"""Between what is said inside the seal and the engine's port; the two are bounded alike, each where it is read."""

import hmac
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from bulkhead.errors import InternalError
from bulkhead.protocol.payloads import MAX_TRACE_BYTES, Content, Delta, End, GenerateRequest, Trace, Usage
from data_plane.inference.port import ChatMessage, EngineRequest, TokenDelta
from data_plane.inference.sampling_params import SamplingParams, Structure, StructureKind

__all__ = ["answer_deltas", "answer_end", "engine_request", "sharing_scope"]

# What a request may leave to the model's own defaults.
_LEFT_OPEN: Final = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")
PROMPT_PIECE: Final = 16  # entries of 21 tokens each: far below a chunk, whatever the tokens' texts


def engine_request(asked: GenerateRequest, *, request_id: str, scope: bytes, defaults: SamplingParams) -> EngineRequest:
    """Return the engine's request for a sealed one; what it leaves open is the model's default.

    Raises:
        InvalidRequestError: a value that the engine refuses.
    """
    told = asked.logprobs if asked.echo and asked.prompt_logprobs is None else asked.prompt_logprobs  # as vLLM does
    stated = {name: value for name in _LEFT_OPEN if (value := getattr(asked, name)) is not None}
    return EngineRequest(
        request_id=request_id,
        messages=tuple(ChatMessage(role=item.role, content=item.content) for item in asked.messages),
        prompt=asked.prompt,
        scope=scope,
        priority=asked.priority,
        timeout_s=asked.timeout_s,
        profile=asked.profile,
        sampling=replace(
            defaults,
            **stated,
            min_tokens=asked.min_tokens,
            presence_penalty=asked.presence_penalty,
            frequency_penalty=asked.frequency_penalty,
            logit_bias=tuple(asked.logit_bias.items()),
            bad_words=asked.bad_words,
            seed=asked.seed,
            n=asked.n,
            stop=asked.stop,
            stop_token_ids=asked.stop_token_ids,
            include_stop_str_in_output=asked.include_stop_str_in_output,
            skip_special_tokens=asked.skip_special_tokens,
            ignore_eos=asked.ignore_eos,
            logprobs=asked.logprobs,
            prompt_logprobs=told,
            echo=asked.echo,
            truncate_prompt_tokens=asked.truncate_prompt_tokens,
            structure=_structure(asked),
        ),
    )


def sharing_scope(secret: bytes, *, session: str, cache_salt: str) -> bytes:
    """Return what bounds reuse of a prompt's state: the session, or the salt that a request names instead.

    Args:
        secret: of this worker, which serves one tenant.
        session: the session's id, out of its verified ticket.
        cache_salt: from the sealed request; empty for none.
    """
    kind, name = ("salt", cache_salt) if cache_salt else ("session", session)
    return hmac.digest(secret, f"bulkhead/v1 cache {kind}\0{name}".encode(), "sha256")


def _structure(asked: GenerateRequest) -> Structure | None:
    if asked.json_schema:
        return Structure(kind=StructureKind.JSON_SCHEMA, patterns=(asked.json_schema,))
    if asked.regex:
        return Structure(kind=StructureKind.REGEX, patterns=(asked.regex,))
    return Structure(kind=StructureKind.CHOICE, patterns=asked.choice) if asked.choice else None


def answer_deltas(delta: TokenDelta) -> Iterator[Content]:
    """Yield the records of what the engine produced: what it tells of the prompt in pieces, then the answer's part."""
    for at in range(0, len(delta.prompt_logprobs), PROMPT_PIECE):
        piece = delta.prompt_logprobs[at : at + PROMPT_PIECE]
        yield Delta(text="", tokens=0, index=delta.index, prompt_logprobs=piece)
    if delta.text or delta.token_ids:
        yield Delta(text=delta.text, tokens=len(delta.token_ids), index=delta.index, logprobs=delta.logprobs)
    for at in range(0, len(delta.trace), MAX_TRACE_BYTES):
        yield Trace(data=delta.trace[at : at + MAX_TRACE_BYTES])


def answer_end(ends: Mapping[int, TokenDelta], *, usage: Usage, cached_tokens: int) -> End:
    """Return the end of a request whose answers ended with ``ends``, by index.

    Raises:
        InternalError: an answer did not end.
    """
    reasons = [
        (delta.finish_reason.value, delta.stop_reason)
        for _, delta in sorted(ends.items())
        if delta.finish_reason is not None
    ]
    if not reasons or sorted(ends) != list(range(len(reasons))):
        raise InternalError("the engine ended a request before all of its answers")
    (finish_reason, stop_reason), *others = reasons
    return End(
        finish_reason=finish_reason,
        stop_reason=stop_reason,
        usage=usage,
        cached_tokens=cached_tokens,
        others=tuple(others),
    )
