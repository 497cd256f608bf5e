"""tlog-tiles in the SDK: paths, bundles, writing and verifying files."""

import contextlib
import itertools
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bulkhead.errors import CheckpointError, InclusionError, ProofError, RecordError
from bulkhead.transparency.checkpoint import Checkpoint, sign_checkpoint
from bulkhead.transparency.merkle import leaf_hash, tree_root
from bulkhead.transparency.note import NoteSigner
from bulkhead.transparency.tiles import (
    TilePath,
    TileWriter,
    decode_bundle,
    encode_bundle,
    paths_of,
    verify_tiles,
)

ORIGIN = "audit.test/t/a/1"
SIGNER = NoteSigner.from_seed(ORIGIN, bytes(32))
OTHER = NoteSigner.from_seed(ORIGIN, bytes(range(32)))


def files(size: int, signer: NoteSigner = SIGNER) -> dict[str, bytes]:
    """Return a log's files by path."""
    found: dict[str, bytes] = {}
    writer = TileWriter(lambda path, data: found.__setitem__(str(path), data))
    for number in range(size):
        entry = b"entry %d" % number
        writer.append(entry, leaf_hash(entry))
    note = sign_checkpoint(Checkpoint(ORIGIN, size, writer.finish()), signer)
    return found | {"checkpoint": note.encode()}


def get(found: dict[str, bytes]):
    def read(path: str) -> bytes:
        if path not in found:
            raise FileNotFoundError(path)
        return found[path]

    return read


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 512, 513, 1_000])
def test_written_files_are_those_of_the_size_and_verify(size):
    """A log's files are exactly those that its size demands, and they verify under its key."""
    found = files(size)
    assert set(found) == {"checkpoint", *map(str, paths_of(size))}
    verified = verify_tiles(get(found), vkey=SIGNER.vkey, origin=ORIGIN)
    assert (verified.checkpoint.size, verified.files) == (size, len(found) - 1)
    assert verified.checkpoint.root == tree_root(leaf_hash(b"entry %d" % number) for number in range(size))


def test_the_specification_s_example_of_sizes():
    """A log of 70,000 entries has the tiles that the specification counts."""
    tiles = [path for path in paths_of(70_000) if path.level is not None]
    assert [sum(path.level == level and path.width == 256 for path in tiles) for level in range(3)] == [273, 1, 0]
    assert [path.width for path in tiles if path.width < 256] == [112, 17, 1]


@pytest.mark.parametrize(("name", "at"), list(itertools.product(sorted(map(str, paths_of(700))), [0, -1])))
def test_a_corrupt_file_is_named(name, at):
    """A changed byte of any tile or bundle is an error that names a file: the changed one, if it is a tile."""
    found = files(700)
    data = bytearray(found[name])
    data[at] ^= 0x80
    found[name] = bytes(data)
    with pytest.raises(ProofError) as caught:
        verify_tiles(get(found), vkey=SIGNER.vkey, origin=ORIGIN)
    wrong = caught.value.details["file"]
    assert wrong == name or ("entries" in name and wrong.replace("/0/", "/entries/") == name)


@pytest.mark.parametrize("name", ["tile/0/001", "tile/entries/002.p/188", "tile/1/000.p/2", "checkpoint"])
@pytest.mark.parametrize("cut", [None, 1, 40])
def test_a_missing_or_truncated_file_is_named(name, cut):
    """A file that is missing, or shorter than it should be, is an error that names it."""
    found = files(700)
    found[name] = found[name][:-cut] if cut else b""
    if cut is None:
        del found[name]
    with pytest.raises(ProofError, match="checkpoint|signature|note" if name == "checkpoint" else name.split(".")[0]):
        verify_tiles(get(found), vkey=SIGNER.vkey, origin=ORIGIN)


