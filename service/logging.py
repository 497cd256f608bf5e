"""Structured logs of a server process: JSON lines or a console, without prompts, keys or tokens.

Call :func:`configure` once, in ``__main__``; then ``log = structlog.get_logger(__name__)`` and
``log.info("partition.ready", partition_id=...)``: an event name in the field's terms, and facts as key words.

What never reaches a line: a value whose key names a secret or content (:data:`SECRET_KEYS`), a text that has the shape
of an API key or a JWT, and the text of an unexpected exception (it may quote its input): :func:`describe_exception`
gives types and places only. This is the second fence. The first is not to log such values at all.
"""

import logging
import re
import sys
import traceback
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, Final, Literal, TextIO

import structlog

__all__ = ["LogFormat", "bind_call", "configure", "describe_exception", "redact"]

LogFormat = Literal["json", "console"]

SECRET_KEYS: Final = frozenset(
    {
        "api_key",
        "authorization",
        "completion",
        "content",
        "key",
        "messages",
        "password",
        "private_key",
        "prompt",
        "secret",
        "text",
        "ticket",
        "token",
    }
)
REDACTED: Final = "[redacted]"
MAX_VALUE_CHARACTERS: Final = 4_096  # a peer's text must not fill the disk
MAX_FRAMES: Final = 30
MAX_CAUSES: Final = 5

_SECRET_TEXT: Final = re.compile(
    r"bhk_[0-9a-z]{26}_[A-Za-z0-9_-]{20,}"  # an API key
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"  # a JWT
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)


def configure(*, output: LogFormat = "json", level: str = "info", stream: TextIO | None = None) -> None:
    """Set up structured logging for this process, and send the standard library's loggers the same way.

    Args:
        output: ``json`` writes one object a line, ``console`` something for a person's terminal.
        level: ``debug``, ``info``, ``warning`` or ``error``.
        stream: where lines go; standard error by default, so that standard output stays a program's own.
    """
    target = stream if stream is not None else sys.stderr
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _frames_only,
        redact,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if output == "json"
        else structlog.dev.ConsoleRenderer(colors=target.isatty())
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared[:-2], _message_only, *shared[-2:]],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("sqlalchemy", "alembic", "asyncio", "grpc", "urllib3", "httpx"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.raiseExceptions = False  # the library's report of a failed line prints the line's raw values
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def bind_call(**facts: str) -> None:
    """Put ``facts`` (request id, method) on every line that the current task and its children log."""
    structlog.contextvars.bind_contextvars(**facts)


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Structlog processor: replace secrets by :data:`REDACTED` and cut over-long texts, at any depth."""
    for key in list(event):
        if not key.startswith("_"):  # structlog's own record fields
            event[key] = REDACTED if key in SECRET_KEYS else _clean(event[key])
    return event


def describe_exception(error: BaseException) -> list[str]:
    """Return types and source places of ``error`` and its causes, innermost frame last, without any value."""
    lines: list[str] = []
    current: BaseException | None = error
    for _ in range(MAX_CAUSES):
        if current is None:
            break
        lines.append(f"{type(current).__module__}.{type(current).__qualname__}")
        frames = traceback.extract_tb(current.__traceback__)[-MAX_FRAMES:]
        lines.extend(f"  {Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in frames)
        current = current.__cause__ or current.__context__
    return lines


def _clean(value: object) -> object:
    if isinstance(value, str):
        return _SECRET_TEXT.sub(REDACTED, value)[:MAX_VALUE_CHARACTERS]
    if isinstance(value, bytes | bytearray | memoryview):
        return f"[{len(value)} bytes]"
    if isinstance(value, dict):
        return {str(key): REDACTED if key in SECRET_KEYS else _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return _clean(str(value))


def _frames_only(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    found = event.pop("exc_info", None)
    if found is True:
        found = sys.exc_info()
    error = found[1] if isinstance(found, tuple) else found
    if isinstance(error, BaseException):
        event["trace"] = describe_exception(error)
    return event


def _message_only(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Drop a foreign record's stack text: its exception is described by :func:`_frames_only`."""
    event.pop("stack_info", None)
    record = event.get("_record")
    if record is not None and record.exc_info:
        event["exc_info"] = record.exc_info
        record.exc_info = None
        record.exc_text = None
    return event
