"""How answers begin and end, on the real engine: stop reasons, echo, usage of several, and the vocabulary of forms."""

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import llguidance
import pytest

from bulkhead.errors import InvalidRequestError
from data_plane.engine import grammar, intake
from data_plane.engine.edits import Edit
from data_plane.engine.tokenizer import Tokenizer
from data_plane.inference.port import EngineRequest, FinishReason
from data_plane.inference.sampling_params import SamplingParams, Structure, StructureKind
from tests.simulator.tiny_engine import Answer, answer, running_engine, token_request
from tests.simulator.tiny_model import SPECIAL, make_tiny_model

TURN_END = 2  # what the tokenizer names
PROMPT = tuple(range(40, 60))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "tiny")


async def free_tokens(model: Path) -> tuple[int, ...]:
    async with running_engine(model) as engine:
        return (await answer(engine, token_request("free", PROMPT, max_tokens=30, ignore_eos=True))).tokens


def rename_ends(model: Path, *, model_ends: list[int] | None, turn_end: str | None) -> None:
    """Change which tokens the model's files name as ends of a turn."""
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": model_ends}))
    config = json.loads((model / "config.json").read_text()) | {"eos_token_id": None}
    (model / "config.json").write_text(json.dumps(config))
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": turn_end}))


async def ended_by(model: Path, **sampling: object) -> Answer:
    async with running_engine(model) as engine:
        return await answer(engine, token_request("r", PROMPT, **({"max_tokens": 30} | sampling)))


async def test_an_end_that_the_tokenizer_does_not_name_is_a_stop_reason(model: Path) -> None:
    """Of several end-of-turn tokens, as in vLLM: the tokenizer's own ends an answer without one."""
    tokens = await free_tokens(model)
    stop = tokens[10]
    place = tokens.index(stop) + 1
    name = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    spelling = next(text for text, token in name.items() if token == stop)
    for model_ends, turn_end, reason in (
        ([TURN_END, stop], "<|im_end|>", stop),
        ([TURN_END, stop], spelling, None),
        ([TURN_END], spelling, None),  # the tokenizer's own is one, though the model does not say so
        (None, spelling, None),
        ([stop], None, None),  # no other could be meant
        ([TURN_END, stop], None, stop),
    ):
        rename_ends(model, model_ends=model_ends, turn_end=turn_end)
        found = await ended_by(model)
        assert (found.tokens, found.finish_reason) == (tokens[:place], FinishReason.STOP)
        assert found.deltas[-1].stop_reason == reason, (model_ends, turn_end)


async def test_the_turns_own_end_is_a_stop_reason_only_where_it_is_asked_for_and_else_ignored(model: Path) -> None:
    """A stop token that is the end of turn as well counts as that, unless the request ignores ends of turns."""
    tokens = await free_tokens(model)
    stop = tokens[10]
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    rename_ends(model, model_ends=[stop], turn_end=next(text for text, token in vocabulary.items() if token == stop))
    assert (await ended_by(model, stop_token_ids=(stop,))).deltas[-1].stop_reason is None
    ignoring = await ended_by(model, stop_token_ids=(stop,), ignore_eos=True)
    assert (ignoring.deltas[-1].stop_reason, ignoring.tokens) == (stop, tokens[: tokens.index(stop) + 1])
    assert (await ended_by(model, ignore_eos=True)).finish_reason is FinishReason.LENGTH


