"""Frequencies of sampled tokens against the exact distribution: each option, all together, and a whole engine."""

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from data_plane.engine import runner
from data_plane.engine.edits import make_edits
from data_plane.engine.sampling import Sampler, choose
from data_plane.inference.port import EngineRequest
from data_plane.inference.sampling_params import SamplingParams, Structure, StructureKind
from tests.simulator.tiny_engine import answer, running_engine
from tests.simulator.tiny_model import make_tiny_model

DRAWS = 2_000
LOGITS = (2.0, 1.5, 1.4, 0.3, 0.0, -0.5, -1.0, -1.6)
PROMPT, ANSWER = (1, 1, 6), (0, 2, 2, 7)
ENDING = frozenset({4})
BAD_WORDS = ((3,), (7, 1), (6, 5))  # the second is completed by 1, the last was not begun
# The 0.999 quantiles of chi-square. Seeds are fixed, so a test that passes once passes always.
QUANTILE = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52, 6: 22.46, 7: 24.32}


class Form:
    """A grammar's place in the order: forbids some tokens."""

    def __init__(self, forbidden: Sequence[int]) -> None:
        self._forbidden = list(forbidden)

    def apply(self, row: torch.Tensor) -> None:
        """Forbid."""
        row[self._forbidden] = -math.inf

    def accept(self, _: int, /) -> None:
        """Nothing: it stays the same form."""


def edited(params: SamplingParams, forbidden: Sequence[int]) -> list[float]:
    """Return the logits after penalties, bias, forbidden tokens and form, as vLLM defines them, in plain Python."""
    values = []
    for token, raw in enumerate(LOGITS):
        factor = params.repetition_penalty if token in {*PROMPT, *ANSWER} else 1.0
        count = ANSWER.count(token)
        value = raw / factor if raw > 0 else raw * factor
        value -= params.frequency_penalty * count + params.presence_penalty * (count > 0)
        value += dict(params.logit_bias).get(token, 0.0)
        bad = params.bad_words and token in {3, 1}
        early = len(ANSWER) < params.min_tokens and token in {*ENDING, *params.stop_token_ids}
        values.append(-math.inf if bad or early or token in forbidden else value)
    return values


def exact(params: SamplingParams, forbidden: Sequence[int] = ()) -> list[float]:
    """Return each token's probability: the edited logits through temperature, min-p, top-k and top-p, in this order."""
    weights = [math.exp(value / params.temperature) for value in edited(params, forbidden)]
    order = sorted(range(len(weights)), key=lambda token: -weights[token])
    order = [token for token in order if weights[token] > 0 and weights[token] >= params.min_p * max(weights)]
    order = order[: params.top_k or len(order)]
    total, reached, kept = sum(weights[token] for token in order), 0.0, list[int]()
    for token in order:
        kept.append(token)
        reached += weights[token] / total
        if reached >= params.top_p:
            break
    total = sum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(weights))]


def check(counts: Counter[int], probabilities: Sequence[float]) -> None:
    """Fail if the counts do not follow the probabilities by chi-square, or hold what is impossible."""
    draws = counts.total()
    possible = {token: share * draws for token, share in enumerate(probabilities) if share > 0}
    assert set(counts) <= set(possible)
    if len(possible) > 1:
        assert min(possible.values()) >= 5  # below it the statistic is no chi-square
        statistic = sum((counts[token] - mean) ** 2 / mean for token, mean in possible.items())
        assert statistic < QUANTILE[len(possible) - 1]


