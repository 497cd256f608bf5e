"""The file in which a monitor remembers what it has followed; replaced as a whole, never half."""

from pathlib import Path
from typing import Any, Final

from bulkhead.encoding import Json, b64decode, b64encode, canonical_json, parse_canonical
from bulkhead.errors import BulkheadError, ConfigError
from bulkhead.files import replace_file
from bulkhead.transparency.merkle import Frontier
from bulkhead.transparency.monitor import Alarm, Followed

__all__ = ["MonitorState", "read_state", "write_state"]

_VERSION: Final = 1
_MAX_BYTES: Final = 256 * 1024 * 1024  # a million requests without an answer, and more


class MonitorState:
    """What the file holds.

    Attributes:
        followed: the log as far as it was followed.
        offsets: how far each request journal was asked for, by path.
        settled: digests of receipt and proof files that the log was found to hold.
        left: name of the checkpoint file that was left for other monitors last, or empty.
    """

    def __init__(
        self,
        followed: Followed | None = None,
        offsets: dict[str, int] | None = None,
        settled: set[str] | None = None,
        left: str = "",
    ) -> None:
        self.followed = Followed() if followed is None else followed
        self.offsets = {} if offsets is None else offsets
        self.settled = set() if settled is None else settled
        self.left = left


def read_state(path: Path, origin: str) -> MonitorState:
    """Return what was remembered of the log ``origin``; nothing where there is no file.

    Raises:
        ConfigError: the file cannot be read, is damaged, or is of another log: never a reason to begin again unasked.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return MonitorState()
    except OSError as error:
        raise ConfigError(f"the monitor's state {path} cannot be read: {error.strerror}") from error
    try:
        value = parse_canonical(data, max_bytes=_MAX_BYTES, what="state")
        state = _decode(value)
    except (BulkheadError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise ConfigError(f"the monitor's state {path} is damaged: move it away to begin again") from error
    if value.get("v") != _VERSION or value.get("origin") != origin:
        raise ConfigError(f"the monitor's state {path} is of another log, or of another version")
    return state


def write_state(path: Path, origin: str, state: MonitorState) -> None:
    """Replace the file; durable on return.

    Raises:
        ConfigError: it cannot be written.
    """
    data = canonical_json(_encode(origin, state))
    try:
        replace_file(path, data, partial=path.with_name(f"{path.name}.new"))
    except OSError as error:
        raise ConfigError(f"the monitor's state {path} cannot be written: {error.strerror}") from error


def _encode(origin: str, state: MonitorState) -> dict[str, Json]:
    found = state.followed
    return {
        "v": _VERSION,
        "origin": origin,
        "size": found.size,
        "frontier": [b64encode(node) for node in found.frontier.nodes],
        "note": found.note,
        "since_us": found.since_us,
        "slot": found.slot,
        "first_round": found.first_round,
        "round": found.round,
        "round_ts_us": found.round_ts_us,
        "round_size": found.round_size,
        "round_root": found.round_root,
        "behind_us": found.behind_us,
        "platform_size": found.platform_size,
        "platform_root": found.platform_root,
        "found": sorted(found.found),
        "strangers": {key: list(value) for key, value in found.strangers.items()},
        "alarms": {
            key: {"kind": alarm.kind, "message": alarm.message, "subject": alarm.subject}
            for key, alarm in found.alarms.items()
        },
        "journals": dict(state.offsets),
        "settled": sorted(state.settled),
        "left": state.left,
    }


def _decode(value: dict[str, Any]) -> MonitorState:
    """Return the state of a parsed file; whatever is wrong about it raises, and the caller says so."""
    nodes = b"".join(b64decode(node, what="frontier") for node in value["frontier"])
    followed = Followed(
        frontier=Frontier.decode(int(value["size"]), nodes),
        note=str(value["note"]),
        since_us=int(value["since_us"]),
        slot=None if value["slot"] is None else int(value["slot"]),
        first_round=int(value.get("first_round", value["round"])),  # a file of before knew the newest round alone
        round=int(value["round"]),
        round_ts_us=int(value["round_ts_us"]),
        round_size=int(value.get("round_size", 0)),
        round_root=bytes.fromhex(value.get("round_root", "")).hex(),
        behind_us=int(value.get("behind_us", 0)),
        platform_size=int(value["platform_size"]),
        platform_root=bytes.fromhex(value["platform_root"]).hex(),
        found=set(map(str, value["found"])),
        strangers={str(key): (int(place), str(name), int(ts)) for key, (place, name, ts) in value["strangers"].items()},
        alarms={
            str(key): Alarm(str(item["kind"]), str(item["message"]), str(item["subject"]))
            for key, item in value["alarms"].items()
        },
    )
    offsets = {str(name): int(offset) for name, offset in value["journals"].items()}
    return MonitorState(followed, offsets, set(map(str, value["settled"])), str(value.get("left", "")))