async def test_a_prompt_is_echoed_from_one_decoding_off_the_event_loop(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many answers begin with it: a long prompt's text must not hold up every stream of the worker."""
    threads: list[str] = []
    decode = Tokenizer.decode_long

    def watched(self: Tokenizer, ids: Sequence[int], *, special: bool = False) -> str:
        threads.append(threading.current_thread().name)
        return decode(self, ids, special=special)

    monkeypatch.setattr(Tokenizer, "decode_long", watched)
    text = "Grüße, " * 40
    request = EngineRequest(
        request_id="e", prompt=text, sampling=SamplingParams(max_tokens=3, n=4, echo=True, ignore_eos=True)
    )
    async with running_engine(model) as engine:
        found = await answer(engine, request)
    begun = {delta.index: delta.text for delta in reversed(found.deltas)}
    assert begun == dict.fromkeys(range(4), text)
    assert len(threads) == 1
    assert threads[0].startswith("engine-text")


async def test_what_penalties_count_is_gathered_off_the_event_loop(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repetition penalty looks at every token of the prompt, for each answer: no stream may wait for that."""
    threads: list[str] = []
    make = intake.make_edits

    def watched(params: SamplingParams, **named: Any) -> tuple[Edit, ...]:
        threads.append(threading.current_thread().name)
        return make(params, **named)

    monkeypatch.setattr(intake, "make_edits", watched)
    await ended_by(model, n=3, repetition_penalty=1.3)
    assert len(threads) == 3
    assert all(name.startswith("engine-text") for name in threads)


async def test_log_probabilities_name_special_tokens(model: Path) -> None:
    """The end of a turn has no text in an answer, but it has a name among the likeliest tokens, as in vLLM."""
    found = await ended_by(model, logit_bias=((TURN_END, 100.0),), logprobs=0)
    (entry,) = [entry for delta in found.deltas for entry in delta.logprobs]
    assert (found.text, entry.text) == ("", SPECIAL[TURN_END])


async def test_several_answers_in_a_form_compile_it_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A form may take a second to compile: n answers take it once, and each is held to it by itself."""
    compiled: list[Structure] = []
    read = grammar._grammar_text

    def watched(structure: Structure) -> str:
        compiled.append(structure)
        return read(structure)

    monkeypatch.setattr(grammar, "_grammar_text", watched)
    form = Structure(kind=StructureKind.REGEX, patterns=("[0-9]{3}-[a-f]{2,4}",))
    found = await ended_by(model, n=6, structure=form, temperature=1.5, seed=3)
    texts = ["".join(delta.text for delta in found.deltas if delta.index == index) for index in range(6)]
    assert all(re.fullmatch(form.patterns[0], text) for text in texts)
    assert len(set(texts)) > 1
    assert compiled == [form]


@pytest.mark.parametrize("at_load", [True, False])
async def test_the_vocabulary_for_forms_is_read_once_and_while_loading_where_asked(
    model: Path, monkeypatch: pytest.MonkeyPatch, *, at_load: bool
) -> None:
    """Which holds Python's lock, and with it every stream: what serves must not begin it, and nothing repeats it."""
    read: list[str] = []
    make = llguidance.LLTokenizer

    def watched(*given: Any, **named: Any) -> llguidance.LLTokenizer:
        read.append("once")
        return make(*given, **named)

    monkeypatch.setattr(llguidance, "LLTokenizer", watched)
    form = Structure(kind=StructureKind.CHOICE, patterns=("yes", "no"))
    async with running_engine(model, forms_at_load=at_load) as engine:
        assert len(read) == at_load
        for name in "ab":
            found = await answer(engine, token_request(name, PROMPT, structure=form))
            assert found.text in form.patterns
    assert len(read) == 1


class PanicException(BaseException):
    pass


@pytest.mark.parametrize("failure", [ValueError("no"), PanicException("at line 1")])
async def test_a_vocabulary_that_no_form_can_be_held_in_stops_nothing_else(
    model: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    """The model loads and answers; a request in a form gets a typed error."""

    def fails(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(llguidance, "LLTokenizer", fails)
    form = Structure(kind=StructureKind.CHOICE, patterns=("yes", "no"))
    async with running_engine(model, forms_at_load=True) as engine:
        with pytest.raises(InvalidRequestError, match="tokenizer"):
            await answer(engine, token_request("f", PROMPT, structure=form))
        assert (await answer(engine, token_request("g", PROMPT, max_tokens=2))).usage.completion_tokens == 2


async def test_cached_tokens_of_several_answers_are_the_prompts(model: Path) -> None:
    """What the first answer found, whichever ends last: that the others find what it has just left is no saving."""
    request = token_request("r", PROMPT, max_tokens=3, n=4, ignore_eos=True)
    async with running_engine(model, max_running=1, block_tokens=8) as engine:
        first = await answer(engine, replace(request, scope=b"s" * 32))
        again = await answer(engine, replace(request, scope=b"s" * 32))
    assert [item.usage.cached_tokens for item in (first, again)] == [0, 16]
    assert [item.usage.completion_tokens for item in (first, again)] == [12, 12]
