"""What a request can ask of an answer, on the real engine with a tiny random model whose tokens are bytes."""

import asyncio
import json
import math
import re
import threading
from contextlib import aclosing, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from bulkhead.errors import BulkheadError, InvalidRequestError
from data_plane.engine import grammar
from data_plane.inference.port import EngineRequest, FinishReason, TokenDelta
from data_plane.inference.sampling_params import SamplingParams, Structure, StructureKind
from tests.simulator.tiny_engine import answer, chat_request, running_engine, token_request
from tests.simulator.tiny_model import CONTEXT, make_tiny_model

END = 2  # the model's end-of-turn token
FIRST_BYTE = 3  # token ids of bytes begin behind the special tokens
PROMPT = tuple(range(40, 60))
CHOICES = ("yes", "no", 'a "quoted" one', "\u00e9t\u00e9")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


async def ask(model: Path, *requests: EngineRequest, **settings: Any) -> list[Any]:
    """Return the answers to requests that run together."""
    async with running_engine(model, **settings) as engine:
        return await asyncio.gather(*(answer(engine, request) for request in requests))


def held(kind: str, *patterns: str, **sampling: Any) -> SamplingParams:
    """Return parameters that hold an answer to a form."""
    return SamplingParams(structure=Structure(kind=StructureKind(kind), patterns=patterns), **sampling)


def formed(request_id: str, kind: str, *patterns: str, **sampling: Any) -> EngineRequest:
    """Return a request whose answer is held to a form."""
    return EngineRequest(request_id=request_id, prompt_token_ids=PROMPT, sampling=held(kind, *patterns, **sampling))


async def test_answers_in_a_form_are_in_it(model: Path) -> None:
    """Schema, expression and choice each hold, sampled hot by a model of noise, and end by themselves."""
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["ann", "bob"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    hot = {"temperature": 1.5, "max_tokens": 200}
    requests = [
        *(formed(f"s{seed}", "json_schema", json.dumps(schema), seed=seed, **hot) for seed in range(4)),
        *(formed(f"r{seed}", "regex", "[0-9]{3}-[a-f]{2,4}", seed=seed, **hot) for seed in range(4)),
        *(
            formed(f"c{seed}", "choice", "yes", "no", 'a "quoted" one', "\u00e9t\u00e9", seed=seed, **hot)
            for seed in range(4)
        ),
        formed("greedy", "choice", "yes", "no"),
        token_request("free", PROMPT, max_tokens=20),
    ]
    answers = await ask(model, *requests)
    for item in answers[:4]:
        said = json.loads(item.text)
        assert said["name"] in {"ann", "bob"}
        assert 0 <= said["age"] <= 99
    assert all(re.fullmatch("[0-9]{3}-[a-f]{2,4}", item.text) for item in answers[4:8])
    assert all(item.text in CHOICES for item in answers[8:12])
    assert all(item.finish_reason is FinishReason.STOP for item in answers[:13])
    (alone,) = await ask(model, token_request("free", PROMPT, max_tokens=20))
    assert answers[13].tokens == alone.tokens  # neighbours held to a form change nothing


@pytest.mark.parametrize(
    ("kind", "pattern", "why"),
    [
        ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}', "minimum"),
        ("json_schema", '{"not": {}}', "not"),
        ("json_schema", '{"$ref": "https://example.com/schema.json"}', "retriev"),
        ("json_schema", "[1]", "not an object"),
        ("json_schema", "{", "not JSON"),
        ("json_schema", '{"items":' * 40 + "{}" + "}" * 40, "nested"),
        ("json_schema", "[" * 30_000 + "]" * 30_000, "not"),
        ("json_schema", '{"type": "integer", "multipleOf": 9999991}', "multipleOf"),
        ("json_schema", '{"allOf": [{"multipleOf": 9973}, {"multipleOf": 97}]}', "multipleOf"),
        ("json_schema", '{"allOf": [{"multipleOf": 9973}, {"multipleOf": 0.001}]}', "multipleOf"),
        ("json_schema", '{"multipleOf": 1e-300}', "multipleOf"),
        ("json_schema", '{"multipleOf": true}', "multipleOf"),
        ("json_schema", '{"minimum": NaN}', "json_schema"),
        ("json_schema", '{"const": "\\ud800"}', "json_schema"),
        ("json_schema", '{"const": "\ud800"}', "surrogate"),
        ("regex", "\ud800", "surrogate"),
        ("choice", "\ud800", "surrogate"),
        ("regex", "(?=a)b", "look"),
        ("regex", "(((a", "regex"),
        ("regex", "a[^\\s\\S]", "no answer can be held"),
    ],
)
async def test_a_form_that_nothing_can_have_is_refused_and_says_why(
    model: Path, kind: str, pattern: str, why: str
) -> None:
    """Contradictions, what is not supported, references to elsewhere and nesting without end; the engine lives."""
    async with running_engine(model) as engine:
        with pytest.raises(InvalidRequestError, match=why):
            await answer(engine, formed("bad", kind, pattern))
        assert (await answer(engine, token_request("good", PROMPT, max_tokens=2))).usage.completion_tokens == 2
        assert engine.metrics().kv_use == 0


