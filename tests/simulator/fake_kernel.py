"""configfs-tsm as the kernel keeps it (drivers/virt/coco/guest/report.c), on a real directory.

Attributes are real files, so that the collector's own reading and writing is tested; what configfs does beyond files
is here: mkdir fills an entry, each write counts in ``generation``, reading ``outblob`` or ``auxblob`` has the firmware
make a report if something was written since, rmdir removes an entry with its attributes.
"""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from data_plane.evidence.tsm import ConfigFs

ATTRIBUTES = {
    "sev_guest": ("inblob", "outblob", "auxblob", "generation", "provider", "privlevel", "privlevel_floor"),
    "tdx_guest": ("inblob", "outblob", "generation", "provider"),
}
Firmware = Callable[[bytes, int], tuple[bytes, bytes]]


@dataclass
class _State:
    writes: int = 0
    made_at: int = -1
    privilege_level: int = 0


@dataclass
class FakeKernel(ConfigFs):
    """A kernel with a provider behind configfs-tsm, or without (None).

    Args:
        root: an existing directory.
        provider: the driver's name.
        firmware: (report data, privilege level) -> (report, auxiliary).
        faults: (operation, attribute) -> errno, raised that once.
        meddler: called before each reading of an attribute: another process.
    """

    root: Path
    provider: str | None
    firmware: Firmware
    faults: dict[tuple[str, str], int] = field(default_factory=dict)
    meddler: Callable[["FakeKernel", str, str], None] | None = None
    made: list[str] = field(default_factory=list)
    quotes: int = 0

    def __post_init__(self) -> None:
        super().__init__(self.root)
        self._states: dict[str, _State] = {}

    @property
    def entries(self) -> list[str]:
        """Entries that exist."""
        return sorted(path.name for path in self.root.iterdir())

    def make(self, entry: str) -> None:
        """Mkdir."""
        self._fault("make", "")
        if self.provider is None:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        super().make(entry)
        self.made.append(entry)
        self._states[entry] = _State()
        for attribute in ATTRIBUTES.get(self.provider, ATTRIBUTES["sev_guest"]):
            (self.root / entry / attribute).write_bytes(b"")
        (self.root / entry / "provider").write_text(f"{self.provider}\n")
        (self.root / entry / "generation").write_text("0\n")

    def remove(self, entry: str) -> None:
        """Rmdir."""
        for path in (self.root / entry).iterdir():
            path.unlink()
        super().remove(entry)

    def write(self, entry: str, attribute: str, data: bytes) -> None:
        """Write, and close."""
        self._fault("write", attribute)
        super().write(entry, attribute, data)
        state = self._states[entry]
        state.writes += 1
        if attribute == "privlevel":
            state.privilege_level = int(data)
        (self.root / entry / "generation").write_text(f"{state.writes}\n")

    def read(self, entry: str, attribute: str, max_bytes: int) -> bytes:
        """Open, and read."""
        if self.meddler is not None:
            self.meddler(self, entry, attribute)
        self._fault("read", attribute)
        if attribute in {"outblob", "auxblob"} and (self.root / entry / attribute).exists():
            self._make_report(entry)
        return super().read(entry, attribute, max_bytes)

    def _make_report(self, entry: str) -> None:
        state = self._states[entry]
        asked = (self.root / entry / "inblob").read_bytes()
        if not asked:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if state.made_at == state.writes:
            return
        report, auxiliary = self.firmware(asked, state.privilege_level)
        self.quotes += 1
        state.made_at = state.writes
        (self.root / entry / "outblob").write_bytes(report)
        if (self.root / entry / "auxblob").exists():
            (self.root / entry / "auxblob").write_bytes(auxiliary)

    def _fault(self, operation: str, attribute: str) -> None:
        number = self.faults.pop((operation, attribute), None)
        if number is not None:
            raise OSError(number, os.strerror(number))
