"""Bad input while good requests run: a typed error for who sent it, and nothing for anybody else."""

import asyncio
import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from bulkhead.errors import BulkheadError, ContextLengthError, InvalidRequestError
from data_plane.inference.port import ChatMessage, Engine, EngineRequest
from data_plane.inference.sampling_params import SamplingParams, Structure, StructureKind
from tests.simulator.tiny_engine import answer, chat_request, running_engine, token_request
from tests.simulator.tiny_model import CHAT_TEMPLATE, CONTEXT, make_tiny_model

BOMB = "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = b %}{% endfor %}{% endfor %}"
PROMPT = (5, 6, 7, 8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose template goes off at one word, and renders to nothing at another."""
    made = make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    config = json.loads((made / "tokenizer_config.json").read_text())
    said = "messages[0]['content']"
    config["chat_template"] = (
        f"{{% if {said} == 'bomb' %}}{BOMB}{{% elif {said} != 'nothing' %}}{CHAT_TEMPLATE}{{% endif %}}"
    )
    (made / "tokenizer_config.json").write_text(json.dumps(config))
    return made


def held(pattern: str, kind: StructureKind = StructureKind.JSON_SCHEMA) -> EngineRequest:
    return EngineRequest(
        request_id="bad",
        prompt_token_ids=PROMPT,
        sampling=SamplingParams(structure=Structure(kind=kind, patterns=(pattern,))),
    )


BAD: dict[str, EngineRequest] = {
    "a template bomb": chat_request("bad", "bomb"),
    "a prompt of no tokens": chat_request("bad", "nothing"),
    "a prompt as long as the context": token_request("bad", PROMPT * (CONTEXT // 4)),
    "a prompt above the context": token_request("bad", PROMPT * (CONTEXT // 4 + 1)),
    "a prompt far above the context": token_request("bad", PROMPT * CONTEXT * 100),
    "a text far above the context": chat_request("bad", "x" * 2_000_000),
    "more than the context leaves": token_request("bad", PROMPT, max_tokens=CONTEXT),
    "half a character": chat_request("bad", "\ud800"),
    "half a character to stop at": token_request("bad", PROMPT, bad_words=("\ud800",)),
    "a token that is none": token_request("bad", (5, 10_000)),
    "a stop token that is none": token_request("bad", PROMPT, stop_token_ids=(10_000,)),
    "a biased token that is none": token_request("bad", PROMPT, logit_bias=((10_000, 1.0),)),
    "a schema that nothing satisfies": held('{"type": "integer", "minimum": 5, "maximum": 3}'),
    "a schema that is none": held("{"),
    "a schema nested without end": held('{"items":' * 5_000 + "{}" + "}" * 5_000),
    "an expression that is none": held("(((a", StructureKind.REGEX),
}


async def begin(engine: Engine) -> "asyncio.Task[Any]":
    """Return a long answer that has begun."""
    task = asyncio.create_task(answer(engine, token_request("good", PROMPT, max_tokens=150, ignore_eos=True)))
    async with asyncio.timeout(60):
        while engine.metrics().counters.produced_tokens == 0:  # noqa: ASYNC110 - the engine's thread has no event to wait for
            await asyncio.sleep(0.001)
    return task


async def test_bad_requests_end_alone(model: Path) -> None:
    """Each bad request is a typed error beside a running answer, which stays what it is; nothing of them is kept."""
    async with running_engine(model) as engine:
        expected = await answer(engine, token_request("alone", PROMPT, max_tokens=150, ignore_eos=True))
        for name, request in BAD.items():
            running = await begin(engine)
            with pytest.raises(InvalidRequestError) as caught:
                await asyncio.wait_for(answer(engine, request), 60)
            assert isinstance(caught.value, ContextLengthError) is ("context" in name), name
            assert "\n" not in caught.value.message
            assert (await running).tokens == expected.tokens, name
        assert engine.metrics().kv_use == 0
        assert (engine.metrics().counters.running, engine.metrics().counters.waiting) == (0, 0)


async def test_bad_requests_all_at_once_leave_the_engine_as_it_was(model: Path) -> None:
    """As many at a time as the queue holds, twice over: all end with typed errors, and the engine serves on."""
    async with running_engine(model) as engine:
        running = await begin(engine)

        async def outcome(index: int, request: EngineRequest) -> None:
            named = EngineRequest(
                request_id=f"{index}",
                messages=request.messages,
                prompt_token_ids=request.prompt_token_ids,
                sampling=request.sampling,
            )
            with pytest.raises(BulkheadError):
                await answer(engine, named)

        async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
            for index, request in enumerate([item for name, item in BAD.items() if "bomb" not in name] * 2):
                tasks.create_task(outcome(index, request))
        assert len((await running).tokens) == 150
        assert (await answer(engine, token_request("after", PROMPT, max_tokens=2))).usage.completion_tokens == 2


async def test_an_answer_is_not_held_up_by_a_template_that_works_without_end(model: Path) -> None:
    """While a template bomb burns its time, an answer that runs goes on: rendering is on a thread of its own."""
    async with running_engine(model) as engine:
        burning = asyncio.create_task(answer(engine, chat_request("bomb", "bomb")))
        async with aclosing(engine.generate(token_request("r", PROMPT, max_tokens=300, ignore_eos=True))) as stream:
            count = 0
            async for delta in stream:
                count += len(delta.token_ids)
        assert count == 300
        with pytest.raises(InvalidRequestError):
            await burning


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": ""},
        {"messages": ()},
        {"prompt_token_ids": ()},
        {"prompt": "x", "messages": (ChatMessage(role="user", content="x"),)},
    ],
)
def test_an_empty_prompt_is_no_request(options: dict[str, Any]) -> None:
    """Without a prompt, or with two, no request can be made."""
    with pytest.raises(InvalidRequestError):
        EngineRequest(request_id="r", **options)