def test_another_log_s_key_is_refused():
    """Files verify under their own log's key only; a whole other tree under the right key is not the signed one."""
    with pytest.raises(CheckpointError):
        verify_tiles(get(files(5)), vkey=OTHER.vkey, origin=ORIGIN)
    with pytest.raises(RecordError):
        verify_tiles(
            get(files(5) | {"checkpoint": files(4)["checkpoint"]} | shorter()), vkey=SIGNER.vkey, origin=ORIGIN
        )


def shorter() -> dict[str, bytes]:
    """Return files of four other entries."""
    entries = [b"other %d" % number for number in range(4)]
    return {
        "tile/entries/000.p/4": encode_bundle(entries),
        "tile/0/000.p/4": b"".join(leaf_hash(entry) for entry in entries),
    }


@given(st.one_of(st.none(), st.integers(0, 63)), st.integers(0, 10**18), st.integers(1, 256))
def test_paths_read_back(level, number, width):
    """A path's text gives the path back."""
    path = TilePath(level, number, width)
    assert TilePath.parse(str(path)) == path


@settings(max_examples=60)
@given(st.one_of(st.text(max_size=40), st.from_regex(r"tile/[0-9]{1,3}/(x?[0-9]{1,4}/?){1,3}(\\.p/[0-9]{0,3})?")))
def test_other_texts_are_no_paths(text):
    """Whatever is not the one text of a path is refused with our own error."""
    with contextlib.suppress(ProofError):
        assert str(TilePath.parse(text)) == text


@given(st.lists(st.binary(max_size=40), max_size=10), st.integers(-2, 2), st.integers(0, 5))
def test_bundles_are_exact(entries, more, cut):
    """A bundle gives its entries back, and nothing else: another count or a missing end is refused."""
    data = encode_bundle(entries)
    assert decode_bundle(data, len(entries)) == entries
    if more and len(entries) + more >= 0:
        with pytest.raises(ProofError):
            decode_bundle(data, len(entries) + more)
    if cut and data:
        with pytest.raises(ProofError):
            decode_bundle(data[:-cut], len(entries))


def test_an_entry_too_large_for_the_format_is_refused():
    """An entry above 65,535 bytes cannot be written."""
    with pytest.raises(ProofError):
        encode_bundle([bytes(65_536)])


def test_entries_are_handed_out_in_order():
    """A verifier may look at each entry, with its place."""
    seen: list[tuple[int, bytes]] = []
    done: list[tuple[int, int]] = []
    verify_tiles(
        get(files(300)), vkey=SIGNER.vkey, origin=ORIGIN,
        check_entry=lambda at, entry: seen.append((at, entry)), progress=lambda at, total: done.append((at, total)),
    )  # fmt: skip
    assert seen == [(number, b"entry %d" % number) for number in range(300)]
    assert done == [(256, 300), (300, 300)]


def test_a_failure_of_the_reader_passes_through():
    """An error of the platform's own, raised by the reader, reaches the caller as it is."""

    def broken(path: str) -> bytes:
        raise InclusionError(path)

    with pytest.raises(InclusionError):
        verify_tiles(broken, vkey=SIGNER.vkey, origin=ORIGIN)


@pytest.mark.skipif(not os.environ.get("BULKHEAD_TEST_VECTORS"), reason="BULKHEAD_TEST_VECTORS names no vectors")
def test_the_checksum_database_s_paths():
    """Numbers are grouped as in the checksum database's recorded tile paths (which name a height, too)."""
    path = Path(os.environ["BULKHEAD_TEST_VECTORS"]) / "transparency" / "sumdb-tlog" / "tlog_vectors.json"
    for case in json.loads(path.read_text())["tile_paths"]:
        ours = case["path"].replace(f"tile/{case.get('H', 3)}/", "tile/", 1)
        if case.get("error"):
            with pytest.raises(ProofError):
                TilePath.parse(ours)
        else:
            partial = case["W"] if case["path"].endswith(f".p/{case['W']}") else 256
            assert TilePath.parse(ours) == TilePath(case["L"], case["N"], partial)
