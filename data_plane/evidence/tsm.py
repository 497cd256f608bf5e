"""Quotes from the kernel's ``configfs-tsm`` (Linux 6.7, Documentation/ABI/testing/configfs-tsm-report).

One entry is made for each quote and removed afterwards:

    mkdir ENTRY -> generation -> [privlevel] -> inblob -> outblob -> auxblob -> generation -> rmdir

The kernel counts every write to an entry in ``generation``. If that count is not what these writes alone make it, then
somebody else wrote to the entry, and the quote may answer somebody else: it is thrown away and asked for again.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from bulkhead.errors import BulkheadError, ConfigError, InternalError, UnavailableError, UnsupportedError

__all__ = ["CONFIGFS", "ConfigFs", "TsmQuote", "TsmQuotes", "TsmTree"]

CONFIGFS: Final = Path("/sys/kernel/config/tsm/report")
REPORT_DATA_BYTES: Final = 64  # TSM_REPORT_INBLOB_MAX
MAX_BLOB_BYTES: Final = 32_768  # TSM_REPORT_OUTBLOB_MAX when the interface was introduced; quotes have 1.2 to 8 kB
ATTEMPTS: Final = 3
_PROVIDERS: Final = {"sev_guest": "snp", "tdx_guest": "tdx"}
_SNP_REPORT_DATA: Final = slice(0x50, 0x90)
_BUSY: Final = frozenset({errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT})


class TsmTree(Protocol):
    """Port: the file operations of configfs, each of which may be answered by the kernel with an error."""

    def make(self, entry: str) -> None:
        """Make an entry (a directory); the kernel fills it."""
        ...

    def remove(self, entry: str) -> None:
        """Remove an entry with everything in it."""
        ...

    def write(self, entry: str, attribute: str, data: bytes) -> None:
        """Write an attribute at once."""
        ...

    def read(self, entry: str, attribute: str, max_bytes: int) -> bytes:
        """Read an attribute whole, at most ``max_bytes``, or raise OSError."""
        ...


class ConfigFs:
    """The kernel's tree."""

    def __init__(self, root: Path = CONFIGFS) -> None:
        self._root = root

    def make(self, entry: str) -> None:
        """See :class:`TsmTree`."""
        (self._root / entry).mkdir()

    def remove(self, entry: str) -> None:
        """See :class:`TsmTree`; the kernel removes the attributes itself."""
        (self._root / entry).rmdir()

    def write(self, entry: str, attribute: str, data: bytes) -> None:
        """See :class:`TsmTree`."""
        descriptor = os.open(self._root / entry / attribute, os.O_WRONLY)
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.EIO, "the kernel took a part of the attribute only")
        finally:
            os.close(descriptor)  # configfs takes a binary attribute when it is closed

    def read(self, entry: str, attribute: str, max_bytes: int) -> bytes:
        """See :class:`TsmTree`."""
        descriptor = os.open(self._root / entry / attribute, os.O_RDONLY)
        data = bytearray()
        try:
            while chunk := os.read(descriptor, max_bytes + 1 - len(data)):
                data += chunk
        finally:
            os.close(descriptor)
        if len(data) > max_bytes:
            raise OSError(errno.EFBIG, f"longer than {max_bytes} bytes")
        return bytes(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class TsmQuote:
    """A quote as the kernel gave it.

    Attributes:
        technology: ``snp`` or ``tdx``.
        provider: the kernel's name of the driver.
        quote: report or quote, binary.
        auxiliary: what the host gave beside it, such as SEV-SNP's table of certificates; may be empty.
    """

    technology: str
    provider: str
    quote: bytes
    auxiliary: bytes


class TsmQuotes:
    """Asks the kernel for quotes; blocks while the hardware works. Not for concurrent use: one quote is in flight.

    Args:
        tree: configfs.
        privilege_level: VMPL to quote for, of SEV-SNP; None leaves the driver's default.
    """

    def __init__(self, tree: TsmTree | None = None, *, privilege_level: int | None = None) -> None:
        self._tree = tree if tree is not None else ConfigFs()
        self._privilege_level = privilege_level

    def quote(self, report_data: bytes) -> TsmQuote:
        """Return a fresh quote over ``report_data`` (64 bytes).

        Raises:
            UnsupportedError: no such interface, no provider behind it, or one that is not known here.
            ConfigError: the process may not use it.
            UnavailableError: the hardware or its firmware is busy, or another process interfered each time.
            InternalError: the quote answers something else than was asked, or is longer than any.
        """
        if len(report_data) != REPORT_DATA_BYTES:
            raise InternalError(f"a quote is over {REPORT_DATA_BYTES} bytes")
        for _ in range(ATTEMPTS):
            quote = self._attempt(report_data)
            if quote is not None:
                return quote
        raise UnavailableError("another process wrote to the quote's entry in configfs each time")

    def _attempt(self, report_data: bytes) -> TsmQuote | None:
        with _translated(), self._entry() as entry:
            provider = self._text(entry, "provider")
            technology = _PROVIDERS.get(provider)
            if technology is None:
                raise UnsupportedError(f"configfs-tsm is provided by {provider[:64]}, which is not known here")
            before = self._generation(entry)
            writes = self._ask(entry, technology, report_data)
            try:
                quote = self._tree.read(entry, "outblob", MAX_BLOB_BYTES)
            except OSError as error:
                if error.errno == errno.EWOULDBLOCK:  # written to between two reads of ours
                    return None
                raise
            auxiliary = self._auxiliary(entry)
            if self._generation(entry) != before + writes:
                return None
        if technology == "snp" and quote[_SNP_REPORT_DATA] != report_data:
            raise InternalError("the processor's report answers something else than was asked")
        return TsmQuote(technology=technology, provider=provider, quote=quote, auxiliary=auxiliary)

    def _ask(self, entry: str, technology: str, report_data: bytes) -> int:
        """Write what the quote shall say; return how many writes that took."""
        writes = 1
        if technology == "snp" and self._privilege_level is not None:
            self._tree.write(entry, "privlevel", b"%d" % self._privilege_level)
            writes += 1
        self._tree.write(entry, "inblob", report_data)
        return writes

    def _auxiliary(self, entry: str) -> bytes:
        try:
            return self._tree.read(entry, "auxblob", MAX_BLOB_BYTES)
        except OSError as error:
            if error.errno == errno.ENOENT:  # a provider without one
                return b""
            raise

    def _generation(self, entry: str) -> int:
        text = self._text(entry, "generation")
        if not text.isdigit():
            raise InternalError("configfs-tsm: generation is not a number")
        return int(text)

    def _text(self, entry: str, attribute: str) -> str:
        return self._tree.read(entry, attribute, 4096).decode("ascii", "replace").strip()

    @contextlib.contextmanager
    def _entry(self) -> Iterator[str]:
        entry = f"bulkhead-{os.getpid()}-{secrets.token_hex(8)}"
        self._tree.make(entry)
        try:
            yield entry
        finally:
            with contextlib.suppress(OSError):  # one that stays behind is empty and costs nothing
                self._tree.remove(entry)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _error(error) from error


def _error(error: OSError) -> BulkheadError:
    reason = error.strerror or type(error).__name__
    if error.errno == errno.ENOENT:
        return UnsupportedError(
            f"no configfs-tsm at {CONFIGFS}: needs Linux 6.7 or later as an SEV-SNP or TDX guest, with configfs mounted"
        )
    if error.errno in {errno.ENXIO, errno.ENOTTY, errno.ENODEV, errno.EOPNOTSUPP}:
        return UnsupportedError(f"configfs-tsm has no provider: the guest's sev-guest or tdx-guest driver ({reason})")
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return ConfigError(f"configfs-tsm may not be used by this process: {reason}")
    if error.errno in _BUSY:
        return UnavailableError(f"the hardware gives no quote now: {reason}")
    if error.errno == errno.EFBIG:
        return InternalError("configfs-tsm: the quote is longer than any")
    return UnavailableError(f"configfs-tsm: {reason}")
