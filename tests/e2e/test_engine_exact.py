"""The native engine against transformers on the demo's chat model, in fp32."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from data_plane.engine import runner
from data_plane.inference.port import Engine, EngineRequest
from data_plane.inference.sampling_params import SamplingParams
from scripts import fetch_model
from tests.simulator.tiny_engine import Answer, answer, chat_request, running_engine

LOGIT_ERROR = 1e-3
LOGIT_ERROR_MEASURED = 2e-4  # of the 64 prompts
ROUNDED = {"bf16": 0.03, "int8": 0.12}  # root mean square by the logits' spread; 0.016 and 0.090 were measured
LOGIT_ERROR_ROUNDED = {"bf16": 1.5, "int8": 4.0}  # of one logit; 0.69 and 3.36 were measured
AGREEING = 0.9  # of the tokens; 31 and 32 of 32 were measured
SAMPLED = (0, 3, 5, 7)  # of the questions: short and long, another alphabet
QUESTIONS = (
    "What is the capital of France?",
    "Hi",
    "Write a haiku about the sea.",
    "Translate to German: The patient has a fever and was given two tablets.",
    "List three prime numbers above 100, then explain in one sentence why each of them is prime.",
    "日本の首都はどこですか 🙂",
    'def fib(n):\n    """Return the n-th Fibonacci number."""\n',
    "Summarise: " + "The hospital keeps its records on its own machines. A start-up shares the rack. " * 4,
    "What is 17 times 23?",
    "Who wrote 'Faust'? Answer with the name only.",
    "Continue: once upon a time there was a",
    "Explain TLS to a child.",
    "SELECT name FROM patients WHERE",
    "Name a colour.",
    "Write an e-mail to my landlord about a broken heater, politely but firmly, and ask for a date.",
    "What would happen if the moon were twice as far away? " * 3,
)


@pytest.fixture(scope="module")
def model() -> Path:
    """The chat model, fetched if it is not in the cache: without it this test fails, it is never skipped."""
    return fetch_model.ensure_chat_model(fetch_model.default_cache())


@pytest.fixture(scope="module")
def oracle(model: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


@pytest.fixture(scope="module")
def prompts(model: Path) -> list[tuple[int, ...]]:
    """The questions as transformers tokenises them."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    return [
        tuple(tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True))
        for text in QUESTIONS
    ]


