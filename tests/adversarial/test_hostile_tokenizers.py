"""A tokenizer.json made to break the worker that reads it: the model's requests fail by type, and nothing hangs."""

import asyncio
import base64
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from bulkhead.errors import InvalidRequestError
from bulkhead.models import DirectorySource
from data_plane.engine.tokenizer import Tokenizer
from data_plane.inference.port import EngineRequest
from data_plane.inference.sampling_params import SamplingParams
from tests.simulator.tiny_engine import answer, chat_request, running_engine, token_request
from tests.simulator.tiny_model import make_tiny_model

PREFIX = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"[X]": {"id": "[X]", "ids": [999_999], "tokens": ["[X]"]}},
}
BACKTRACKING = {"type": "Split", "pattern": {"Regex": "(a|aa|aaa)+b"}, "behavior": "Isolated", "invert": False}
CUTTING = {"type": "Strip", "content": "a", "start": 5, "stop": 5}
BROKEN_MAP = base64.b64encode(b"\xff\xff\xff\x7f1234").decode()


def hostile(path: Path, **changes: Any) -> Path:
    model = make_tiny_model(path / "hostile")
    document = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps(document | changes))
    return model


def test_a_tokenizer_that_panics_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """The library's panic, which is no Exception, becomes a typed error when the model is loaded."""
    model = hostile(tmp_path, normalizer={"type": "Precompiled", "precompiled_charsmap": BROKEN_MAP})
    with DirectorySource(model) as source, pytest.raises(InvalidRequestError, match=r"tokenizer\.json"):
        Tokenizer(source=source, vocabulary=300, context_tokens=64)


@pytest.mark.parametrize(
    "changes",
    [{"pre_tokenizer": BACKTRACKING}, {"pre_tokenizer": {"type": "FixedLength", "length": 0}}],
    ids=["an expression that backtracks", "pieces of no length"],
)
async def test_a_tokenizer_that_panics_on_a_text_fails_that_request(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Whose text sets it off gets a typed error that does not quote the text, in bounded time; the engine serves on."""
    async with running_engine(hostile(tmp_path, **changes)) as engine, asyncio.timeout(60):
        with pytest.raises(InvalidRequestError) as caught:
            await answer(engine, chat_request("r", "a" * 40 + "c"))
        assert "aaa" not in caught.value.message
        assert (await answer(engine, token_request("t", (40, 41), max_tokens=3, ignore_eos=True))).tokens


async def test_a_tokenizer_that_panics_on_a_token_fails_that_answer(tmp_path: Path) -> None:
    """A decoder that cuts more than there is ends the answer of that token by type; its neighbours' go on."""
    letter = 3 + ord("a")
    async with running_engine(hostile(tmp_path, decoder=CUTTING)) as engine, asyncio.timeout(60):
        good = token_request(
            "good", (40, 41), max_tokens=60, ignore_eos=True, logit_bias=((40, 100.0), (letter, -100.0))
        )
        running = asyncio.create_task(answer(engine, good))
        with pytest.raises(InvalidRequestError, match=r"tokenizer\.json"):
            await answer(engine, token_request("bad", (40, 41), max_tokens=3, logit_bias=((letter, 100.0),)))
        assert len((await running).tokens) == 60
        assert engine.metrics().counters.running == 0


async def test_ids_that_a_post_processor_invents_reach_no_embedding(tmp_path: Path) -> None:
    """They are in no vocabulary that could be checked at loading; a look-up of one would end every request."""
    async with running_engine(hostile(tmp_path, post_processor=PREFIX)) as engine:
        sampling = SamplingParams(max_tokens=3, ignore_eos=True)
        with pytest.raises(InvalidRequestError, match="no embedding"):
            await answer(engine, EngineRequest(request_id="r", prompt="hello", sampling=sampling))
        assert (await answer(engine, chat_request("c", "hello", max_tokens=3, ignore_eos=True))).tokens


@pytest.mark.alone
def test_a_long_text_does_not_hold_pythons_lock_while_it_is_cut(tmp_path: Path) -> None:
    """Another thread goes on meanwhile: the event loop, and the engine's, share the lock with the tokenizer's."""
    with DirectorySource(make_tiny_model(tmp_path / "m")) as source:
        tokenizer = Tokenizer(source=source, vocabulary=300, context_tokens=1 << 24)
    text, counts, over = "some words " * 200_000, [0], threading.Event()

    def count() -> None:
        while not over.wait(0.001):
            counts[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        before = counts[0]
        encoded = tokenizer._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]
        during = counts[0] - before
    finally:
        over.set()
        thread.join()
    assert len(encoded.ids) == len(text)
    assert during > 20  # some hundreds on an idle machine; one or two if the lock were held
