"""What the commands of the project share: exit codes, error lines, tables, JSON.

Exit codes: 0 done, 1 refused or failed verification, 2 wrong usage or configuration. An error is one line on standard
error, ``error CODE: sentence. What to do.``; a stack trace is shown only with ``BULKHEAD_DEBUG=1``.
"""

import asyncio
import dataclasses
import datetime as dt
import json
import os
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Final, TypeVar

import click

from bulkhead.errors import BulkheadError, ConfigError

__all__ = [
    "EXIT_REFUSED",
    "EXIT_USAGE",
    "WHAT_TO_DO",
    "Program",
    "compose",
    "emit",
    "emit_rows",
    "example",
    "json_option",
    "note",
    "one_line",
    "run",
    "time_text",
    "to_json",
]

EXIT_REFUSED: Final = 1
EXIT_USAGE: Final = 2
Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable[..., Any])

WHAT_TO_DO: Final[Mapping[str, str]] = MappingProxyType(
    {
        "AUDIT_UNAVAILABLE": "Nothing was started; try again shortly.",
        "CONNECTION_FAILED": "Check that the platform is up and that the profile's address and ca_file are right.",
        "CREDENTIAL_EXPIRED": "Ask an admin for a new credential.",
        "CREDENTIAL_INVALID": "Check the profile's credential.",
        "CREDENTIAL_MISSING": "Give the profile an api_key_file or a client certificate.",
        "DEADLINE_EXCEEDED": "Try again; if it persists the server is overloaded.",
        "EVIDENCE_POLICY": "The trust policy decides what is accepted.",
        "EVIDENCE_SIMULATED": "For development only: development_mode = true in the profile.",
        "MODEL_UNKNOWN": "Ask an admin which models are registered.",
        "NO_CAPACITY": "Try again later, or ask for a weaker tier if policy allows it.",
        "POLICY_DENIED": "An officer finds the decision with: bulkhead audit list --decision deny.",
        "POLICY_ENGINE": "Nothing was started; try again in a few seconds.",
        "QUEUE_FULL": "Try again later.",
        "RATE_LIMITED": "Send more slowly.",
        "SCOPE_MISSING": "Use a profile whose credential has the role.",
        "SESSION_LIMIT": "Close a session, or ask an admin for a higher limit.",
        "WORKER_LOST": "Open a new session.",
    }
)
"""Code -> advice for a person."""


class Program(click.Group):
    """A root command: turns every error into one line and an exit code.

    Attributes:
        advice: code -> advice for a person.
    """

    advice: ClassVar[Mapping[str, str]] = WHAT_TO_DO

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except BulkheadError as error:
            click.echo(one_line(error, self.advice), err=True)
            ctx.exit(EXIT_USAGE if isinstance(error, ConfigError) else EXIT_REFUSED)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click prints usage errors and ends quietly on a closed pipe
        except Exception as error:  # the process boundary: a defect is one line to a user, a trace on demand
            if os.environ.get("BULKHEAD_DEBUG"):
                raise
            if isinstance(error, OSError) and error.filename:  # a file that was named, or lies beside one
                click.echo(one_line(ConfigError(f"{error.filename}: {error.strerror}")), err=True)
                ctx.exit(EXIT_USAGE)
            message = (
                f"error INTERNAL: unexpected {type(error).__name__}. Run again with BULKHEAD_DEBUG=1 and report it."
            )
            click.echo(message, err=True)
            ctx.exit(EXIT_REFUSED)


def one_line(error: BulkheadError, what_to_do: Mapping[str, str] = WHAT_TO_DO) -> str:
    """Return ``error CODE: sentence. What to do.`` with a denial's reasons; none is told twice."""
    sentence = _clean(error.message).rstrip(".")
    reasons = "; ".join(code if text.rstrip(".") in sentence else f"{code}: {text}" for code, text in _reasons(error))
    advice = what_to_do.get(error.code, "")
    return f"error {error.code}: {sentence}{f' ({reasons})' if reasons else ''}.{f' {advice}' if advice else ''}"


def _reasons(error: BulkheadError) -> list[tuple[str, str]]:
    """Return code and message of each of a denial's reasons; a peer's text: what is malformed is left out."""
    try:
        listed = json.loads(error.details.get("reasons", "[]"))
    except ValueError:
        return []
    if not isinstance(listed, list):
        return []
    return [
        (_clean(str(item.get("code", ""))), _clean(str(item.get("message", ""))))
        for item in listed
        if isinstance(item, dict)
    ]


def _clean(text: str) -> str:
    """Return untrusted text on one line without control characters, which could drive a terminal."""
    return "".join(char if char.isprintable() else " " for char in text).strip()


def example(*lines: str) -> str:
    """Return an epilog for ``--help`` that shows commands as they are typed."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def json_option(function: Function) -> Function:
    """Add ``--json``, passed as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(function)


def compose(options: Iterable[Callable[[Function], Function]], function: Function) -> Function:
    """Apply option decorators so that ``--help`` lists them in this order."""
    for option in reversed(tuple(options)):
        function = option(function)
    return function


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run asynchronous work to its end; Ctrl-C cancels it first."""
    return asyncio.run(work)


def to_json(value: Any) -> Any:
    """Return ``value`` as JSON types: dataclasses become objects, bytes hexadecimal, enumerations their value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(item) for item in value]
    if hasattr(value, "value") and not isinstance(value, (str, int)):
        return value.value
    return value


def emit(value: Any, *, as_json: bool, text: str) -> None:
    """Print ``value`` as JSON, or ``text`` for a person."""
    click.echo(json.dumps(to_json(value), ensure_ascii=False, indent=2) if as_json else text)


def emit_rows(
    values: Sequence[Any], *, as_json: bool, columns: Mapping[str, Callable[[Any], object]], empty: str
) -> None:
    """Print a list: as JSON, or as a table with ``columns`` (heading -> cell), or ``empty`` where there is nothing."""
    if as_json:
        click.echo(json.dumps(to_json(list(values)), ensure_ascii=False, indent=2))
    elif not values:
        click.echo(empty)
    else:
        rows = [[_clean(_cell(cell(value))) for cell in columns.values()] for value in values]
        click.echo(_table(list(columns), rows))


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return ",".join(str(item) for item in value) or "-"
    return str(value) or "-"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[index]) for row in (headings, *rows)) for index in range(len(headings))]

    def line(cells: Iterable[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()

    return "\n".join((line(heading.upper() for heading in headings), *map(line, rows)))


def time_text(unix_s: float) -> str:
    """Return a time as UTC text, `-` for 0 (never happened)."""
    if not unix_s:
        return "-"
    try:
        moment = dt.datetime.fromtimestamp(unix_s, dt.UTC)
    except (OverflowError, ValueError, OSError):
        return str(unix_s)  # a peer's number outside the calendar is shown as it came
    return moment.strftime("%Y-%m-%d %H:%M:%SZ")


def note(text: str) -> None:
    """Print a line for a person beside the output proper."""
    click.echo(text, file=sys.stderr)
