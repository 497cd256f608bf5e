import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from service.logging import REDACTED, bind_call, configure, describe_exception

API_KEY = f"bhk_01h455vb4pex5vsknk084sn02q_{'A' * 43}"
JWT = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"


@pytest.fixture
def lines() -> Iterator[Any]:
    """What the process has logged, parsed."""
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    configure(output="json", level="debug", stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def _raise(error: Exception, *, cause: Exception | None = None) -> None:
    raise error from cause


def test_a_line_is_json_with_event_level_and_time(lines: Any) -> None:
    """One event is one JSON object with its name, level, logger and UTC time."""
    structlog.get_logger("bulkhead.test").info("partition.ready", partition_id="part_1", gpus=4)
    (line,) = lines()
    assert line["event"] == "partition.ready"
    assert (line["partition_id"], line["gpus"], line["level"]) == ("part_1", 4, "info")
    assert line["logger"] == "bulkhead.test"
    assert line["timestamp"].endswith("Z")


def test_secrets_never_reach_a_line(lines: Any) -> None:
    """Values under a secret's name, and keys and tokens anywhere in a text, at any depth, are redacted."""
    structlog.get_logger("t").info(
        f"used {API_KEY}",
        prompt="the patient's name",
        nested={"token": "tok", "list": [f"Bearer {JWT}", {"secret": "s3cret"}]},
        pem="-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----",
        raw=b"\x00\x01",
    )
    (line,) = lines()
    text = json.dumps(line)
    for secret in (API_KEY, JWT, "patient", 'tok"', "s3cret", "MIGH"):
        assert secret not in text
    assert line["prompt"] == REDACTED
    assert line["raw"] == "[2 bytes]"


def test_exceptions_are_described_without_their_text(lines: Any) -> None:
    """An unexpected exception's line has types and places; its text, which may quote input, stays out."""
    try:
        _raise(ValueError("answer to a patient"), cause=KeyError("prompt of a patient"))
    except ValueError as error:
        structlog.get_logger("t").error("rpc.failed", exc_info=error)
        trace = describe_exception(error)
    (line,) = lines()
    assert "patient" not in json.dumps(line)
    assert line["trace"] == trace
    assert "builtins.ValueError" in trace
    assert "builtins.KeyError" in trace
    assert any("test_service_logging.py" in place for place in trace)


def test_the_standard_library_logs_the_same_way(lines: Any) -> None:
    """A library's record is one JSON line too, redacted, without its stack's text."""
    try:
        _raise(RuntimeError("quotes a prompt"))
    except RuntimeError:
        logging.getLogger("some.library").exception("failed with %s", API_KEY)
    (line,) = lines()
    assert line["event"] == f"failed with {REDACTED}"
    assert "quotes a prompt" not in json.dumps(line)
    assert line["trace"][0] == "builtins.RuntimeError"


def test_bound_facts_are_on_every_line(lines: Any) -> None:
    """The request id that a call binds stands on each line of its task."""
    bind_call(request_id="req_1")
    structlog.get_logger("t").info("a")
    structlog.get_logger("t").info("b")
    assert [line["request_id"] for line in lines()] == ["req_1", "req_1"]


def test_console_output_shows_the_trace(capsys: pytest.CaptureFixture[str]) -> None:
    """The console format renders an exception's description instead of failing on it."""
    stream = io.StringIO()
    configure(output="console", stream=stream)
    try:
        _raise(ValueError("quiet"))
    except ValueError as error:
        structlog.get_logger("t").error("x.failed", exc_info=error)
    assert "x.failed" in stream.getvalue()
    assert "builtins.ValueError" in stream.getvalue()
    assert "quiet" not in stream.getvalue()
    structlog.reset_defaults()
