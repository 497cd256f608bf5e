import asyncio
import gzip
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bulkhead.errors import DeadlineError, InvalidRequestError, ShuttingDownError
from data_plane.engine import grammar, stepper
from data_plane.engine.lookup import Lookup
from data_plane.inference.port import Engine, EngineRequest
from data_plane.inference.sampling_params import SamplingParams, Structure, StructureKind
from data_plane.session.observing import sound
from tests.simulator.tiny_engine import Answer, answer, chat_request, running_engine, token_request
from tests.simulator.tiny_model import make_tiny_model, random_prompts

SCOPE = b"a secret of the tenant"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


def scoped(name: str, tokens: tuple[int, ...], scope: bytes, **options: Any) -> EngineRequest:
    return EngineRequest(
        request_id=name,
        prompt_token_ids=tokens,
        scope=scope,
        sampling=SamplingParams(max_tokens=24, ignore_eos=True),
        **options,
    )


async def ask(engine: Engine, *requests: EngineRequest) -> list[Answer]:
    return list(await asyncio.gather(*(answer(engine, request) for request in requests)))


def test_a_guess_is_what_followed_the_same_tokens_before() -> None:
    """The last place where the last three tokens stood tells what may come; without one nothing is guessed."""
    lookup = Lookup()
    assert lookup.guess([1, 2, 3], 4) == ()
    assert lookup.guess([1, 2, 3, 9, 8, 1, 2, 3], 4) == (9, 8, 1, 2)
    assert lookup.guess([1, 2, 3, 9, 8, 1, 2, 3, 7, 1, 2, 3], 2) == (7, 1)
    assert lookup.guess([1, 2, 3, 9, 8, 1, 2, 3, 7, 1, 2, 3, 5], 2) == ()


async def test_guessing_ahead_changes_no_answer(model: Path) -> None:
    """Greedy answers to prompts that repeat themselves are the same with guesses, some of which prove right."""
    prompts = [prompt * 3 for prompt in random_prompts(6, seed=3, low=5, high=20)]
    requests = [token_request(str(i), prompt, max_tokens=100) for i, prompt in enumerate(prompts)]
    async with running_engine(model) as engine:
        expected = [await answer(engine, request) for request in requests]
    async with running_engine(model, guess_tokens=4, step_tokens=20) as engine:
        alone = [await answer(engine, request) for request in requests]
        counters = engine.metrics().counters
        assert counters.guessed > counters.guessed_right > 0
        assert counters.steps < sum(len(item.tokens) for item in alone) + 30
        together = await ask(engine, *requests)
    assert [(item.tokens, item.text, item.usage) for item in alone] == [
        (item.tokens, item.text, item.usage) for item in expected
    ]
    assert [item.tokens for item in together] == [item.tokens for item in expected]


async def test_a_cached_prefix_changes_no_answer_and_is_counted(model: Path) -> None:
    """The same beginning within a scope is computed once, for those who come together and later; answers stay."""
    start = random_prompts(1, seed=5, low=60, high=60)[0]
    prompts = [start + tail for tail in random_prompts(5, seed=6, low=2, high=9)]
    async with running_engine(model) as engine:
        expected = await ask(engine, *(scoped(str(i), prompt, b"") for i, prompt in enumerate(prompts)))
        assert all(item.usage.cached_tokens == 0 for item in expected)
        await answer(engine, scoped("first", prompts[0], SCOPE))
        again = await ask(engine, *(scoped(str(i), prompt, SCOPE) for i, prompt in enumerate(prompts)))
        assert all(item.usage.cached_tokens >= 56 for item in again)
        assert [item.tokens for item in again] == [item.tokens for item in expected]
        counters = engine.metrics().counters
        assert counters.cached_tokens == sum(item.usage.cached_tokens for item in again)
        assert counters.queried_tokens > counters.cached_tokens


async def test_a_request_whose_time_is_over_ends_and_others_go_on(model: Path) -> None:
    """Waiting or running, a request past its time gets DeadlineError, its memory is free, its neighbour is whole."""
    async with running_engine(model, max_running=2) as engine:
        expected = await answer(engine, token_request("alone", (5, 6, 7), max_tokens=300, ignore_eos=True))
        late = [
            EngineRequest(
                request_id=f"late {i}",
                prompt_token_ids=(9,) * 20,
                timeout_s=0.02,
                sampling=SamplingParams(max_tokens=450, ignore_eos=True),
            )
            for i in range(3)
        ]
        kept = asyncio.create_task(answer(engine, token_request("kept", (5, 6, 7), max_tokens=300, ignore_eos=True)))
        results = await asyncio.gather(*(answer(engine, request) for request in late), return_exceptions=True)
        assert [type(result) for result in results] == [DeadlineError] * 3
        assert (await kept).tokens == expected.tokens
        assert engine.metrics().counters.expired == 3
        assert engine.metrics().kv_use == 0


