import pytest
import torch

from bulkhead.errors import InternalError, InvalidRequestError
from data_plane.engine import sampling
from data_plane.engine.sampling import Sampler, choose, likeliest
from data_plane.inference.port import ChatMessage, EngineRequest
from data_plane.inference.sampling_params import SamplingParams


@pytest.mark.parametrize("top_p", [5e-324, 1e-9, 0.3, 0.9, 0.999999, 1.0 - 2.0**-53])
@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0, 40.0])
def test_a_nucleus_is_the_fewest_likeliest_that_reach_top_p(top_p: float, spread: float) -> None:
    """Whatever the distribution, a flat one too, it is that of a whole sorted vocabulary."""
    logits = torch.randn(4000, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * spread
    weights = torch.softmax(logits, dim=-1)
    ordered, order = weights.sort(descending=True, stable=True)
    most = int((ordered.cumsum(0) < top_p).sum()) + 1
    kept, places = sampling._nucleus(weights, top_p)
    assert torch.equal(kept, ordered[: len(kept)])
    assert torch.equal(places, order[: len(kept)])
    # Weights of 10^-17 and less are lost in the sum, whichever way it is taken.
    assert len(kept) == min(most, len(weights)) or ordered[len(kept)] < 1e-16


def test_a_wide_nucleus_is_drawn_from() -> None:
    """All of the nine tenths of a flat distribution come, and nothing else."""
    sampler = Sampler(SamplingParams(temperature=1.0, top_p=0.9, seed=1))
    drawn = {sampler.draw(torch.zeros(4000)) for _ in range(3000)}
    assert len(drawn) > 1800
    assert len(drawn) <= 3601


def test_greedy_takes_the_most_likely_token_of_each_row() -> None:
    """Temperature 0 is the argmax, row by row."""
    logits = torch.tensor([[0.0, 3.0, 1.0], [9.0, 3.0, 1.0]])
    assert [choice.token for choice in choose(logits, [Sampler(SamplingParams())] * 2)] == [1, 0]


def test_a_seed_fixes_the_draws_whatever_other_rows_draw() -> None:
    """Each request has a random stream of its own: neighbours change nothing."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(30, 100, generator=generator)
    alone, crowded = (Sampler(SamplingParams(temperature=1.0, seed=5)) for _ in range(2))
    neighbour = Sampler(SamplingParams(temperature=1.0, seed=6, top_k=3))
    for row in rows:
        expected = choose(row[None], [alone])
        assert choose(torch.stack((row, row.flip(0))), [crowded, neighbour])[:1] == expected


def test_no_seed_draws_differently_each_time() -> None:
    """Without a seed two requests are independent."""
    first, second = (Sampler(SamplingParams(temperature=1.0)) for _ in range(2))
    flat = torch.zeros(1000)
    assert [first.draw(flat) for _ in range(8)] != [second.draw(flat) for _ in range(8)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_numbers_are_an_error(bad: float) -> None:
    """Damaged weights must not turn into tokens; an overflow on one prompt leaves the other rows as they are."""
    rows = torch.tensor([[0.0, bad, 1.0], [0.0, 2.0, 1.0]])
    damaged, sound = choose(rows, [Sampler(SamplingParams(temperature=1.0)), Sampler(SamplingParams())])
    assert isinstance(damaged.error, InternalError)
    assert (sound.token, sound.error) == (1, None)


@pytest.mark.parametrize("options", [{}, {"min_p": 0.1}, {"top_k": 3}, {"top_p": 0.9}])
def test_a_temperature_near_nothing_takes_the_likeliest(options: dict[str, float]) -> None:
    """Dividing by the smallest number there is must not overflow into another token."""
    for temperature in (1e-5, 1e-310, 5e-324):
        sampler = Sampler(SamplingParams(temperature=temperature, seed=1, **options))  # type: ignore[arg-type]
        assert {sampler.draw(torch.tensor([1.0, 3.0, 2.0, -1.0])) for _ in range(8)} == {1}


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"max_tokens": -5},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_p": float("nan")},
        {"top_k": -2},
        {"seed": -1},
        {"seed": 2**63},
        {"stop": ("",)},
        {"stop": ("x" * 257,)},
        {"stop": ("x",) * 17},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("nan")},
        {"presence_penalty": 2.1},
        {"frequency_penalty": -2.1},
        {"logit_bias": ((1, 100.5),)},
        {"logit_bias": ((1, float("nan")),)},
        {"logit_bias": tuple((token, 0.0) for token in range(1025))},
        {"bad_words": ("",)},
        {"bad_words": ("x",) * 129},
        {"stop_token_ids": tuple(range(129))},
        {"n": 0},
        {"n": 17},
        {"logprobs": -1},
        {"logprobs": 21},
        {"min_tokens": -1},
        {"min_tokens": 5, "max_tokens": 4},
        {"truncate_prompt_tokens": 0},
        {"truncate_prompt_tokens": -2},
    ],
)
def test_parameters_outside_their_range_are_refused(options: dict[str, object]) -> None:
    """Zero, negative, endless and not-a-number parameters are the caller's error."""
    with pytest.raises(InvalidRequestError):
        SamplingParams(**options)  # type: ignore[arg-type]


def test_a_request_has_exactly_one_prompt() -> None:
    """No prompt, two prompts, too many turns and odd roles are refused."""
    turn = ChatMessage(role="user", content="x")
    for options in (
        {},
        {"messages": (turn,), "prompt_token_ids": (1,)},
        {"messages": (turn,), "prompt": "x"},
        {"prompt": "x", "prompt_token_ids": (1,)},
        {"messages": (turn,) * 1025},
    ):
        with pytest.raises(InvalidRequestError):
            EngineRequest(request_id="r", **options)
    for role in ("", "a b", "x" * 33, "<|im_start|>"):
        with pytest.raises(InvalidRequestError):
            ChatMessage(role=role, content="x")


@pytest.mark.parametrize("vocabulary", [3, 255, 256, 257, 1000, 1024])
def test_the_likeliest_token_is_the_first_of_the_highest(vocabulary: int) -> None:
    """Whatever the vocabulary's size and however many tokens tie, the first of the highest logits wins."""
    generator = torch.Generator().manual_seed(vocabulary)
    for spread in (2, 10_000):
        logits = torch.randint(-spread, spread, (50, vocabulary), generator=generator).float()
        highest, tokens = likeliest(logits)
        rows = logits.tolist()
        assert highest.tolist() == [max(row) for row in rows]
        assert tokens.tolist() == [row.index(max(row)) for row in rows]