@pytest.mark.parametrize(
    "structure",
    [
        {"kind": "choice", "patterns": ()},
        {"kind": "choice", "patterns": ("x",) * 257},
        {"kind": "choice", "patterns": ("",)},
        {"kind": "regex", "patterns": ("a", "b")},
        {"kind": "regex", "patterns": ("a" * 4097,)},
        {"kind": "json_schema", "patterns": (" " * 70_000,)},
    ],
)
def test_forms_are_bounded(structure: dict[str, Any]) -> None:
    """Counts and lengths are looked at before anything is compiled."""
    with pytest.raises(InvalidRequestError):
        Structure(kind=StructureKind(structure["kind"]), patterns=structure["patterns"])


async def test_expensive_forms_cost_their_request_only(model: Path) -> None:
    """Patterns made to explode end in an answer or a typed error in bounded time, while a neighbour is served."""
    nasty = [
        ("regex", "(((a|b){1,50}){1,50}){1,50}c"),
        ("json_schema", json.dumps({"type": "string", "pattern": "(a{1,1000}){1,1000}"})),
        ("json_schema", json.dumps({"enum": [f"value {index}" for index in range(3000)]})),
        ("json_schema", json.dumps({"anyOf": [{"properties": {f"p{i}": {"type": "string"}}} for i in range(300)]})),
    ]
    async with running_engine(model) as engine:

        async def outcome(index: int, kind: str, pattern: str) -> None:
            with suppress(InvalidRequestError):
                await answer(engine, formed(f"nasty{index}", kind, pattern, max_tokens=8))

        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            for index, (kind, pattern) in enumerate(nasty):
                tasks.create_task(outcome(index, kind, pattern))
            neighbour = await answer(engine, token_request("neighbour", PROMPT, max_tokens=8))
        assert neighbour.usage.completion_tokens == 8