async def test_a_requests_time_runs_while_it_is_prepared(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A form that compiles for longer than the request allows ends it by its deadline, and leaves its place."""
    over = threading.Event()
    monkeypatch.setattr(grammar, "_grammar_text", lambda _: over.wait(60))
    structure = Structure(kind=StructureKind.REGEX, patterns=("a+",))
    async with running_engine(model, max_running=1, max_waiting=0) as engine:
        try:
            late = EngineRequest(
                request_id="late",
                prompt_token_ids=(5,),
                timeout_s=0.02,
                sampling=SamplingParams(structure=structure, max_tokens=2),
            )
            with pytest.raises(DeadlineError):
                await answer(engine, late)
            assert (await answer(engine, token_request("next", (5,), max_tokens=2, ignore_eos=True))).tokens
        finally:
            over.set()


async def test_an_engine_that_closes_ends_what_is_prepared_by_type(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for the tokenizer's thread when the engine closes is told so, and is not cancelled instead."""
    over = threading.Event()
    async with running_engine(model) as engine:
        monkeypatch.setattr(engine._intake._tokenizer, "encode_chat", lambda _: over.wait(60) and [5])
        waiting = [asyncio.create_task(answer(engine, chat_request(str(i), "x"))) for i in range(3)]
        await asyncio.sleep(0)
        await engine.aclose()
        over.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [ShuttingDownError] * 3


async def test_deadlines_of_what_has_ended_are_forgotten(model: Path) -> None:
    """Requests with long deadlines that end early leave nothing behind that waits for the deadline."""
    async with running_engine(model) as engine:
        for i in range(140):
            request = EngineRequest(
                request_id=str(i), prompt_token_ids=(5,), timeout_s=3600.0, sampling=SamplingParams(max_tokens=1)
            )
            await answer(engine, request)
        loop: Any = asyncio.get_running_loop()
        assert not [timer for timer in loop._scheduled if not timer.cancelled() and timer.when() > loop.time() + 600.0]


async def test_lower_numbers_leave_the_queue_first(model: Path) -> None:
    """With one place, the request of the lowest number is served before others that wait, though it came last."""
    ended: list[str] = []
    async with running_engine(model, max_running=1) as engine:

        async def take(name: str, priority: int) -> None:
            request = scoped(name, (5, 6), b"", priority=priority)
            await answer(engine, request)
            ended.append(name)

        async with asyncio.TaskGroup() as group:
            for name, priority in (("running", 0), ("later", 5), ("normal", 0), ("urgent", -5)):
                group.create_task(take(name, priority))
    assert ended.index("urgent") < ended.index("normal") < ended.index("later")


@pytest.mark.parametrize("options", [{"priority": 101}, {"timeout_s": 0.0}, {"timeout_s": float("inf")}])
def test_priorities_and_times_out_of_bounds_are_refused(options: dict[str, Any]) -> None:
    """A priority beyond its range and a time that is none are the caller's error."""
    with pytest.raises(InvalidRequestError):
        EngineRequest(request_id="r", prompt_token_ids=(1,), **options)


async def test_metrics_count_requests_tokens_and_times(model: Path) -> None:
    """What vLLM's metrics mean is counted: tokens, prefix hits, reasons, and a time for each answer that ended."""
    async with running_engine(model) as engine:
        await answer(engine, scoped("one", tuple(range(5, 45)), SCOPE))
        await answer(engine, scoped("two", tuple(range(5, 45)), SCOPE))
        metrics = engine.metrics()
    counters = metrics.counters
    assert (counters.running, counters.waiting, metrics.kv_use) == (0, 0, 0.0)
    assert (counters.produced_tokens, metrics.prompt_tokens) == (48, 80)
    assert (counters.cached_tokens, counters.queried_tokens) == (32, 80)
    assert (metrics.stopped, metrics.cut) == (0, 2)
    for histogram in (metrics.first_token, metrics.per_token, metrics.queue, metrics.whole):
        assert sum(histogram.counts) == 2
        assert histogram.total_s > 0
    assert metrics.whole.total_s > metrics.first_token.total_s > metrics.queue.total_s
    assert sound(metrics)


async def test_traced_steps_are_seldom(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ask, others are held up by a traced step once in a while only; who is not served has no trace."""
    monkeypatch.setattr(stepper, "TRACE_PAUSE_S", 3600.0)
    async with running_engine(model) as engine:
        requests = [replace(token_request(str(i), (5, 6, 7), max_tokens=8), profile=True) for i in range(3)]
        traces = [sum(map(len, (delta.trace for delta in (await answer(engine, r)).deltas))) for r in requests]
    assert traces[0] > 0
    assert traces[1:] == [0, 0]


async def test_a_profile_shows_one_steps_operators(model: Path) -> None:
    """The step of the second token is traced, in Chrome's format, for who asked; a single token's answer has none."""
    async with running_engine(model) as engine:
        asked = replace(token_request("r", (5, 6, 7), max_tokens=3, n=2, ignore_eos=True), profile=True)
        profiled, beside = await asyncio.gather(
            answer(engine, asked), answer(engine, token_request("beside", (8, 9), max_tokens=6))
        )
        plain = await answer(engine, replace(asked, profile=False))
        short = await answer(engine, replace(asked, sampling=SamplingParams(max_tokens=1)))
    traces = [delta.trace for delta in profiled.deltas if delta.trace]
    assert [delta.index for delta in profiled.deltas if delta.trace] == [0]
    names = {event.get("name") for event in json.loads(gzip.decompress(traces[0]))["traceEvents"]}
    assert {"aten::linalg_vector_norm", "aten::amax"} <= names
    assert b"Input Dims" not in gzip.decompress(traces[0])
    assert sorted(profiled.tokens) == sorted(plain.tokens)  # of two answers, in whatever order
    assert not any(delta.trace for other in (beside, plain, short) for delta in other.deltas)