def drawn(params: SamplingParams, forbidden: Sequence[int] = ()) -> Counter[int]:
    """Count what as many requests, each with a seed of its own, choose after the prompt and the answer so far."""
    counts: Counter[int] = Counter()
    for seed in range(DRAWS):
        words = BAD_WORDS if params.bad_words else ()
        edits = [*make_edits(params, prompt=PROMPT, bad_words=words, ending=ENDING | {*params.stop_token_ids})]
        edits += [Form(forbidden)] if forbidden else []
        for edit in edits:
            for token in ANSWER:
                edit.accept(token)
        sampler = Sampler(SamplingParams(temperature=params.temperature, seed=seed, top_k=params.top_k,
                                         top_p=params.top_p, min_p=params.min_p), edits)  # fmt: skip
        counts[choose(torch.tensor([LOGITS]), [sampler])[0].token] += 1
    return counts


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7},
        {"top_k": 3},
        {"top_p": 0.7},
        {"min_p": 0.2},
        {"temperature": 2.0, "top_k": 3},
        {"temperature": 1.5, "top_k": 5, "top_p": 0.8},
        {"top_k": 1},
        {"top_p": 1e-9},
        {"temperature": 2.0, "min_p": 0.5, "top_k": 3},
        {"min_p": 0.1, "top_p": 0.8},
        {"min_p": 1.0},
        {"repetition_penalty": 1.5},
        {"presence_penalty": 1.0},
        {"frequency_penalty": 0.8},
        {"logit_bias": ((1, -2.0), (7, 4.0))},
        {"bad_words": ("x",)},
        {"min_tokens": 5, "stop_token_ids": (2,)},
        {"min_tokens": 4, "stop_token_ids": (2,)},
        {"forbidden": (0, 3, 5)},
        {
            "temperature": 1.3,
            "min_p": 0.05,
            "top_k": 4,
            "top_p": 0.9,
            "repetition_penalty": 1.4,
            "presence_penalty": 0.4,
            "frequency_penalty": 0.2,
            "logit_bias": ((5, 2.0), (6, 1.5)),
            "bad_words": ("x",),
            "min_tokens": 5,
            "forbidden": (0,),
        },
    ],
    ids=lambda options: "+".join(options)[:40] or "plain",
)
def test_each_option_gives_its_exact_distribution(options: dict[str, Any]) -> None:
    """Chi-square over 2,000 seeds against plain Python in the documented order; nothing outside it is drawn."""
    forbidden = options.get("forbidden", ())
    given = {name: value for name, value in options.items() if name != "forbidden"}
    params = SamplingParams(**({"temperature": 1.0} | given))
    check(drawn(params, forbidden), exact(params, forbidden))


def test_the_order_of_the_options_matters_and_is_the_documented_one() -> None:
    """Exchanged steps would give another distribution, which the same counts do not follow."""
    # The likeliest token is out of the form: applied behind top-k, the form would leave nothing to choose.
    params = SamplingParams(temperature=1.0, top_k=1)
    assert set(drawn(params, (0,))) == {1}
    # A bias before min-p makes its token the measure; behind it, others would still be there.
    params = SamplingParams(temperature=1.0, logit_bias=((7, 9.0),), min_p=0.5)
    assert set(drawn(params)) == {7}
    # min-p before top-p: of what it leaves, 0.8 are the first two; of all tokens it would be more.
    params = SamplingParams(temperature=1.0, min_p=0.5, top_p=0.8)
    check(drawn(params), exact(params))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"top_k": 6}, None),
        ({"structure": Structure(kind=StructureKind.CHOICE, patterns=("yes", "no", "maybe"))}, b"ynm"),
    ],
    ids=["top_k", "choice"],
)
async def test_a_whole_engine_samples_the_models_distribution(
    model: Path, options: dict[str, Any], allowed: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """800 first tokens, in batches of many requests, follow the softmax of the model's own logits within the form."""
    rows: list[torch.Tensor] = []
    choose_really = runner.choose
    monkeypatch.setattr(
        runner, "choose", lambda logits, samplers: rows.append(logits[0].clone()) or choose_really(logits, samplers)
    )
    async with running_engine(model, max_waiting=1024) as engine:
        requests = [
            EngineRequest(
                request_id=str(first),
                prompt_token_ids=(5, 6, 7),
                sampling=SamplingParams(temperature=1.0, max_tokens=1, n=16, seed=first, **options),
            )
            for first in range(0, 800, 16)
        ]
        answers = await asyncio.gather(*(answer(engine, request) for request in requests))
    logits = rows[0]
    # Bytes come behind the three special tokens.
    support = logits.topk(6).indices.tolist() if allowed is None else [3 + byte for byte in allowed]
    shares = torch.softmax(logits[support].double(), dim=-1).tolist()
    counts = Counter(support.index(token) for item in answers for token in item.tokens)
    assert counts.total() == 800
    check(counts, shares)
