"""The lowest version of each model whose key is still released, in a file: it only ever rises."""

import json
import threading
from pathlib import Path
from typing import Final

from bulkhead.encoding import canonical_json
from bulkhead.errors import KeyBrokerError, ModelRolledBackError
from bulkhead.fields import Fields
from bulkhead.files import replace_file

__all__ = ["FileFloors"]

MAX_BYTES: Final = 1 << 20
MAX_MODELS: Final = 4096


class FileFloors:
    """Floors of one broker; one process at a time. Safe from any thread.

    Args:
        path: of the file, ``{"floors": {"<model>": <version>}}``; made with the first release.

    Raises:
        KeyBrokerError: it cannot be read, or holds something else: a broker that forgot its floors must not start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._floors = _read(path)

    def raise_to(self, model: str, version: int) -> None:
        """Return once no version of ``model`` below ``version`` can be released any more, after a crash neither.

        Raises:
            ModelRolledBackError: a higher version was released before.
            KeyBrokerError: it could not be made durable.
        """
        with self._lock:
            floor = self._floors.get(model, 0)
            if version < floor:
                raise ModelRolledBackError(
                    f"version {version} of {model} is below {floor}, which was released before",
                    details={"version": str(version), "floor": str(floor)},
                )
            if version > floor:
                raised = {**self._floors, model: version}
                _write(self._path, canonical_json({"floors": raised}))
                self._floors = raised


def _read(path: Path) -> dict[str, int]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise KeyBrokerError(f"{path}: the versions released before cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise KeyBrokerError(f"{path}: longer than {MAX_BYTES} bytes")
    try:
        names = json.loads(data)["floors"].keys()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise KeyBrokerError(f"{path}: is not a broker's file of versions") from error
    with (
        Fields.parse(data, max_bytes=MAX_BYTES, what=str(path), error=KeyBrokerError) as outer,
        outer.nested("floors") as floors,
    ):
        return {str(name): floors.integer(str(name), low=1) for name in list(names)[:MAX_MODELS]}


def _write(path: Path, data: bytes) -> None:
    try:
        replace_file(path, data, partial=path.with_name(f".{path.name}.new"))
    except OSError as error:
        raise KeyBrokerError(f"{path}: the released version cannot be noted: {error.strerror}") from error
