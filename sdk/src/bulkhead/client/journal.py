"""The journal of requests: a file that says which request ids this tenant's clients made.

Every record of a tenant's log that a tenant's request caused names that request's id. A monitor holds the log against
the journals of all of the tenant's clients: a record whose request no journal holds was caused by somebody else with
the tenant's credential, and an answered request without its record was left out of the log.

One JSON object a line, appended and synchronised before the request leaves (``sent``), and when its answer is there::

    {"v":1,"event":"sent","id":"req_…","call":"OpenSession","ts_us":…}
    {"v":1,"event":"answered","id":"req_…","code":""}       code: of the error, empty where there was none

It holds no prompt, answer, key or token. Several processes may append to one file.

A full disk or a crash can leave half a line at the end. Its request was not sent: that waits until the whole line is
durable. Who appends next ends the half line with ``{"v":1,"event":"torn"}``, and readers pass over a line that ends so,
as over a last line without its end. Any other line that is no entry is an error, which names it.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from bulkhead.errors import ConfigError
from bulkhead.files import sync_directory
from bulkhead.transparency.monitor import RECORDED_CALLS, JournalEntries

__all__ = ["JournalReader", "RequestJournal"]

_VERSION: Final = 1
_TORN: Final = b'{"v":1,"event":"torn"}\n'  # no entry ends so: within its texts a quotation mark follows a backslash


class RequestJournal:
    """Appends to one file.

    Args:
        path: the file; made at the first request, readable by its owner only.
        wall_ns: wall clock, nanoseconds since the epoch.
    """

    def __init__(self, path: Path, *, wall_ns: Callable[[], int] = time.time_ns) -> None:
        self._path = path
        self._wall_ns = wall_ns
        self._fd = -1

    def sent(self, request_id: str, call: str) -> None:
        """Note a request that is about to be sent; durable on return.

        Raises:
            ConfigError: it could not be noted; the request must not be sent.
        """
        moment_us = self._wall_ns() // 1_000
        self._append({"event": "sent", "id": request_id, "call": call, "ts_us": moment_us}, durable=True)

    def answered(self, request_id: str, code: str) -> None:
        """Note how a request ended: the code of its error, or nothing.

        What cannot be noted is left out: the answer counts, and the monitor then asks less of the log.
        """
        with contextlib.suppress(ConfigError):
            self._append({"event": "answered", "id": request_id, "code": code}, durable=False)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, entry: dict[str, str | int], *, durable: bool) -> None:
        line = json.dumps({"v": _VERSION, **entry}, separators=(",", ":")).encode("ascii") + b"\n"
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                sync_directory(self._path.parent)  # the file's own name is as durable as its lines
            line = self._ended() + line
            if os.write(self._fd, line) != len(line):  # one write: lines of several processes never mix
                raise OSError(0, "only a part was written")  # noqa: TRY301 - one way out for every failure
            if durable:
                os.fdatasync(self._fd)
        except OSError as error:
            raise ConfigError(f"the request journal {self._path} cannot be written: {error.strerror}") from error

    def _ended(self) -> bytes:
        """Return what ends the line that somebody left half written, if one did."""
        size = os.fstat(self._fd).st_size
        return b"" if size == 0 or os.pread(self._fd, 1, size - 1) == b"\n" else _TORN


class JournalReader:
    """Reads journals as they grow.

    Args:
        paths: files; one that is not there yet is empty.
        offsets: bytes of each file, by path, whose answers were asked for in the log before.
        begun: whether records were followed before. What stands already in a file without an offset was recorded among
            them, unheeded, so it is not asked for.

    Attributes:
        unasked: files of which that is so.
    """

    def __init__(self, paths: Iterable[Path], offsets: Mapping[str, int], *, begun: bool = False) -> None:
        self.entries = JournalEntries()
        self.unasked: list[str] = []
        self._begun = begun
        self.offsets = {str(path): 0 for path in paths}
        self._settled = dict(offsets)
        self._calls: dict[str, str] = {}

    def read(self) -> JournalEntries:
        """Take in what was appended, and return everything.

        Raises:
            ConfigError: a file cannot be read, has become shorter, or is no journal.
        """
        for path, offset in self.offsets.items():
            self.offsets[path] = self._read(Path(path), offset)
        return self.entries

    def _read(self, path: Path, offset: int) -> int:
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size and self._begun and str(path) not in self._settled:
                    self.unasked.append(str(path))
                    self._settled[str(path)] = size
                if size < max(offset, self._settled.get(str(path), 0)):
                    raise ConfigError(f"the request journal {path} has become shorter: entries are missing")
                file.seek(offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # is being written, or was left half written: its request was not sent
                    end = offset + len(line)
                    if not line.endswith(_TORN) and not self._take(line, due=end > self._settled.get(str(path), 0)):
                        file.seek(0)
                        number = 1 + file.read(offset).count(b"\n")
                        raise ConfigError(f"{path}, line {number}: not a request journal of version {_VERSION}")
                    offset = end
        except FileNotFoundError:
            if offset or self._settled.get(str(path)):
                raise ConfigError(f"the request journal {path} is gone") from None
        except OSError as error:
            raise ConfigError(f"the request journal {path} cannot be read: {error.strerror}") from error
        return offset

    def _take(self, line: bytes, *, due: bool) -> bool:
        """Take in an entry; return False if it is none."""
        try:
            value = json.loads(line)
            match value:
                case {"v": 1, "event": "sent", "id": str(request_id), "call": str(call), "ts_us": int()}:
                    self.entries.sent.add(request_id)
                    if call in RECORDED_CALLS:
                        self._calls[request_id] = call
                    return True
                case {"v": 1, "event": "answered", "id": str(request_id), "code": str(code)}:
                    self.entries.answered.add(request_id)
                    if due and not code and request_id in self._calls:
                        self.entries.due.add(request_id)
                    return True
        except (ValueError, RecursionError):  # not JSON, or JSON that is nested without end
            return False
        return False