def generated(oracle: Any, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
    ids = torch.tensor([prompt])
    done = oracle.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return tuple(done[0, len(prompt) :].tolist())


def forward(oracle: Any, prompt: tuple[int, ...], result: Answer) -> torch.Tensor:
    """Return transformers' logits from which each token of the answer was to be chosen [tokens, vocabulary]."""
    with torch.inference_mode():
        ids = torch.tensor([prompt + result.tokens[:-1]])
        logits: torch.Tensor = oracle(ids).logits[0, len(prompt) - 1 :]
    return logits


async def ask_all(engine: Engine, prompts: list[tuple[int, ...]], count: int, *, together: bool) -> list[Answer]:
    requests = [
        EngineRequest(request_id=str(i), prompt_token_ids=prompt, sampling=SamplingParams(max_tokens=count))
        for i, prompt in enumerate(prompts)
    ]
    if together:
        return list(await asyncio.gather(*(answer(engine, request) for request in requests)))
    return [await answer(engine, request) for request in requests]


async def test_text_is_tokenised_as_transformers_does_it(model: Path, prompts: list[tuple[int, ...]]) -> None:
    """Chat template and tokenizer give transformers' token ids, and the model answers the demo's question."""
    async with running_engine(model, threads=2, kv_memory_mib=256, block_tokens=32) as engine:
        for text, prompt in zip(QUESTIONS, prompts, strict=True):
            assert await engine.tokenize(chat_request("count", text)) == tuple(prompt)
        result = await answer(engine, chat_request("r", QUESTIONS[0], max_tokens=20))
        assert result.text == "The capital of France is Paris."
        assert result.finish_reason == "stop"
        assert result.usage.prompt_tokens == len(prompts[0])


@pytest.mark.timeout(400)
async def test_greedy_tokens_are_those_of_transformers(
    model: Path, oracle: Any, prompts: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The suite's sample: four prompts, alone and in a batch, are transformers' choice; logits agree within 1e-3."""
    prompts = [prompts[i] for i in SAMPLED]
    rows: list[torch.Tensor] = []
    choose = runner.choose
    monkeypatch.setattr(runner, "choose", lambda logits, samplers: rows.extend(logits) or choose(logits, samplers))
    async with running_engine(model, threads=2, kv_memory_mib=256, block_tokens=32) as engine:
        alone = await ask_all(engine, prompts, 16, together=False)
        seen = rows.copy()
        together = await ask_all(engine, prompts, 16, together=True)
    assert [item.tokens for item in together] == [item.tokens for item in alone]
    assert alone[0].tokens == generated(oracle, prompts[0], 16)
    for prompt, result in zip(prompts, alone, strict=True):
        expected = forward(oracle, prompt, result)
        own = torch.stack([seen.pop(0) for _ in result.tokens])
        assert tuple(expected.argmax(-1).tolist()) == result.tokens
        assert (own - expected).abs().max().item() < LOGIT_ERROR


VARIANTS: dict[str, dict[str, Any]] = {
    "whole prompts": {"step_tokens": 2048},
    "chunks": {"step_tokens": 64},
    "too little memory": {"kv_memory_mib": 28, "block_tokens": 4},
    "guesses": {"guess_tokens": 4, "guess_running": 64},
    "all at once": {"guess_tokens": 3, "guess_running": 64, "step_tokens": 80, "kv_memory_mib": 28, "block_tokens": 4},
}


def sixty_four(model: Path) -> list[tuple[int, ...]]:
    """Return 64 conversations of 31 to 398 tokens; every fourth begins as another one does."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    texts = []
    for i in range(64):
        parts = [QUESTIONS[(i * 5 + k * (1 + i // 16)) % 16] for k in range(1 + (i % 8) * (i // 16) // 2)]
        texts.append(" ".join([*(["As our rules say, answer briefly. " * 12] if i % 4 == 0 else []), *parts]))
    return [
        tuple(tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True))
        for text in texts
    ]


async def ask_scoped(engine: Engine, prompts: list[tuple[int, ...]], count: int) -> list[Answer]:
    return list(
        await asyncio.gather(
            *(
                answer(
                    engine,
                    EngineRequest(
                        request_id=str(i),
                        prompt_token_ids=prompt,
                        scope=b"tenant",
                        sampling=SamplingParams(max_tokens=count),
                    ),
                )
                for i, prompt in enumerate(prompts)
            )
        )
    )


class Judge:
    """Holds answers against transformers' logits, each distinct answer once."""

    def __init__(self, oracle: Any) -> None:
        self._oracle = oracle
        self._seen: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
        self.excused: list[str] = []
        self.checked = 0

    def check(self, prompt: tuple[int, ...], result: Answer, *, error: float) -> None:
        """Each token is transformers' choice; another is excused only where two are closer than twice ``error``."""
        if (prompt, result.tokens) in self._seen:
            return
        self._seen.add((prompt, result.tokens))
        expected = forward(self._oracle, prompt, result)
        chosen = expected.gather(1, torch.tensor(result.tokens)[:, None])[:, 0]
        gaps = expected.max(-1).values - chosen
        for place in gaps.nonzero()[:, 0].tolist():
            assert gaps[place].item() < 2 * error
            self.excused.append(f"prompt of {len(prompt)}, token {place}: {gaps[place].item():.1e} apart")
        self.checked += len(result.tokens)

    def record(self, record_property: Callable[[str, object], None]) -> None:
        """Write the figures into the test report (``--junit-xml``)."""
        record_property("tokens_checked", self.checked)
        record_property("excused", self.excused)


@pytest.mark.long
@pytest.mark.parametrize("quarter", range(4))
async def test_sixty_four_prompts_alone_equal_transformers(
    quarter: int,
    model: Path,
    oracle: Any,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    """64 prompts, 48 tokens, one after the other: each token is transformers' choice, logits agree within 1e-3."""
    judge = Judge(oracle)
    rows: list[torch.Tensor] = []
    choose, error = runner.choose, 0.0
    monkeypatch.setattr(runner, "choose", lambda logits, samplers: rows.extend(logits) or choose(logits, samplers))
    async with running_engine(model, threads=2, kv_memory_mib=256, block_tokens=32) as engine:
        for prompt in sixty_four(model)[quarter::4]:
            rows.clear()
            (result,) = await ask_all(engine, [prompt], 48, together=False)
            difference = (torch.stack(rows) - forward(oracle, prompt, result)).abs().max().item()
            error = max(error, difference)
            judge.check(prompt, result, error=difference)
    record_property("logit_error", error)
    judge.record(record_property)
    assert error < LOGIT_ERROR


@pytest.mark.long
@pytest.mark.parametrize("name", VARIANTS)
async def test_sixty_four_prompts_equal_transformers_whatever_is_done_to_them(
    name: str, model: Path, oracle: Any, record_property: Callable[[str, object], None]
) -> None:
    """64 prompts, 48 tokens: in batches, in chunks, preempted, from cached prefixes, with guesses."""
    prompts, judge, variant = sixty_four(model), Judge(oracle), VARIANTS[name]
    settings = {"threads": 1, "kv_memory_mib": 512, "block_tokens": 32, "max_running": 64} | variant
    async with running_engine(model, **settings) as engine:
        for _ in range(2):  # the second time from cached prefixes
            for prompt, result in zip(prompts, await ask_scoped(engine, prompts, 48), strict=True):
                judge.check(prompt, result, error=LOGIT_ERROR_MEASURED)
        counters = engine.metrics().counters
    record_property("preemptions", counters.preemptions)
    record_property("guessed_right", counters.guessed_right)
    judge.record(record_property)
    assert counters.cached_tokens > 0
    assert (counters.guessed_right > 0) is ("guess_tokens" in variant)
    assert (counters.preemptions > 0) is (variant.get("kv_memory_mib", 512) < 512)


async def test_chunks_prefixes_and_guesses_leave_tokens_as_they_are(
    model: Path, oracle: Any, prompts: list[tuple[int, ...]]
) -> None:
    """The suite's sample: five prompts in chunks, twice, with guesses and little memory, are transformers' choice."""
    judge = Judge(oracle)
    settings = {"threads": 2, "kv_memory_mib": 8, "block_tokens": 16, "step_tokens": 24, "max_running": 8}
    async with running_engine(model, **settings, guess_tokens=3, guess_running=8) as engine:
        for _ in range(2):
            chosen = [prompts[i] for i in (0, 4, 6, 10, 15)]
            for prompt, result in zip(chosen, await ask_scoped(engine, chosen, 36), strict=True):
                judge.check(prompt, result, error=LOGIT_ERROR_MEASURED)
        counters = engine.metrics().counters
    assert counters.cached_tokens > 0
    assert counters.guessed > 0
    assert counters.preemptions > 0
    assert judge.excused == []


@pytest.mark.parametrize(
    "chosen", [pytest.param(SAMPLED, id="sample"), pytest.param(range(8), id="full", marks=pytest.mark.long)]
)
@pytest.mark.parametrize("weights", ["bf16", "int8"])
async def test_rounded_weights_stay_within_their_rounding(
    weights: str,
    chosen: Sequence[int],
    model: Path,
    oracle: Any,
    prompts: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """bf16 and int8: logits near fp32's, and another token only where two are closer than twice the error."""
    prompts = [prompts[i] for i in chosen]
    rows: list[torch.Tensor] = []
    choose = runner.choose
    monkeypatch.setattr(runner, "choose", lambda logits, samplers: rows.extend(logits) or choose(logits, samplers))
    async with running_engine(model, threads=2, weights=weights, kv_memory_mib=64, block_tokens=32) as engine:
        assert engine.describe().weights == weights
        results = await ask_all(engine, prompts, 4, together=False)
    agreeing = 0.0
    for prompt, result in zip(prompts, results, strict=True):
        expected = forward(oracle, prompt, result)
        own = torch.stack([rows.pop(0) for _ in result.tokens])
        error = (own - expected).abs().max().item()
        assert 0.0 < error < LOGIT_ERROR_ROUNDED[weights]
        assert (own - expected).square().mean().sqrt().item() < ROUNDED[weights] * expected.std().item()
        agreeing += (own.argmax(-1) == expected.argmax(-1)).sum().item()
        chosen = expected.gather(1, torch.tensor(result.tokens)[:, None])[:, 0]
        assert (expected.max(-1).values - chosen).max().item() <= 2 * error
    assert agreeing >= AGREEING * sum(len(result.tokens) for result in results)


def test_fetching_again_is_instant_and_says_the_pinned_digest(model: Path) -> None:
    """A second run finds the model whole and prints its path and digest."""
    script = Path(fetch_model.__file__)
    done = subprocess.run(
        [sys.executable, str(script), "chat", "--cache", str(model.parent.parent), "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout) == {
        "name": "SmolLM2-135M-Instruct",
        "path": str(model),
        "digest": fetch_model.MODEL_DIGEST,
    }
    assert "fetching" not in done.stderr
