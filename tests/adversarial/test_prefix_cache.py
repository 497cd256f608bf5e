"""One tenant's cached attention state and the requests of another scope."""

from pathlib import Path

import pytest
import torch

from data_plane.engine.prefix import PrefixNames
from data_plane.inference.port import EngineRequest
from data_plane.inference.sampling_params import SamplingParams
from tests.simulator.tiny_engine import answer, running_engine
from tests.simulator.tiny_model import make_tiny_model

PROMPT = tuple(range(5, 100))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "tiny")


def request(name: str, scope: bytes, prompt: tuple[int, ...] = PROMPT) -> EngineRequest:
    sampling = SamplingParams(max_tokens=8, ignore_eos=True)
    return EngineRequest(request_id=name, prompt_token_ids=prompt, scope=scope, sampling=sampling)


async def test_no_hit_exists_across_scopes(model: Path) -> None:
    """The very prompt that another scope has cached is computed from its first token, and so is one without a scope."""
    async with running_engine(model) as engine:
        await answer(engine, request("victim", b"victim"))
        for scope in (b"attacker", b"victi", b"victim\0", b""):
            result = await answer(engine, request("probe", scope))
            assert result.usage.cached_tokens == 0
        assert (await answer(engine, request("victim", b"victim"))).usage.cached_tokens > 0


async def test_what_another_scope_left_is_never_attended(model: Path) -> None:
    """With another scope's kept blocks full of garbage an answer is bit for bit what it was before."""
    async with running_engine(model) as engine:
        runner = engine._stepper._runner  # type: ignore[attr-defined]
        expected = await answer(engine, request("before", b"", PROMPT[:40]))
        await answer(engine, request("victim", b"victim"))
        kept = list(runner.pool._kept)
        assert kept
        with torch.inference_mode():
            runner._cache._state[:, :, kept] = 1e4
        assert (await answer(engine, request("after", b"attacker", PROMPT[:40]))).tokens == expected.tokens


async def test_kept_blocks_are_overwritten_before_another_scope_gets_them(model: Path) -> None:
    """When memory runs out, kept blocks are cleared before they are handed out, and their names are gone."""
    async with running_engine(model, kv_memory_mib=1) as engine:
        runner = engine._stepper._runner  # type: ignore[attr-defined]
        await answer(engine, request("victim", b"victim"))
        names = set(runner.pool._named)
        assert names
        handed: list[bool] = []
        allocate = runner.pool.allocate

        def watched(count: int) -> list[int]:
            blocks = allocate(count)
            handed.append(runner._cache.is_clear(blocks))
            return blocks

        runner.pool.allocate = watched
        for i in range(12):
            prompt = tuple((7 * i + j) % 250 + 5 for j in range(400))
            await answer(engine, request(f"flood {i}", b"attacker", prompt))
        assert not names & set(runner.pool._named)
        assert handed
        assert all(handed)
        assert (await answer(engine, request("victim", b"victim"))).usage.cached_tokens == 0


async def test_closing_leaves_no_kept_state(model: Path) -> None:
    """An engine that closes overwrites what it kept for later requests."""
    async with running_engine(model) as engine:
        cache = engine._stepper._runner._cache  # type: ignore[attr-defined]
        await answer(engine, request("victim", b"victim"))
        assert not cache.is_clear(range(cache.blocks))
        await engine.aclose()
        assert cache.is_clear(range(cache.blocks))


def test_names_cannot_be_made_by_who_lacks_the_scope() -> None:
    """Names of equal tokens differ by scope, by engine and by what comes before; a chain names each block once."""
    names: dict[str, list[bytes]] = {"a": [], "b": [], "other engine": [], "other beginning": []}
    one, other = PrefixNames(block_tokens=4), PrefixNames(block_tokens=4)
    tokens = [1, 2, 3, 4] * 3
    one.extend(names["a"], tokens, scope=b"a", count=3)
    one.extend(names["b"], tokens, scope=b"b", count=3)
    other.extend(names["other engine"], tokens, scope=b"a", count=3)
    one.extend(names["other beginning"], [9, *tokens[1:]], scope=b"a", count=3)
    every = [name for chain in names.values() for name in chain]
    assert len(set(every)) == len(every) == 12
    again: list[bytes] = []
    one.extend(again, tokens, scope=b"a", count=2)
    one.extend(again, tokens, scope=b"a", count=3)
    assert again == names["a"]
