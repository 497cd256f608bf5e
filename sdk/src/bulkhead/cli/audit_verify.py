"""`bulkhead audit verify`: exports, tiles and proofs, offline."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from bulkhead.cli.console import emit, example, json_option
from bulkhead.cli.pins import Pins, read_note
from bulkhead.cli.record_text import record_text
from bulkhead.cli.settings import Settings, settings_of
from bulkhead.errors import BulkheadError, ConfigError, InvalidRequestError, ProofError

__all__ = ["verify", "verify_path"]

_PROOF: Final = b"c2sp.org/tlog-proof"


@click.command(
    "verify",
    epilog=example(
        "bulkhead audit verify log.jsonl",
        "bulkhead audit verify log.jsonl --log-key audit.example/t/4f2a/0+1b2c3d4e+AbCd… --json",
        "bulkhead audit verify log.jsonl --log-key T+… --log-key PLATFORM+… --witness witness.example/w1+…",
        "bulkhead audit verify rec.tlog-proof",
    ),
)
@click.argument("file", metavar="EXPORT", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--log-key",
    "log_keys",
    multiple=True,
    help="Pinned verifier key (vkey) of a log, the platform's where witnesses are asked for; repeatable. "
    "Default: the profile's.",
)
@click.option(
    "--witness", "witnesses", multiple=True, help="Verifier key of a witness that must have cosigned; repeatable."
)
@click.option("--quorum", type=click.IntRange(0), help="How many of the witnesses are enough; default: all.")
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A checkpoint (signed note) kept from earlier that must be part of the same history; repeatable.",
)
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    file: Path,
    *,
    log_keys: tuple[str, ...],
    witnesses: tuple[str, ...],
    quorum: int | None,
    checkpoints: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Verify EXPORT (an export, a directory of tiles, or a tlog-proof file) offline, trusting the pinned keys alone.

    No server is asked and no database is needed. Exit code 1 names the first record, or file, that does not hold.
    """
    vkeys = log_keys or _pinned(settings_of(ctx))
    verify_path(file, Pins.of(vkeys, witnesses, quorum), checkpoints, as_json=as_json)


