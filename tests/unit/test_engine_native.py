import asyncio
import contextlib
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bulkhead.errors import (
    ContextLengthError,
    InternalError,
    InvalidRequestError,
    QueueFullError,
    ShuttingDownError,
    UnsupportedError,
)
from data_plane.inference.port import EmbedRequest, EngineState, FinishReason
from tests.simulator.tiny_engine import answer, chat_request, running_engine, token_request
from tests.simulator.tiny_model import CONTEXT, make_tiny_model, random_prompts

WAIT_S = 20.0
END = 2  # the model's end-of-turn token


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def oracle(model: Path) -> Any:
    import torch
    import transformers

    torch.set_num_threads(1)
    return transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


def transformers_chooses(oracle: Any, prompt: tuple[int, ...], tokens: tuple[int, ...]) -> tuple[int, ...]:
    """Return transformers' greedy choice after the prompt and each beginning of ``tokens``: equal if it agrees."""
    import torch

    with torch.inference_mode():
        logits = oracle(torch.tensor([prompt + tokens[:-1]])).logits[0, len(prompt) - 1 :]
    return tuple(logits.argmax(-1).tolist())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_running": 32, "step_tokens": 40},
        {"max_running": 32, "kv_memory_mib": 1, "block_tokens": 16},
        {"max_running": 32, "block_tokens": 1},
    ],
    ids=["plain", "prompts in chunks", "too little memory", "a block per token"],
)
async def test_greedy_answers_equal_transformers_whatever_the_batch(
    model: Path, oracle: Any, settings: dict[str, int]
) -> None:
    """Mixed prompts, together, give transformers' tokens: queued, chunked, preempted or in odd blocks alike."""
    prompts = random_prompts(32, seed=4, low=1, high=150)
    async with running_engine(model, **settings) as engine:
        requests = [token_request(str(i), prompt, max_tokens=40) for i, prompt in enumerate(prompts)]
        answers = await asyncio.gather(*(answer(engine, request) for request in requests))
        for prompt, item in zip(prompts, answers, strict=True):
            assert item.tokens == transformers_chooses(oracle, prompt, item.tokens)
            assert END not in item.tokens[:-1]
            assert len(item.tokens) == 40 or item.tokens[-1] == END
        if "kv_memory_mib" in settings:
            assert engine.metrics().counters.preemptions > 0
        assert engine.metrics().kv_use == 0


async def test_a_prompt_alone_and_among_others_gives_the_same_answer(model: Path) -> None:
    """Greedy and seeded answers do not depend on what else is in the batch."""
    prompts = random_prompts(6, seed=9)
    async with running_engine(model) as engine:
        for temperature in (0.0, 1.0):
            requests = [
                token_request(str(i), prompt, max_tokens=20, temperature=temperature, seed=i, top_p=0.9, top_k=50)
                for i, prompt in enumerate(prompts)
            ]
            together = await asyncio.gather(*(answer(engine, request) for request in requests))
            alone = [await answer(engine, request) for request in requests]
            assert [item.tokens for item in together] == [item.tokens for item in alone]


async def test_a_stream_ends_once_with_reason_and_usage(model: Path) -> None:
    """Only the last delta has a finish reason and usage, and usage counts what was streamed."""
    async with running_engine(model) as engine:
        result = await answer(engine, chat_request("r", "hello", max_tokens=12, ignore_eos=True))
        assert all(delta.finish_reason is None and delta.usage is None for delta in result.deltas[:-1])
        assert result.finish_reason is FinishReason.LENGTH
        assert result.usage.completion_tokens == len(result.tokens) == 12
        assert result.usage.prompt_tokens == len(await engine.tokenize(chat_request("count", "hello")))


