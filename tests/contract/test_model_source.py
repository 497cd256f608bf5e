"""One contract for both sources of a model: a plain directory and a sealed one."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bulkhead.attestation.model_digest import model_digest
from bulkhead.errors import InvalidRequestError
from bulkhead.models import DirectorySource, ModelSource, hash_model, read_file
from tests.simulator.sealed_models import seal

CHUNK = 256 << 10
SIZES = {"empty": 0, "one": 1, "chunk": CHUNK, "above": CHUNK + 1, "sub/weights": 5 * CHUNK + 77, "long": 9 << 20}


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    return {path: random.Random(path).randbytes(size) for path, size in SIZES.items()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, contents: dict[str, bytes]) -> Path:
    root = tmp_path_factory.mktemp("models") / "plain"
    for path, data in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


@pytest.fixture(params=["directory", "sealed"])
def source(request: pytest.FixtureRequest, plain: Path, tmp_path: Path) -> Iterator[ModelSource]:
    opened: ModelSource = DirectorySource(plain)
    if request.param == "sealed":
        opened = seal(plain, tmp_path / "sealed").open()
    yield opened
    opened.close()


def test_it_names_the_files_and_their_sizes(source: ModelSource) -> None:
    """Sizes are those of the plaintext, paths those of the plain model."""
    assert dict(source.files) == SIZES


def test_any_range_is_read_as_it_was_written(source: ModelSource, contents: dict[str, bytes]) -> None:
    """Ranges within a chunk, across chunks, at both ends and empty ones give the bytes of the file."""
    generator = random.Random(7)
    for path, data in contents.items():
        ranges = [(0, len(data)), (len(data), 0), (0, min(1, len(data)))]
        for _ in range(20):
            start = generator.randint(0, len(data))
            ranges.append((start, generator.randint(0, len(data) - start)))
        for start, size in ranges:
            target = bytearray(size)
            source.read_into(path, start, memoryview(target))
            assert target == data[start : start + size]


def test_threads_read_at_the_same_time(source: ModelSource, contents: dict[str, bytes]) -> None:
    """Concurrent reads of one file do not disturb each other."""

    def check(seed: int) -> None:
        generator = random.Random(seed)
        for _ in range(20):
            start = generator.randint(0, SIZES["sub/weights"] - 1)
            target = bytearray(generator.randint(1, min(300_000, SIZES["sub/weights"] - start)))
            source.read_into("sub/weights", start, memoryview(target))
            assert target == contents["sub/weights"][start : start + len(target)]

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(check, seed) for seed in range(4)]:
            done.result()


def test_its_digest_is_that_of_the_plain_model(source: ModelSource, plain: Path) -> None:
    """Plain and sealed have one model digest, so evidence, tickets and audit records agree on the name."""
    assert hash_model(source).digest() == model_digest(plain)


@pytest.mark.parametrize(("path", "offset", "size"), [("none", 0, 1), ("one", 0, 2), ("one", 2, 1), ("../one", 0, 1)])
def test_what_is_not_there_is_a_typed_error(source: ModelSource, path: str, offset: int, size: int) -> None:
    """No such file, or a range beyond its end."""
    with pytest.raises(InvalidRequestError):
        source.read_into(path, offset, memoryview(bytearray(size)))


def test_a_small_file_is_bounded(source: ModelSource, contents: dict[str, bytes]) -> None:
    """Whole files are read up to a limit only."""
    assert read_file(source, "above", max_bytes=CHUNK + 1) == contents["above"]
    with pytest.raises(InvalidRequestError, match="longer"):
        read_file(source, "above", max_bytes=CHUNK)
    with pytest.raises(InvalidRequestError, match="no such file"):
        read_file(source, "absent", max_bytes=CHUNK)


def test_nothing_is_read_after_the_end(source: ModelSource) -> None:
    """A closed source gives nothing."""
    source.close()
    with pytest.raises(InvalidRequestError):
        source.read_into("one", 0, memoryview(bytearray(1)))
