"""C2SP tlog-tiles: a log as static files, written and verified in one pass and bounded memory.

Specification: https://c2sp.org/tlog-tiles. ``checkpoint`` is the signed note; ``tile/L/N`` holds 256 consecutive
hashes of level L (each the root of a full tile below, leaf hashes at level 0), ``tile/entries/N`` the entries
themselves, each behind its length in two bytes, big-endian. The last tile of a level that is not full ends in
``.p/W`` with its width W. N is written in groups of three digits, all but the last behind an ``x``.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from bulkhead.errors import InclusionError, ProofError, RecordError
from bulkhead.transparency.checkpoint import Checkpoint, open_checkpoint
from bulkhead.transparency.merkle import HASH_BYTES, Frontier, leaf_hash, tree_root

__all__ = [
    "CHECKPOINT_PATH",
    "TILE_BYTES",
    "TILE_LEVELS",
    "TILE_WIDTH",
    "TilePath",
    "TileWriter",
    "VerifiedTiles",
    "decode_bundle",
    "encode_bundle",
    "paths_of",
    "verify_tiles",
]

TILE_LEVELS: Final = 8
TILE_WIDTH: Final = 1 << TILE_LEVELS
TILE_BYTES: Final = TILE_WIDTH * HASH_BYTES
CHECKPOINT_PATH: Final = "checkpoint"
MAX_ENTRY_BYTES: Final = 0xFFFF
_MAX_LEVEL: Final = 63
_PATH: Final = re.compile(r"tile/(entries|0|[1-9][0-9]?)/((?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")


@dataclass(frozen=True, slots=True)
class TilePath:
    """Names a tile or a bundle of entries.

    Attributes:
        level: of a tile; None for entries.
        number: within its level, from 0.
        width: hashes or entries in it: 256, or fewer in a partial one.
    """

    level: int | None
    number: int
    width: int = TILE_WIDTH

    def __str__(self) -> str:
        digits = f"{self.number:d}"
        digits = digits.zfill(-(-len(digits) // 3) * 3)
        groups = [digits[at : at + 3] for at in range(0, len(digits), 3)]
        where = "/".join([*(f"x{group}" for group in groups[:-1]), groups[-1]])
        partial = "" if self.width == TILE_WIDTH else f".p/{self.width}"
        return f"tile/{'entries' if self.level is None else self.level}/{where}{partial}"

    @classmethod
    def parse(cls, text: str) -> "TilePath":
        """Parse a path; exactly one text per value is accepted.

        Raises:
            ProofError: it is none.
        """
        match = _PATH.fullmatch(text)
        if match is None:
            raise ProofError("not the path of a tile")
        level = None if match[1] == "entries" else int(match[1])
        width = TILE_WIDTH if match[3] is None else int(match[3])
        path = cls(level, int(match[2].replace("/", "").replace("x", "")), width)
        if (level or 0) > _MAX_LEVEL or str(path) != text or width > TILE_WIDTH:
            raise ProofError("not the path of a tile")
        return path

    def within(self, size: int) -> bool:
        """Whether a log of ``size`` entries has this tile, at this width or wider."""
        return 0 < self.number * TILE_WIDTH + self.width <= size >> TILE_LEVELS * (self.level or 0)


def paths_of(size: int) -> Iterator[TilePath]:
    """Yield the paths of a log of ``size`` entries: its bundles, then its tiles, lower levels first."""
    for level in (None, *range(_MAX_LEVEL + 1)):
        count = size >> TILE_LEVELS * (level or 0)
        if not count:
            return
        full, rest = divmod(count, TILE_WIDTH)
        for number in range(full):
            yield TilePath(level, number)
        if rest:
            yield TilePath(level, full, rest)


def encode_bundle(entries: list[bytes]) -> bytes:
    """Return entries as a bundle.

    Raises:
        ProofError: an entry has more than 65,535 bytes.
    """
    if any(len(entry) > MAX_ENTRY_BYTES for entry in entries):
        raise ProofError(f"an entry of a bundle has at most {MAX_ENTRY_BYTES} bytes")
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def decode_bundle(data: bytes, count: int) -> list[bytes]:
    """Return the ``count`` entries of a bundle.

    Raises:
        ProofError: it is truncated, or holds more or fewer.
    """
    entries: list[bytes] = []
    at = 0
    while at < len(data) and len(entries) <= count:
        start = at + 2
        at = start + int.from_bytes(data[at:start], "big")
        entries.append(data[start:at])
    if len(entries) != count or at != len(data):
        raise ProofError(f"the bundle does not hold exactly {count} entries")
    return entries


class TileWriter:
    """Writes a log's entries in order as bundles and tiles; at most one tile a level is in memory.

    Args:
        put: stores a file's bytes under its path.
    """

    def __init__(self, put: Callable[[TilePath, bytes], None]) -> None:
        self._put = put
        self._entries: list[bytes] = []
        self._levels: list[list[bytes]] = []
        self._frontier = Frontier()

    @property
    def size(self) -> int:
        """Entries so far."""
        return self._frontier.size + len(self._entries)

    def append(self, entry: bytes, digest: bytes) -> None:
        """Add the next entry with its leaf hash, which the caller has checked."""
        self._entries.append(entry)
        if not self._levels:
            self._levels.append([])
        self._levels[0].append(digest)
        if len(self._entries) == TILE_WIDTH:
            self._bundle()
            self._close(0)

    def finish(self) -> bytes:
        """Write what is not full, and return the root."""
        if self._entries:
            self._bundle()
        for level, hashes in enumerate(self._levels):
            if hashes:
                number = self._frontier.size >> TILE_LEVELS * (level + 1)
                self._put(TilePath(level, number, len(hashes)), b"".join(hashes))
        return self._frontier.root()

    def _bundle(self) -> None:
        number = self._frontier.size >> TILE_LEVELS
        self._put(TilePath(None, number, len(self._entries)), encode_bundle(self._entries))
        self._frontier = self._frontier.extend(self._levels[0])
        self._entries.clear()

    def _close(self, level: int) -> None:
        """Write the full tile of a level, and hand its root up."""
        while len(self._levels[level]) == TILE_WIDTH:
            hashes, self._levels[level] = self._levels[level], []
            self._put(TilePath(level, (self._frontier.size >> TILE_LEVELS * (level + 1)) - 1), b"".join(hashes))
            level += 1
            if level == len(self._levels):
                self._levels.append([])
            self._levels[level].append(tree_root(hashes))


@dataclass(frozen=True, slots=True)
class VerifiedTiles:
    """A log's static files of which every one holds. Made by :func:`verify_tiles` only.

    Attributes:
        checkpoint: the signed checkpoint that covers all entries.
        files: how many files were compared.
    """

    checkpoint: Checkpoint
    files: int


def verify_tiles(
    get: Callable[[str], bytes],
    *,
    vkey: str,
    origin: str,
    check_entry: Callable[[int, bytes], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerifiedTiles:
    """Verify a log's static files against its pinned key.

    1. The checkpoint is signed by ``vkey`` and is of ``origin``.
    2. Each bundle holds as many entries as its path says, and each tile is the one that its entries give.
    3. The entries give the checkpoint's root.

    Args:
        get: returns a file's bytes by its path; raises a BulkheadError or OSError where there is none.
        vkey: pinned log key.
        origin: the log.
        check_entry: called with place and bytes of each entry, e.g. to parse it; may raise.
        progress: told how many entries of how many are done.

    Raises:
        CheckpointError: 1 fails.
        ProofError: a file is missing, corrupt, or not what the entries give; the message names the file.
        RecordError: 3 fails though every file agrees with the others.
    """
    try:
        note = get(CHECKPOINT_PATH).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProofError(f"{origin}: the file checkpoint cannot be read") from error
    checkpoint = open_checkpoint(note, vkey=vkey, origin=origin)  # 1
    files = 0

    def compare(path: TilePath, data: bytes) -> None:
        nonlocal files
        files += 1
        if path.level is not None and (found := _read(get, path)) != data:  # 2
            raise InclusionError(f"{path}: {_difference(path, found, data)}", details={"file": str(path)})

    writer = TileWriter(compare)
    for number in range(-(-checkpoint.size // TILE_WIDTH)):
        path = TilePath(None, number, min(TILE_WIDTH, checkpoint.size - number * TILE_WIDTH))
        try:
            entries = decode_bundle(_read(get, path), path.width)
        except ProofError as error:
            raise ProofError(f"{path}: {error.message}", details={"file": str(path)}) from error
        for entry in entries:
            if check_entry is not None:
                check_entry(writer.size, entry)
            writer.append(entry, leaf_hash(entry))
        if progress is not None:
            progress(writer.size, checkpoint.size)
    if writer.finish() != checkpoint.root:  # 3
        raise RecordError(f"{origin}: entries and tiles agree, but are not those of the signed checkpoint")
    return VerifiedTiles(checkpoint, files)


def _read(get: Callable[[str], bytes], path: TilePath) -> bytes:
    try:
        return get(str(path))
    except OSError as error:
        raise ProofError(f"{path}: cannot be read", details={"file": str(path)}) from error


def _difference(path: TilePath, found: bytes, computed: bytes) -> str:
    if len(found) != len(computed):
        return f"has {len(found)} bytes, {len(computed)} are expected"
    at = next(at for at in range(0, len(computed), HASH_BYTES) if found[at : at + HASH_BYTES] != computed[at:][:32])
    first = (path.number * TILE_WIDTH + at // HASH_BYTES) << TILE_LEVELS * (path.level or 0)
    return f"the hash of entry {first} (level {path.level}) is not the one that the entries give"