async def test_a_prompt_in_tokens_is_not_cut_into_tokens_again(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a conversation is in tokens has the same answer as the conversation, also under other limits."""
    async with running_engine(model) as engine:
        said = chat_request("r", "hello", max_tokens=3, ignore_eos=True)
        expected = await answer(engine, said)
        encoded: list[Any] = []
        tokenizer = engine._intake._tokenizer
        encode = tokenizer.encode_chat
        monkeypatch.setattr(
            tokenizer, "encode_chat", lambda messages: (encoded.append(messages), encode(messages))[1], raising=True
        )
        tokens = await engine.tokenize(replace(said, sampling=replace(said.sampling, max_tokens=None)))
        result = await answer(engine, replace(said, messages=(), prompt_token_ids=tokens))
        assert (result.usage.prompt_tokens, result.tokens) == (len(tokens), expected.tokens)
        assert len(encoded) == 1


async def test_the_end_of_turn_token_stops_an_answer(model: Path) -> None:
    """An answer ends with reason stop at the model's end token, whose text is not shown, unless told to ignore it."""
    prompts = random_prompts(60, seed=2)
    async with running_engine(model, max_running=64, kv_memory_mib=64) as engine:
        runs = [token_request(str(i), p, max_tokens=60, temperature=2.0, seed=i) for i, p in enumerate(prompts)]
        stopped = [
            item for item in await asyncio.gather(*(answer(engine, run) for run in runs)) if item.tokens[-1] == 2
        ]
        assert stopped
        for item in stopped:
            assert item.finish_reason is FinishReason.STOP
            assert 2 not in item.tokens[:-1]
            assert "<|im_end|>" not in item.text


async def test_a_stop_string_across_tokens_ends_the_text_before_it(model: Path) -> None:
    """A stop string made of several tokens cuts the answer in front of it, in whatever pieces it came."""
    prompts = random_prompts(8, seed=6)
    async with running_engine(model) as engine:
        whole = [await answer(engine, token_request("w", p, max_tokens=40, ignore_eos=True)) for p in prompts]
        text = max((item.text for item in whole), key=lambda item: len(set(item)))
        prompt = prompts[[item.text for item in whole].index(text)]
        stop = text[10:13]
        result = await answer(
            engine, token_request("s", prompt, max_tokens=40, ignore_eos=True, stop=(stop, "never-seen"))
        )
        assert result.finish_reason is FinishReason.STOP
        assert result.text == text[: text.index(stop)]


async def test_closing_the_stream_frees_memory_and_leaves_others_alone(model: Path) -> None:
    """A caller who goes away frees the blocks at once; a neighbour's answer is what it would have been."""
    first, second = random_prompts(2, seed=5)
    async with running_engine(model) as engine:
        expected = await answer(engine, token_request("alone", second, max_tokens=60, ignore_eos=True))
        neighbour = asyncio.create_task(answer(engine, token_request("b", second, max_tokens=60, ignore_eos=True)))
        async with contextlib.aclosing(
            engine.generate(token_request("a", first, max_tokens=400, ignore_eos=True))
        ) as stream:
            async for _ in stream:
                break
        assert (await neighbour).tokens == expected.tokens
        await until(lambda: engine.metrics().counters.cancelled == 1 and engine.metrics().kv_use == 0)
        assert engine.metrics().counters.produced_tokens < 300


async def test_cancelling_the_awaiting_task_cancels_the_request(model: Path) -> None:
    """Cancellation of the task that consumes a stream takes the request out of the engine."""
    async with running_engine(model) as engine:
        task = asyncio.create_task(answer(engine, token_request("a", (5, 6), max_tokens=500, ignore_eos=True)))
        await until(lambda: engine.metrics().counters.produced_tokens > 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: engine.metrics().counters.cancelled == 1 and engine.metrics().counters.running == 0)


async def test_prompts_that_do_not_fit_are_refused_with_both_numbers(model: Path) -> None:
    """Prompts at and above the context, and a limit beyond it, get ContextLengthError; one just below is served."""
    async with running_engine(model) as engine:
        fits = await answer(engine, token_request("fits", (5,) * (CONTEXT - 1)))
        assert (fits.usage.prompt_tokens, fits.usage.completion_tokens) == (CONTEXT - 1, 1)
        for tokens, limit in (((5,) * CONTEXT, None), ((5,) * (CONTEXT * 3), None), ((5,) * 10, CONTEXT)):
            with pytest.raises(ContextLengthError, match=str(CONTEXT)) as caught:
                await answer(engine, token_request("long", tokens, max_tokens=limit))
            assert caught.value.details["prompt_tokens"] == str(len(tokens))
        with pytest.raises(ContextLengthError):
            await answer(engine, chat_request("huge", "x" * 3_000_000))
        assert (await answer(engine, chat_request("after", "hi", max_tokens=2))).tokens


async def test_bad_input_is_a_typed_error_and_the_engine_lives(model: Path) -> None:
    """Token ids outside the vocabulary, lone surrogates and an id in flight are refused; the next request is served."""
    async with running_engine(model) as engine:
        for request in (
            token_request("r", (5, 10_000)),
            token_request("r", (-1,)),
            chat_request("r", "a lone \ud800 surrogate"),
        ):
            with pytest.raises(InvalidRequestError):
                await answer(engine, request)
        async with contextlib.aclosing(engine.generate(token_request("twice", (5,), max_tokens=300))) as stream:
            await anext(stream)
            with pytest.raises(InvalidRequestError, match="in flight"):
                await answer(engine, token_request("twice", (5,)))
        with pytest.raises(UnsupportedError, match="tiny-llama"):
            await engine.embed(EmbedRequest(request_id="e", texts=("a",)))
        assert (await answer(engine, chat_request("r", "hi", max_tokens=2))).tokens


async def test_the_loop_goes_on_while_a_step_computes(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a step does not end the event loop takes requests in and refuses bad ones; then all are served."""
    async with running_engine(model) as engine:
        runner, over = engine._stepper._runner, threading.Event()  # type: ignore[attr-defined]
        step = runner.step
        monkeypatch.setattr(runner, "step", lambda *given: over.wait(WAIT_S) and step(*given))
        first = asyncio.create_task(answer(engine, token_request("first", (5, 6), max_tokens=3, ignore_eos=True)))
        try:
            await asyncio.sleep(0.05)
            second = asyncio.create_task(answer(engine, token_request("second", (7, 8), max_tokens=3, ignore_eos=True)))
            assert await engine.tokenize(chat_request("x", "x"))
            assert engine.health() is EngineState.SERVING
            with pytest.raises(InvalidRequestError):
                await answer(engine, token_request("bad", (10_000,)))
            assert engine.metrics().counters.steps == 0
            assert not first.done()
        finally:
            over.set()
        assert [len(item.tokens) for item in await asyncio.gather(first, second)] == [3, 3]


async def test_a_full_queue_refuses_the_next_request(model: Path) -> None:
    """With a place for one and a queue of two, the fourth request is refused at once and the three are served."""
    async with running_engine(model, max_running=1, max_waiting=2) as engine:
        tasks = [
            asyncio.create_task(answer(engine, token_request(str(i), (5, 7), max_tokens=30, ignore_eos=True)))
            for i in range(3)
        ]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await answer(engine, token_request("four", (5,)))
        assert [len(item.tokens) for item in await asyncio.gather(*tasks)] == [30, 30, 30]
        with pytest.raises(InvalidRequestError, match="n is at most 3"):  # which waiting would not change
            await answer(engine, token_request("n", (5,), n=4))
        assert len((await answer(engine, token_request("n", (5,), n=3, max_tokens=2, ignore_eos=True))).tokens) == 6


async def test_draining_finishes_what_runs_and_takes_nothing_new(model: Path) -> None:
    """Drain reports false when time runs out and true when the last answer is whole; new requests are refused."""
    async with running_engine(model) as engine:
        running = asyncio.create_task(answer(engine, token_request("r", (5,), max_tokens=400, ignore_eos=True)))
        await until(lambda: engine.metrics().counters.running == 1)
        assert not await engine.drain(timeout_s=0.0)
        assert engine.health() is EngineState.DRAINING
        with pytest.raises(ShuttingDownError):
            await answer(engine, token_request("new", (5,)))
        assert await engine.drain(timeout_s=WAIT_S)
        assert len((await running).tokens) == 400


async def test_closing_ends_streams_with_an_error_and_erases_the_model(model: Path) -> None:
    """Close ends a running stream with ShuttingDownError, refuses later use, and leaves no weight in memory."""
    async with running_engine(model) as engine:
        runner = engine._stepper._runner  # type: ignore[attr-defined]
        decoder, cache = runner._decoder, runner._cache
        task = asyncio.create_task(answer(engine, token_request("r", (5,), max_tokens=400, ignore_eos=True)))
        await until(lambda: engine.metrics().counters.running == 1)
        await engine.aclose()
        with pytest.raises(ShuttingDownError):
            await task
        with pytest.raises(ShuttingDownError):
            await answer(engine, token_request("new", (5,)))
        with pytest.raises(ShuttingDownError):
            await engine.tokenize(chat_request("x", "x"))
        assert engine.health() is EngineState.CLOSED
        assert not decoder._embedding.any()
        assert all(not layer.attention_norm.any() for layer in decoder._layers)
        assert cache.is_clear(range(cache.blocks))
        assert not hasattr(runner, "_decoder")


@pytest.mark.filterwarnings("error")  # an exception that leaves the thread is a warning to pytest
async def test_a_failing_step_ends_every_request_and_the_engine_says_so(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a step raises, running and later requests get InternalError instead of waiting for ever."""
    async with running_engine(model) as engine:
        runner = engine._stepper._runner  # type: ignore[attr-defined]

        def broken(*_: object) -> list[int | None]:
            raise RuntimeError("boom")

        tasks = [
            asyncio.create_task(answer(engine, token_request(str(i), (5,), max_tokens=400, ignore_eos=True)))
            for i in range(3)
        ]
        await until(lambda: engine.metrics().counters.running == 3)
        monkeypatch.setattr(runner, "step", broken)
        for result in await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), WAIT_S):
            assert isinstance(result, InternalError)
            assert "boom" not in result.message
        assert engine.health() is EngineState.FAILED
        await until(lambda: not hasattr(runner, "_decoder"))
        with pytest.raises(InternalError):
            await answer(engine, token_request("later", (5,)))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_model_is_erased_though_its_requests_cannot_be_ended(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever state a failed step leaves the bookkeeping in, no weight stays in memory."""
    async with running_engine(model) as engine:
        runner = engine._stepper._runner  # type: ignore[attr-defined]
        decoder = runner._decoder

        def broken(*_: object) -> None:
            raise RuntimeError("boom")

        monkeypatch.setattr(runner, "step", broken)
        monkeypatch.setattr(runner.scheduler, "end", broken)
        with pytest.raises(InternalError):
            await answer(engine, token_request("r", (5,)))
        await until(lambda: not hasattr(runner, "_decoder"))
        assert not decoder._embedding.any()


async def test_a_finished_request_leaves_zeroed_blocks(model: Path) -> None:
    """Attention state of an ended request is overwritten before anything else can use its blocks."""
    async with running_engine(model) as engine:
        cache = engine._stepper._runner._cache  # type: ignore[attr-defined]
        stream = engine.generate(token_request("r", tuple(range(5, 60)), max_tokens=300, ignore_eos=True))
        await anext(stream)
        assert not cache.is_clear(range(6))
        assert 0.0 < engine.metrics().kv_use <= 1.0
        await stream.aclose()
        await until(lambda: engine.metrics().kv_use == 0)
        assert cache.is_clear(range(cache.blocks))


def test_the_engine_does_not_import_transformers() -> None:
    """A worker that opens the native engine never loads transformers, nor torch before it opens it."""
    import subprocess

    code = (
        "import sys, data_plane.engine; assert 'torch' not in sys.modules; import data_plane.engine.native;"
        "assert 'torch' in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


async def until(condition, *, timeout_s: float = WAIT_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the engine's thread moves on without an event to wait for
            await asyncio.sleep(0.005)