async def test_a_form_that_takes_too_long_to_compile_is_given_up(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilation is bounded in time whatever the form; the request ends with a typed error, a neighbour is served."""
    over = threading.Event()
    monkeypatch.setattr(grammar, "COMPILE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(grammar, "_grammar_text", lambda _: over.wait(60))
    async with running_engine(model) as engine:
        try:
            with pytest.raises(InvalidRequestError, match="to compile"):
                await answer(engine, formed("slow", "regex", "a+"))
            assert (await answer(engine, token_request("good", PROMPT, max_tokens=2))).usage.completion_tokens == 2
        finally:
            over.set()


async def test_who_is_answered_in_a_form_waits_for_nobodys_compilation(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While as many forms compile as there are threads for, an answer whose form is there goes on to its end."""
    over = threading.Event()
    really = grammar._grammar_text
    monkeypatch.setattr(grammar, "COMPILE_TIMEOUT_S", 60)
    monkeypatch.setattr(
        grammar, "_grammar_text", lambda form: over.wait(60) if form.patterns == ("slow",) else really(form)
    )
    async with running_engine(model) as engine:
        form = {"structure": held("regex", "[a-z]{60}").structure, "max_tokens": 100}
        async with aclosing(engine.generate(token_request("going", PROMPT, **form))) as stream:
            await anext(stream)
            slow = [asyncio.create_task(answer(engine, formed(f"slow{i}", "regex", "slow"))) for i in range(3)]
            try:
                async with asyncio.timeout(30):
                    last = [delta async for delta in stream][-1]
            finally:
                over.set()
                await asyncio.gather(*slow, return_exceptions=True)
        assert last.finish_reason is FinishReason.STOP


@pytest.mark.parametrize("divisor", ["5", "0.01", "0.25", "1000", "19997"])
async def test_multiples_that_schemas_use_are_held(model: Path, divisor: str) -> None:
    """Hundredths, quarters and thousands are not refused, and what comes is a multiple."""
    schema = f'{{"type": "number", "multipleOf": {divisor}, "minimum": 0, "maximum": 100000}}'
    (item,) = await ask(model, formed("m", "json_schema", schema, temperature=1.5, seed=3, max_tokens=200))
    assert Decimal(item.text.strip()) % Decimal(divisor) == 0


async def test_several_answers_to_one_prompt(model: Path) -> None:
    """N answers come by index, each with its own end; answer i is that of seed + i alone; usage counts all once."""
    sampling = {"temperature": 1.0, "max_tokens": 12, "ignore_eos": True}
    async with running_engine(model) as engine:
        deltas: list[TokenDelta] = []
        async with aclosing(engine.generate(token_request("n", PROMPT, n=3, seed=7, **sampling))) as stream:
            async for delta in stream:
                deltas.append(delta)  # noqa: PERF401 - an error must leave what came before it
        alone = [await answer(engine, token_request(f"one{i}", PROMPT, seed=7 + i, **sampling)) for i in range(3)]
    for index in range(3):
        mine = [delta for delta in deltas if delta.index == index]
        assert tuple(token for delta in mine for token in delta.token_ids) == alone[index].tokens
        assert [delta.finish_reason is not None for delta in mine].count(True) == 1
    usages = [delta.usage for delta in deltas if delta.usage is not None]
    assert [(usage.prompt_tokens, usage.completion_tokens) for usage in usages] == [(len(PROMPT), 36)]
    assert deltas[-1].usage is not None


async def test_echo_and_raw_prompts(model: Path) -> None:
    """A raw prompt is taken without a template; with echo its text comes first."""
    request = EngineRequest(
        request_id="echo", prompt="once upon", sampling=SamplingParams(max_tokens=4, echo=True, ignore_eos=True)
    )
    plain = EngineRequest(
        request_id="plain", prompt="once upon", sampling=SamplingParams(max_tokens=4, ignore_eos=True)
    )
    echoed, bare = await ask(model, request, plain)
    assert echoed.text == "once upon" + bare.text
    assert echoed.usage == bare.usage
    assert bare.usage.prompt_tokens == len("once upon")


async def test_nothing_but_what_the_prompt_tells(model: Path) -> None:
    """With echo or prompt_logprobs no token need be produced, by a prompt that fills the context either."""
    full = tuple(40 + place % 50 for place in range(CONTEXT))
    echo, told, longest, one = await ask(
        model,
        EngineRequest(request_id="e", prompt="once upon", sampling=SamplingParams(max_tokens=0, echo=True, n=2)),
        token_request("p", PROMPT, max_tokens=0, prompt_logprobs=1, temperature=1.0, logprobs=1),
        token_request("l", full, max_tokens=0, echo=True, truncate_prompt_tokens=-1),
        token_request("o", PROMPT, max_tokens=1, prompt_logprobs=1),
        kv_memory_mib=32,
    )
    assert (echo.text, echo.tokens) == ("once upon" * 2, ())
    assert (told.text, told.tokens, told.deltas[-1].logprobs) == ("", (), ())
    assert told.deltas[-1].prompt_logprobs == one.deltas[0].prompt_logprobs != ()
    for item, tokens in ((echo, len("once upon")), (told, len(PROMPT)), (longest, CONTEXT)):
        assert item.finish_reason is FinishReason.LENGTH
        assert (item.usage.prompt_tokens, item.usage.completion_tokens) == (tokens, 0)
    with pytest.raises(InvalidRequestError, match="max_tokens"):
        SamplingParams(max_tokens=0)


async def test_a_top_k_of_minus_one_is_all(model: Path) -> None:
    """As 0, which vLLM prefers; nothing below."""
    sampling = {"max_tokens": 12, "temperature": 1.0, "seed": 5, "ignore_eos": True}
    ours, theirs = await ask(
        model, token_request("a", PROMPT, top_k=0, **sampling), token_request("b", PROMPT, top_k=-1, **sampling)
    )
    assert ours.tokens == theirs.tokens
    with pytest.raises(InvalidRequestError, match="top_k"):
        SamplingParams(top_k=-2)


async def test_prompts_are_cut_where_asked(model: Path) -> None:
    """truncate_prompt_tokens keeps the last tokens; -1 keeps what the context holds beside the answer."""
    long = tuple(40 + place % 50 for place in range(CONTEXT + 100))
    cut, whole, same = await ask(
        model,
        token_request("cut", long, truncate_prompt_tokens=20, max_tokens=5, ignore_eos=True),
        token_request("whole", long, truncate_prompt_tokens=-1, max_tokens=5, ignore_eos=True),
        token_request("same", long[-20:], max_tokens=5, ignore_eos=True),
        kv_memory_mib=32,
    )
    assert (cut.usage.prompt_tokens, whole.usage.prompt_tokens) == (20, CONTEXT - 5)
    assert cut.tokens == same.tokens


async def test_stop_tokens_and_stop_strings(model: Path) -> None:
    """The token or text that ended an answer is named, left out of its text, or left in where asked."""
    (free,) = await ask(model, token_request("free", PROMPT, max_tokens=30, ignore_eos=True))
    stop = free.tokens[10]
    first = free.tokens.index(stop)
    by_token, kept, late = await ask(
        model,
        token_request("t", PROMPT, max_tokens=30, ignore_eos=True, stop_token_ids=(stop,)),
        token_request(
            "k", PROMPT, max_tokens=30, ignore_eos=True, stop_token_ids=(stop,), include_stop_str_in_output=True
        ),
        token_request("l", PROMPT, max_tokens=30, ignore_eos=True, stop_token_ids=(stop,), min_tokens=first + 2),
    )
    assert by_token.tokens == kept.tokens == free.tokens[: first + 1]
    assert (by_token.finish_reason, by_token.deltas[-1].stop_reason) == (FinishReason.STOP, stop)
    assert kept.text.startswith(by_token.text)
    assert len(late.tokens) > first + 1
    assert stop not in late.tokens[: first + 1]  # until then its end is not even chosen


async def test_bias_and_bad_words_steer_an_answer(model: Path) -> None:
    """A bias of 100 forces a byte, -100 keeps it out, and bad words are never spelled."""
    letter = FIRST_BYTE + ord("q")
    (forced, barred, polite) = await ask(
        model,
        token_request("f", PROMPT, max_tokens=8, logit_bias=((letter, 100.0),)),
        token_request("b", PROMPT, max_tokens=60, temperature=2.0, seed=1, logit_bias=((letter, -100.0),)),
        token_request("p", PROMPT, max_tokens=60, logit_bias=((letter, 50.0),), bad_words=("qq",), ignore_eos=True),
    )
    assert set(forced.tokens) == {letter}
    assert letter not in barred.tokens
    assert letter in polite.tokens
    assert (letter, letter) not in set(zip(polite.tokens, polite.tokens[1:], strict=False))


async def test_bad_words_are_meant_with_and_without_a_space_before_them(model: Path) -> None:
    """As in vLLM a word is barred as it is written, without its leading space, and behind one."""
    space, letter = FIRST_BYTE + ord(" "), FIRST_BYTE + ord("q")
    pair = ((letter, 90.0), (space, 90.0))
    for word in ("q", " q"):
        (item,) = await ask(model, token_request("b", PROMPT, max_tokens=8, logit_bias=pair, bad_words=(word,)))
        assert set(item.tokens) == {space}


async def test_log_probabilities_come_with_their_tokens(model: Path) -> None:
    """One entry a token, greedy tokens have rank 1, and values are logarithms of probabilities."""
    (item,) = await ask(model, token_request("l", PROMPT, max_tokens=10, logprobs=5, ignore_eos=True))
    entries = [entry for delta in item.deltas for entry in delta.logprobs]
    assert tuple(entry.token_id for entry in entries) == item.tokens
    for entry in entries:
        assert (entry.rank, len(entry.top)) == (1, 5)
        assert entry.top[0][0] == entry.token_id
        assert entry.logprob == pytest.approx(entry.top[0][2])
        assert sum(math.exp(value) for _, _, value in entry.top) <= 1.0001


async def test_log_probabilities_of_the_prompt_are_transformers(model: Path) -> None:
    """Of each prompt token from the second on, whatever the chunks and the neighbours, and though its state is kept."""
    import torch
    import transformers

    oracle = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    prompt = tuple(40 + place * 7 % 90 for place in range(150))
    with torch.inference_mode():
        expected = torch.log_softmax(oracle(torch.tensor([prompt])).logits[0], dim=-1)
    options = {"max_tokens": 3, "prompt_logprobs": 2, "ignore_eos": True}
    for settings in ({}, {"step_tokens": 20}, {"kv_memory_mib": 1, "block_tokens": 16}):
        async with running_engine(model, **settings) as engine:
            others = [answer(engine, token_request(f"o{i}", prompt, max_tokens=30)) for i in range(8)]
            item, *_ = await asyncio.gather(answer(engine, token_request("p", prompt, **options)), *others)
            again = await answer(engine, token_request("again", prompt, n=2, **options))
        for answered in (item, again):
            entries = [entry for delta in answered.deltas for entry in delta.prompt_logprobs]
            assert tuple(entry.token_id for entry in entries) == prompt[1:]
            assert [entry.logprob for entry in entries] == pytest.approx(
                [expected[at, token].item() for at, token in enumerate(prompt[1:])], abs=1e-4
            )
            assert all(len(entry.top) == 2 for entry in entries)


async def test_special_tokens_can_be_shown(model: Path) -> None:
    """skip_special_tokens = false spells them."""
    prompt = {"prompt_token_ids": (1, 40), "request_id": "s"}
    shown = SamplingParams(max_tokens=1, echo=True, skip_special_tokens=False, ignore_eos=True)
    hidden = SamplingParams(max_tokens=1, echo=True, ignore_eos=True)
    async with running_engine(model) as engine:
        with_names = await answer(engine, EngineRequest(sampling=shown, **prompt))  # type: ignore[arg-type]
        without = await answer(engine, EngineRequest(sampling=hidden, **prompt))  # type: ignore[arg-type]
    assert with_names.text.startswith("<|im_start|>")
    assert not without.text.startswith("<|im_start|>")


@pytest.mark.parametrize("options", [{"stop_token_ids": (10**6,)}, {"logit_bias": ((10**6, 1.0),)}])
async def test_tokens_outside_the_vocabulary_are_refused(model: Path, options: dict[str, Any]) -> None:
    """A token id that the model does not have is the caller's error."""
    with pytest.raises(BulkheadError, match="token id is not between"):
        await ask(model, token_request("x", PROMPT, max_tokens=2, **options))


async def test_defaults_are_the_models_makers(tmp_path: Path) -> None:
    """generation_config.json's values are what describe() tells; a bad one is refused with its name."""
    path = make_tiny_model(tmp_path / "defaults")
    config = {"eos_token_id": 2, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05}
    (path / "generation_config.json").write_text(json.dumps(config | {"max_new_tokens": 99, "do_sample": True}))
    async with running_engine(path) as engine:
        found = engine.describe().defaults
    assert (found.temperature, found.top_k, found.top_p, found.repetition_penalty) == (0.6, 20, 0.95, 1.05)
    assert (found.max_tokens, found.min_p) == (99, 0.0)
    for bad in ({"temperature": "hot"}, {"top_k": 1.5}, {"top_k": -2}, {"top_p": 3}, {"top_k": True}):
        (path / "generation_config.json").write_text(json.dumps({"eos_token_id": 2} | bad))
        with pytest.raises(InvalidRequestError, match=r"generation_config\.json"):
            async with running_engine(path):
                pass


async def test_a_chat_in_a_form_is_not_templated_away(model: Path) -> None:
    """Messages and a form go together."""
    (item,) = await ask(model, chat_request("c", "yes or no?", structure=held("choice", "yes", "no").structure))
    assert item.text in {"yes", "no"}