def verify_path(file: Path, pins: Pins, checkpoints: Sequence[Path], *, as_json: bool) -> None:
    """Verify what ``file`` holds and print what was found.

    Raises:
        ProofError: what does not hold.
        InvalidRequestError: the file cannot be read.
    """
    kept = [read_note(path) for path in checkpoints]
    try:
        if file.is_dir():
            value, text = _tiles(file, pins, progress=not as_json)
        elif _begins_with(file, _PROOF):
            value, text = _proof(file, pins)
        else:
            value, text = _export(file, pins, kept, progress=not as_json)
    except OSError as error:
        raise InvalidRequestError(f"cannot read {error.filename or file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"cannot read {file}: it is not text") from error
    except BulkheadError as error:
        raise type(error)(f"{file}: {error.message}", details=error.details) from error
    emit({"verified": True, **value}, as_json=as_json, text=text)


def _export(file: Path, pins: Pins, seen: Sequence[str], *, progress: bool) -> tuple[dict[str, Any], str]:
    from bulkhead.transparency.export import verify_export

    with file.open("rb") as stream:
        verified = verify_export(
            stream,
            vkeys=pins.vkeys,
            seen=seen,
            progress=_Ticker(progress),
            witnesses=pins.witnesses,
            quorum=pins.quorum,
        )
    logs = [
        {
            "origin": log.origin,
            "tenant": log.tenant,
            "first": log.first,
            "records": log.records,
            "checkpoints": log.checkpoints,
            "root": log.checkpoint.root,
            "witnessed": log.witnessed,
        }
        for log in verified.logs
    ]
    lines = [
        f"{log.origin}: {log.records} records from {log.first}, {log.checkpoints} checkpoints,"
        f" root {log.checkpoint.root.hex()}{f', {log.witnessed} witnessed' if pins.quorum else ''}"
        for log in verified.logs
    ]
    done = f"verified: {verified.records} records, none altered, missing or added"
    return {"records": verified.records, "logs": logs}, "\n".join([*lines, done])


def _tiles(directory: Path, pins: Pins, *, progress: bool) -> tuple[dict[str, Any], str]:
    from bulkhead.errors import RecordError
    from bulkhead.transparency.cosignature import open_cosigned
    from bulkhead.transparency.leaf import parse_leaf
    from bulkhead.transparency.rounds import next_round
    from bulkhead.transparency.tiles import verify_tiles

    note = (directory / "checkpoint").read_text("utf-8")
    vkey, origin = _key_of(note, pins)
    open_cosigned(note, vkey=vkey, origin=origin, witnesses=pins.witnesses, quorum=pins.quorum)

    last_round = 0

    def check(index: int, entry: bytes) -> None:
        nonlocal last_round
        try:
            fields = parse_leaf(entry)
            last_round = next_round(fields, last_round) if fields.tenant is None else 0
        except RecordError as error:
            raise RecordError(f"{origin}: record {index}: {error.message}", details=error.details) from error

    ticker = _Ticker(progress)
    verified = verify_tiles(
        lambda path: (directory / path).read_bytes(),
        vkey=vkey,
        origin=origin,
        check_entry=check,
        progress=lambda done, _total: ticker(done),
    )
    size, root = verified.checkpoint.size, verified.checkpoint.root
    value = {"log": origin, "records": size, "files": verified.files, "root": root}
    return value, f"{origin}: {size} records in {verified.files} files, root {root.hex()}\nverified: none altered"


def _proof(file: Path, pins: Pins) -> tuple[dict[str, Any], str]:
    from bulkhead.transparency.tlog_proof import read_record_proof, verify_record_proof

    text = file.read_text("utf-8")
    proof = read_record_proof(text)
    vkey, origin = _key_of(proof.receipt.checkpoint, pins)
    platform = None if proof.round is None else proof.round.receipt.checkpoint.partition("\n")[0]
    platform_vkey = next((key for key in pins.vkeys if key.startswith(f"{platform}+")), None)
    proven = verify_record_proof(
        text, vkey=vkey, platform_vkey=platform_vkey, witnesses=pins.witnesses, quorum=pins.quorum
    )
    value = {
        "log": origin,
        "index": proven.leaf.index,
        "size": proven.leaf.size,
        "root": proven.leaf.root,
        "round": None if proven.round is None else proven.round.round,
        "witnesses": dict(proven.witnesses),
        "fields": proven.leaf.fields,
    }
    lines = [record_text(proven.leaf.index, proven.leaf.fields), f"verified   in {origin}, tree of {proven.leaf.size}"]
    if proven.round is not None:
        lines.append(f"round      {proven.round.round} of {platform}")
    lines += [f"cosigned   by {name}" for name, _ in proven.witnesses]
    return value, "\n".join(lines)


def _key_of(note: str, pins: Pins) -> tuple[str, str]:
    origin = note.partition("\n")[0]
    for vkey in pins.vkeys:
        if vkey.startswith(f"{origin}+"):
            return vkey, origin
    raise ProofError(f"no key is pinned for the log {origin!r}: give --log-key")


def _begins_with(file: Path, text: bytes) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(text)) == text


def _pinned(settings: Settings) -> tuple[str, ...]:
    profile = settings.profile()
    if profile.log_vkey is None:
        raise ConfigError("no log key is pinned: give --log-key, or log_vkey in the profile")
    return tuple(key for key in (profile.log_vkey, profile.platform_vkey) if key is not None)


class _Ticker:
    """Progress on standard error, where somebody looks at it."""

    def __init__(self, wanted: bool) -> None:  # noqa: FBT001 - the one thing it is about
        self._shown = wanted and sys.stderr.isatty()

    def __call__(self, count: int) -> None:
        """Show how far it is."""
        if self._shown:
            click.echo(f"\r{count} records", nl=False, err=True)
