"""Policy sources: Rego with its tests, one `data.json`, one `input.schema.json`; nothing else is taken."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bulkhead.errors import BundleError
from control_plane.authz.archive import MAX_FILES, MAX_UNPACKED_BYTES, check_path

__all__ = ["DATA_PATH", "SCHEMA_PATH", "check_sources", "is_test", "read_sources", "write_sources"]

DATA_PATH: Final = "data.json"
SCHEMA_PATH: Final = "input.schema.json"


def is_test(path: str) -> bool:
    """Return whether a source is a test, which no bundle holds."""
    return path.endswith("_test.rego")


def check_sources(sources: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """Return ``sources`` (path -> content) if there are policies, data and schema, within bounds, and nothing else.

    Raises:
        BundleError: it is otherwise.
    """
    if len(sources) > MAX_FILES or sum(map(len, sources.values())) > MAX_UNPACKED_BYTES:
        raise BundleError(f"policies are at most {MAX_FILES} files and {MAX_UNPACKED_BYTES} bytes")
    for path in sources:
        if check_path(path) not in (DATA_PATH, SCHEMA_PATH) and not path.endswith(".rego"):
            raise BundleError(f"policies are .rego files, one {DATA_PATH} and one {SCHEMA_PATH}; {path} is neither")
    if DATA_PATH not in sources or SCHEMA_PATH not in sources:
        raise BundleError(f"policies need {DATA_PATH} and {SCHEMA_PATH}")
    if not any(path.endswith(".rego") and not is_test(path) for path in sources):
        raise BundleError("there are no policies (.rego files)")
    return sources


def read_sources(directory: Path) -> dict[str, bytes]:
    """Return the sources below ``directory``; hidden files are left out.

    Raises:
        BundleError: unreadable, a link, or not sources as :func:`check_sources` demands.
    """
    if not directory.is_dir():
        raise BundleError(f"there is no directory {directory}")
    sources: dict[str, bytes] = {}
    try:
        for path in sorted(directory.rglob("*")):
            relative = path.relative_to(directory)
            if any(part.startswith(".") for part in relative.parts) or (path.is_dir() and not path.is_symlink()):
                continue
            if path.is_symlink() or not path.is_file() or len(sources) >= MAX_FILES:
                raise BundleError(f"{relative}: policies are regular files, at most {MAX_FILES}")
            with path.open("rb") as file:
                sources[relative.as_posix()] = file.read(MAX_UNPACKED_BYTES + 1)
    except OSError as error:
        raise BundleError(f"the policies cannot be read: {error.strerror}") from error
    check_sources(sources)
    return sources


def write_sources(sources: Mapping[str, bytes], directory: Path) -> None:
    """Write checked sources below ``directory``, which must be empty."""
    for path, content in sources.items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
