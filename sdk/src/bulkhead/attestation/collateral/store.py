"""The collateral cache on disk: one file per piece, clearly named, written whole or not at all.

``DIRECTORY/KIND/NAME.json`` holds RFC 8785 JSON: version, kind, name, source, fetched_s, chain (PEM) and data (base64).
What stands there is as untrusted as what comes from a network: verifiers check it each time it is used.
"""

import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Protocol

from bulkhead.attestation.collateral.kinds import MAX_ENTRY_BYTES, CollateralEntry, CollateralKind
from bulkhead.encoding import b64decode, b64encode, canonical_json
from bulkhead.errors import BulkheadError, ConfigError, EvidenceError
from bulkhead.fields import Fields

__all__ = ["CarriedCollateral", "CollateralCopies", "CollateralStore", "default_directory"]

MAX_ENTRIES: Final = 1_024  # of one kind: chips of fourteen racks; beyond it the oldest make room
MAX_CHAIN_CHARS: Final = 65_536
_VERSION: Final = 1
_MAX_FILE_BYTES: Final = MAX_ENTRY_BYTES * 2
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,199}")
_MAX_URL_CHARS: Final = 2_048


def default_directory() -> Path:
    """Return ``$XDG_CACHE_HOME/bulkhead/collateral``, or the same under ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "bulkhead" / "collateral"


class CollateralCopies(Protocol):
    """Port: copies of collateral, in a directory or with a saved receipt."""

    def get(self, kind: CollateralKind, name: str) -> CollateralEntry | None:
        """Return a piece, or None where there is none that can be read."""
        ...

    def put(self, entry: CollateralEntry) -> None:
        """Keep a piece in place of an older one of its name."""
        ...


class CarriedCollateral:
    """Pieces that came with what they verify, such as a saved receipt. Nothing is written anywhere.

    Args:
        entries: untrusted, as every piece of collateral.
    """

    def __init__(self, entries: Iterable[CollateralEntry] = ()) -> None:
        self._entries = {(entry.kind, entry.name): entry for entry in entries}

    @property
    def entries(self) -> tuple[CollateralEntry, ...]:
        """Every piece, by kind and name."""
        return tuple(self._entries[key] for key in sorted(self._entries))

    def get(self, kind: CollateralKind, name: str) -> CollateralEntry | None:
        """Return a piece, or None."""
        return self._entries.get((kind, name))

    def put(self, entry: CollateralEntry) -> None:
        """Carry a piece."""
        self._entries[entry.kind, entry.name] = entry


class CollateralStore:
    """Pieces of collateral in a directory, which is made when the first one is put there.

    Args:
        directory: of the cache; several processes may share it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def directory(self) -> Path:
        """Where the files are."""
        return self._directory

    def get(self, kind: CollateralKind, name: str) -> CollateralEntry | None:
        """Return a piece, or None where there is none, or none that can be read: it is then fetched anew."""
        try:
            return self._read(self._path(kind, name))
        except (BulkheadError, OSError):
            return None

    def put(self, entry: CollateralEntry) -> None:
        """Store a piece in place of an older one of its name.

        Raises:
            EvidenceError: longer than 4 MiB.
            ConfigError: the directory cannot be written.
        """
        if len(entry.data) > MAX_ENTRY_BYTES or len(entry.chain) > MAX_CHAIN_CHARS:
            raise EvidenceError(f"{entry.kind.value} {entry.name}: longer than {MAX_ENTRY_BYTES} bytes")
        path = self._path(entry.kind, entry.name)
        encoded = canonical_json(
            {
                "version": _VERSION,
                "kind": entry.kind.value,
                "name": entry.name,
                "source": entry.source,
                "fetched_s": entry.fetched_s,
                "chain": entry.chain.decode("ascii", errors="replace"),
                "data": b64encode(entry.data),
            }
        )
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(path, encoded)
            self._make_room(path.parent)
        except OSError as error:
            raise ConfigError(f"the collateral cache {self._directory}: {error.strerror}") from error

    def entries(self) -> Iterator[CollateralEntry]:
        """Yield every piece that can be read, by kind and name."""
        for kind in CollateralKind:
            folder = self._directory / kind.value
            for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
                entry = self.get(kind, path.stem)
                if entry is not None:
                    yield entry

    def _path(self, kind: CollateralKind, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise EvidenceError("the name of a piece of collateral is malformed")
        return self._directory / kind.value / f"{name}.json"

    def _read(self, path: Path) -> CollateralEntry:
        with path.open("rb") as file:
            encoded = file.read(_MAX_FILE_BYTES + 1)
        with Fields.parse(encoded, max_bytes=_MAX_FILE_BYTES, what=path.name, error=EvidenceError) as fields:
            fields.integer("version", low=_VERSION, high=_VERSION)
            entry = CollateralEntry(
                kind=CollateralKind(fields.text("kind")),
                name=fields.text("name"),
                data=b64decode(fields.text("data", max_chars=_MAX_FILE_BYTES, empty=True), what="data"),
                chain=fields.text("chain", max_chars=MAX_CHAIN_CHARS, empty=True).encode(),
                fetched_s=fields.integer("fetched_s"),
                source=fields.text("source", max_chars=_MAX_URL_CHARS),
            )
        if self._path(entry.kind, entry.name) != path:
            raise EvidenceError("a piece of collateral lies under another name than its own")
        return entry

    def _make_room(self, folder: Path) -> None:
        paths = list(folder.glob("*.json"))
        if len(paths) > MAX_ENTRIES:
            oldest = sorted(paths, key=lambda path: path.stat().st_mtime_ns)
            for path in oldest[: len(paths) - MAX_ENTRIES]:
                path.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
