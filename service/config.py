"""Configuration of a server process: one frozen dataclass, read from one TOML file.

Each field of the dataclass is a TOML key, each nested dataclass a table. Rules that hold for every process:

- an unknown key is an error that names file, table and key, and so is a value of another type: nothing is coerced;
- a magnitude names its unit (``drain_s``, ``memory_mib``);
- a secret is a path to a file of its own (:func:`service.files.read_private`), never a value in the TOML;
- a relative path is relative to the configuration file's directory;
- ``__post_init__`` refuses what types cannot say, with :class:`ValueError` (one sentence, no field name: the loader
  adds it) or :class:`~bulkhead.errors.ConfigError`.
"""

import tomllib
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, get_args, get_origin

from cattrs import BaseValidationError, Converter, ForbiddenExtraKeysError, transform_error
from cattrs.errors import CattrsError

from bulkhead.errors import BulkheadError, ConfigError

__all__ = ["load_config", "require_between"]

T = TypeVar("T")

MAX_CONFIG_BYTES: Final = 1024 * 1024  # a configuration is written by hand


def load_config(kind: type[T], path: Path) -> T:
    """Return the configuration that the TOML file at ``path`` holds.

    Args:
        kind: a frozen dataclass; its defaults fill absent keys.
        path: the file.

    Raises:
        ConfigError: the file cannot be read, is not TOML, names an unknown key, lacks a required one, or holds a value
            that its field does not take. The message names the file and every wrong key, as ``table.key``.
    """
    if not is_dataclass(kind):
        raise ConfigError(f"{kind!r} is no configuration dataclass")
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path}: longer than {MAX_CONFIG_BYTES} bytes")
    try:
        table = tomllib.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    try:
        return _converter(path.resolve().parent).structure(table, kind)
    except BaseValidationError as error:
        problems = "; ".join(_problem(line) for line in transform_error(error, "", _describe))
        raise ConfigError(f"{path}: {problems}") from error


def require_between(value: float, low: float, high: float) -> None:
    """Refuse a number outside ``[low, high]``, for use in ``__post_init__``.

    Raises:
        ValueError: with the bounds in words.
    """
    if not low <= value <= high:
        raise ValueError(f"{value} is not between {low} and {high}")


def _converter(directory: Path) -> Converter:
    converter = Converter(forbid_extra_keys=True, detailed_validation=True)
    for kind in (bool, int, str, bytes):
        converter.register_structure_hook(kind, _exactly(kind))
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(Path, lambda value, _: _path(value, directory))
    converter.register_structure_hook_func(_is_tuple, lambda value, kind: _array(value, kind, converter))
    return converter


def _exactly(kind: type) -> Any:
    def structure(value: object, _: type) -> object:
        if type(value) is not kind:  # bool is an int to isinstance, and a wrong value here
            raise ValueError(f"expected {kind.__name__}, found {type(value).__name__}")
        return value

    return structure


def _number(value: object, _: type) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number, found {type(value).__name__}")  # noqa: TRY004  cattrs reports ValueError
    return float(value)


def _path(value: object, directory: Path) -> Path:
    if not isinstance(value, str) or not value:
        raise ValueError("expected a path as a string")
    return directory / Path(value).expanduser()


def _is_tuple(kind: Any) -> bool:
    origin: object = get_origin(kind)
    return origin is tuple


def _array(value: object, kind: Any, converter: Converter) -> tuple[Any, ...]:
    if not isinstance(value, list):  # a string would otherwise pass as its characters
        raise ValueError(f"expected an array, found {type(value).__name__}")  # noqa: TRY004  as above
    item = get_args(kind)[0]
    return tuple(converter.structure(element, item) for element in value)


def _describe(error: BaseException, kind: type | None) -> str:
    if isinstance(error, ForbiddenExtraKeysError):
        return f"unknown key {', '.join(sorted(error.extra_fields))}"
    if isinstance(error, KeyError):
        return "required and missing"
    if isinstance(error, BulkheadError):
        return error.message
    if isinstance(error, CattrsError | ValueError) and error.args:
        return str(error.args[0])
    if isinstance(error, AttributeError | TypeError):
        return "expected a table"
    return f"not a value of this field ({kind})" if kind is not None else "not a value of this field"


def _problem(line: str) -> str:
    """Turn cattrs' ``description @ .table.key`` into ``table.key: description``."""
    description, _, place = line.rpartition(" @ ")
    name = place.removeprefix(".")
    return f"{name}: {description}" if name else f"top level: {description}"
