"""Our tiles under Tessera's fsck, which nobody here wrote: it takes what we serve, and refuses what was changed."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from audit.cli.options import reading
from audit.tile_server import prefix_of, tile_application
from audit.tiling import LogTiles, export_tiles
from bulkhead.transparency.checkpoint import Checkpoint, sign_checkpoint
from bulkhead.transparency.merkle import leaf_hash
from bulkhead.transparency.tiles import TilePath, TileWriter, paths_of
from tests.simulator.audit_logs import INFO, ORIGIN, SIGNER, write_log
from tests.simulator.go_tools import fsck_success, run_fsck

SIZES = (1, 2, 255, 256, 257, 511, 512, 513)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, str]]:
    """A database of 513 records with checkpoints around every tile boundary."""
    path = tmp_path_factory.mktemp("log") / "audit.db"
    return path, write_log(path, SIZES[-1], SIZES)


@pytest.fixture
def vkey(tmp_path: Path) -> Path:
    path = tmp_path / "vkey"
    path.write_text(SIGNER.vkey)
    return path


def root_of(note: str) -> bytes:
    return Checkpoint.parse(note.partition("\n\n")[0] + "\n").root


@pytest.mark.parametrize("size", SIZES)
def test_a_directory_passes(database, vkey, tmp_path, size):
    """Around every tile boundary fsck reads the exported directory and arrives at the signed root."""
    path, notes = database
    with reading(path) as reader:
        assert export_tiles(reader, INFO, notes[size], tmp_path / "log") == size
    said = run_fsck((tmp_path / "log").as_uri(), vkey)
    assert fsck_success(size, root_of(notes[size])) in said


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537])
def test_the_third_level_passes(vkey, tmp_path, size):
    """At the size at which a third level of tiles begins, fsck arrives at the signed root."""
    write_cheap(tmp_path / "log", size)
    note = (tmp_path / "log" / "checkpoint").read_text()
    assert fsck_success(size, root_of(note)) in run_fsck((tmp_path / "log").as_uri(), vkey)


def write_cheap(directory: Path, size: int) -> None:
    """Write a log of small entries, which are no records: only the tree is looked at."""

    def put(path: TilePath, data: bytes) -> None:
        target = directory / str(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    writer = TileWriter(put)
    for number in range(size):
        entry = number.to_bytes(4, "big")
        writer.append(entry, leaf_hash(entry))
    (directory / "checkpoint").write_text(sign_checkpoint(Checkpoint(ORIGIN, size, writer.finish()), SIGNER))


@pytest.mark.parametrize(
    "changed", ["tile/0/000", "tile/1/000.p/2", "tile/entries/001", "tile/0/002.p/1", "checkpoint"]
)
def test_a_changed_file_fails(database, vkey, tmp_path, changed):
    """The negative control: with one bit of one file changed, fsck does not print its line of success."""
    path, notes = database
    with reading(path) as reader:
        export_tiles(reader, INFO, notes[513], tmp_path / "log")
    target = tmp_path / "log" / changed
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 1
    target.write_bytes(bytes(data))
    said = run_fsck((tmp_path / "log").as_uri(), vkey, timeout_s=10)
    assert "Successfully" not in said


@pytest.fixture
async def served(database) -> AsyncIterator[str]:
    """Serve the log's files over HTTP up to 513 entries; gives the log's URL."""
    path, notes = database
    with reading(path) as reader:
        tiles = {prefix_of(ORIGIN): LogTiles(reader, INFO, notes[513])}
        runner = web.AppRunner(tile_application(lambda: tiles))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/{prefix_of(ORIGIN)}/"
        await runner.cleanup()


async def test_served_tiles_pass(served, database, vkey):
    """Over HTTP, too, fsck arrives at the signed root."""
    said = await asyncio.to_thread(run_fsck, served, vkey)
    assert fsck_success(513, root_of(database[1][513])) in said


async def test_served_files_are_the_exported_ones(served, database, tmp_path):
    """Every file that a log has is served byte for byte as it is exported; nothing else is there."""
    path, notes = database
    with reading(path) as reader:
        export_tiles(reader, INFO, notes[513], tmp_path / "log")
    async with aiohttp.ClientSession() as http:
        for name in ["checkpoint", *map(str, paths_of(513))]:
            async with http.get(served + name) as reply:
                assert (reply.status, await reply.read()) == (200, (tmp_path / "log" / name).read_bytes()), name
        for name in (
            "tile/0/002",
            "tile/0/002.p/2",
            "tile/1/000.p/3",
            "tile/2/000.p/1",
            "tile/0/2",
            "x",
            "tile/entries/003",
        ):
            async with http.get(served + name) as reply:
                assert reply.status == 404, name
        async with http.get(served.replace("/t/", "/t/other/") + "checkpoint") as reply:
            assert reply.status == 404


@pytest.mark.long
def test_a_hundred_thousand_records(vkey, tmp_path):
    """Fsck takes a log of 100,000 records from the database, and its tiles at the boundary of the third level."""
    sizes = (65_535, 65_536, 65_537, 100_000)
    notes = write_log(tmp_path / "audit.db", 100_000, sizes)
    for size in sizes:
        with reading(tmp_path / "audit.db") as reader:
            export_tiles(reader, INFO, notes[size], tmp_path / str(size))
        said = run_fsck((tmp_path / str(size)).as_uri(), vkey, timeout_s=600)
        assert fsck_success(size, root_of(notes[size])) in said
