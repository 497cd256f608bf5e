"""Penalties, bias, forbidden tokens and log probabilities against plain arithmetic, and their order."""

import math
import random

import pytest
import torch

from bulkhead.errors import InvalidRequestError
from data_plane.engine.edits import BadWords, Bias, Minimum, Penalties, make_edits
from data_plane.engine.sampling import Sampler, choose
from data_plane.inference.sampling_params import SamplingParams

LOGITS = [2.0, 1.5, 1.4, 0.3, 0.0, -0.5, -1.0, -3.0]


def edited(params: SamplingParams, prompt: list[int], answer: list[int]) -> list[float]:
    """Return the logits after penalties and bias, token by token as vLLM defines them."""
    values = []
    for token, raw in enumerate(LOGITS):
        factor = params.repetition_penalty if token in {*prompt, *answer} else 1.0
        count = answer.count(token)
        penalty = params.frequency_penalty * count + params.presence_penalty * (count > 0)
        values.append((raw / factor if raw > 0 else raw * factor) - penalty + dict(params.logit_bias).get(token, 0.0))
    return values


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.5},
        {"presence_penalty": 1.5},
        {"presence_penalty": -1.5},
        {"frequency_penalty": 0.8},
        {"frequency_penalty": 0.3, "presence_penalty": 0.4, "repetition_penalty": 1.2},
        {"logit_bias": ((1, -3.0), (7, 4.0))},
        {"logit_bias": ((1, 2.0),), "frequency_penalty": 1.0},
    ],
)
def test_logits_are_edited_as_vllm_defines_it(options: dict[str, object]) -> None:
    """After a prompt and some answer each row equals plain Python's, for each penalty, bias and some together."""
    params = SamplingParams(temperature=1.0, seed=3, **options)  # type: ignore[arg-type]
    prompt, answer = [1, 1, 6], [0, 2, 2, 7]
    expected = edited(params, prompt, answer)
    edits = make_edits(params, prompt=prompt, bad_words=(), ending=frozenset())
    for edit in edits:
        for token in answer:
            edit.accept(token)
    row = torch.tensor(LOGITS)
    for edit in edits:
        edit.apply(row)
    assert row.tolist() == pytest.approx(expected, rel=1e-5)


def test_penalties_count_what_a_sampler_chose_itself() -> None:
    """A frequency penalty above every difference makes greedy answers go round all tokens before any comes again."""
    params = SamplingParams(frequency_penalty=2.0, presence_penalty=2.0, repetition_penalty=10.0)
    sampler = Sampler(params, make_edits(params, prompt=[], bad_words=(), ending=frozenset()))
    chosen = [choose(torch.tensor([[3.0, 2.0, 1.0, 0.5]]), [sampler])[0].token for _ in range(4)]
    assert sorted(chosen) == [0, 1, 2, 3]


def test_the_table_of_penalties_grows() -> None:
    """More distinct tokens than the table begins with are all penalised."""
    penalties = Penalties(SamplingParams(repetition_penalty=2.0, presence_penalty=1.0), range(600))
    for token in range(700):
        penalties.accept(token)
    row = torch.ones(1000)
    penalties.apply(row)
    assert row[:700].tolist() == [-0.5] * 700
    assert row[700:].tolist() == [1.0] * 300


def test_bad_words_forbid_only_the_token_that_completes_them() -> None:
    """A single token always, the last of several when the others were just said."""
    words = BadWords([[5], [1, 2, 3]])
    seen = []
    for token in (1, 2, 4, 1, 2):
        row = torch.zeros(8)
        words.apply(row)
        seen.append([at for at in range(8) if row[at] == float("-inf")])
        words.accept(token)
    row = torch.zeros(8)
    words.apply(row)
    seen.append([at for at in range(8) if row[at] == float("-inf")])
    assert seen == [[5], [5], [3, 5], [5], [5], [3, 5]]


def test_the_end_is_forbidden_until_the_least_length() -> None:
    """min_tokens keeps ending tokens out for exactly so many tokens."""
    minimum = Minimum(2, [3])
    allowed = []
    for _ in range(3):
        row = torch.zeros(4)
        minimum.apply(row)
        allowed.append(bool(row[3].isfinite()))
        minimum.accept(0)
    assert allowed == [False, False, True]


def test_bias_comes_behind_penalties_and_before_temperature() -> None:
    """The documented order: a bias is not multiplied by a repetition penalty, and is divided by the temperature."""
    params = SamplingParams(repetition_penalty=2.0, logit_bias=((0, 1.0),), temperature=0.5, seed=1, logprobs=2)
    kinds = [type(edit) for edit in make_edits(params, prompt=[0], bad_words=[[1]], ending=frozenset({2}))]
    assert kinds == [Penalties, Bias, BadWords]


def test_a_request_that_forbids_everything_ends_alone() -> None:
    """No token left to choose from is that request's error; its neighbour's answer goes on."""
    barred = Sampler(SamplingParams(), [BadWords([[0], [1], [2]])])
    first, second = choose(torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]), [barred, Sampler(SamplingParams())])
    assert isinstance(first.error, InvalidRequestError)
    assert (second.token, second.error) == (2, None)


def test_log_probabilities_are_the_models_own() -> None:
    """Before penalties, bias and temperature; ranked from 1, with the likeliest in order."""
    params = SamplingParams(logprobs=3, logit_bias=((5, 50.0),), temperature=0.1, seed=0)
    sampler = Sampler(params, make_edits(params, prompt=[], bad_words=(), ending=frozenset()))
    (choice,) = choose(torch.tensor([LOGITS]), [sampler])
    total = math.log(sum(math.exp(value) for value in LOGITS))
    assert choice.logprobs is not None
    assert (choice.token, choice.logprobs.rank, [token for token, _, _ in choice.logprobs.top]) == (5, 6, [0, 1, 2])
    assert choice.logprobs.logprob == pytest.approx(LOGITS[5] - total, abs=1e-5)
    tops = [value for _, _, value in choice.logprobs.top]
    assert tops == pytest.approx([value - total for value in LOGITS[:3]], abs=1e-5)


def test_edits_do_not_touch_other_rows() -> None:
    """Whatever a request asks for, its neighbours' rows keep their values."""
    rng = random.Random(5)
    params = SamplingParams(temperature=1.0, frequency_penalty=1.0, logit_bias=((3, 9.0),), min_tokens=4, seed=2)
    rows = torch.tensor([[rng.random() for _ in range(16)] for _ in range(3)])
    before = rows.clone()
    edits = make_edits(params, prompt=[1], bad_words=[[2]], ending=frozenset({0}))
    choose(rows, [Sampler(SamplingParams()), Sampler(params, edits), Sampler(SamplingParams())])
    assert torch.equal(rows[[0, 2]], before[[0, 2]])
