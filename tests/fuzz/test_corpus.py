"""Every committed input of every fuzz target, run without instrumentation."""

import time

import pytest

from tests.fuzz.registry import FuzzTarget, load_targets

_LIMIT_S = 2.0  # per input; each takes milliseconds
_TARGETS = load_targets()


@pytest.mark.parametrize("target", _TARGETS.values(), ids=_TARGETS.keys())
def test_the_corpus_has_no_finding(target: FuzzTarget) -> None:
    """Each input is parsed or refused with one of our errors, and quickly."""
    inputs = sorted(target.corpus.iterdir())
    assert inputs, "python -m tests.fuzz --write-seeds makes it"
    for path in inputs:
        started = time.thread_time()
        target.try_one(path.read_bytes())
        assert time.thread_time() - started < _LIMIT_S, path.name


@pytest.mark.parametrize("target", _TARGETS.values(), ids=_TARGETS.keys())
def test_seeds_are_parsed(target: FuzzTarget) -> None:
    """The first inputs are sound: a target that refuses everything would explore nothing."""
    seeds = list(target.seeds())
    assert seeds
    for seed in seeds:
        assert len(seed) <= target.max_bytes
        target.parse(seed)
