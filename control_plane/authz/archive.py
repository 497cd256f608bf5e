"""Packing files into a tar.gz that is the same bit for bit wherever it is made, and unpacking one within bounds.

The gzip stream holds stored blocks (RFC 1951 section 3.2.4), since compressed ones differ between zlib versions; a
bundle is some 50 KiB.
"""

import io
import re
import struct
import tarfile
import zlib
from collections.abc import Mapping
from typing import Final

from bulkhead.errors import BundleError

__all__ = ["MAX_ARCHIVE_BYTES", "MAX_FILES", "MAX_UNPACKED_BYTES", "check_path", "pack", "unpack"]

MAX_ARCHIVE_BYTES: Final = 8 * 1024 * 1024  # policies are text written by people
MAX_UNPACKED_BYTES: Final = 16 * 1024 * 1024
MAX_FILES: Final = 512
MAX_PATH_CHARS: Final = 100  # of a tar header's name field
_PATH: Final = re.compile(
    r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*/){0,8}(?:[A-Za-z0-9_][A-Za-z0-9_.-]*|\.manifest|\.signatures\.json)"
)
_STORED_BYTES: Final = 65_535  # RFC 1951 section 3.2.4: LEN has 16 bits
_GZIP_HEADER: Final = bytes.fromhex("1f8b0800000000000003")  # RFC 1952: deflate, no flags, no time, Unix


def check_path(path: str) -> str:
    """Return ``path`` if it is a relative one of plain components.

    Raises:
        BundleError: it is not.
    """
    if len(path) > MAX_PATH_CHARS or not _PATH.fullmatch(path):
        raise BundleError(
            "a policy file's path is relative, of letters, digits, '.', '_' and '-', at most 100 characters"
        )
    return path


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return the tar.gz of ``files``, ordered by path, without times and owners.

    Raises:
        BundleError: too many files, or a path of another form.
    """
    if len(files) > MAX_FILES:
        raise BundleError(f"a bundle holds at most {MAX_FILES} files")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(files):
            header = tarfile.TarInfo(check_path(path))
            header.size = len(files[path])
            header.mode = 0o644
            tar.addfile(header, io.BytesIO(files[path]))
    return _gzip_stored(buffer.getvalue())


def unpack(data: bytes) -> dict[str, bytes]:
    """Return the files of an untrusted tar.gz by path; a leading slash, as `opa build` writes it, is dropped.

    Raises:
        BundleError: not a tar.gz, above a bound, or with anything but regular files of distinct plain paths.
    """
    if len(data) > MAX_ARCHIVE_BYTES:
        raise BundleError(f"a bundle is at most {MAX_ARCHIVE_BYTES} bytes")
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(_gunzip(data)), mode="r:") as tar:
            for member in tar:
                path = check_path(member.name.removeprefix("/"))
                content = tar.extractfile(member) if member.isreg() else None
                if content is None or path in files or len(files) >= MAX_FILES:
                    raise BundleError("a bundle holds regular files only, each once")
                files[path] = content.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, struct.error) as error:
        raise BundleError("the bundle is not a tar.gz archive") from error
    return files


def _gzip_stored(data: bytes) -> bytes:
    blocks = []
    for start in range(0, max(len(data), 1), _STORED_BYTES):
        block = data[start : start + _STORED_BYTES]
        final = start + _STORED_BYTES >= len(data)
        blocks.append(struct.pack("<BHH", final, len(block), len(block) ^ 0xFFFF) + block)
    return _GZIP_HEADER + b"".join(blocks) + struct.pack("<II", zlib.crc32(data), len(data))


def _gunzip(data: bytes) -> bytes:
    stream = zlib.decompressobj(wbits=31)  # gzip framing only
    plain = stream.decompress(data, MAX_UNPACKED_BYTES + 1)
    if len(plain) > MAX_UNPACKED_BYTES:
        raise BundleError(f"a bundle unpacks to at most {MAX_UNPACKED_BYTES} bytes")
    if not stream.eof or stream.unused_data:
        raise BundleError("the bundle is not one whole gzip stream")
    return plain
