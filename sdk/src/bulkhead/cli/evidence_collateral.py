"""`bulkhead evidence collateral`."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bulkhead.cli.collateral_options import FETCHABLE, cache_of, collateral_options, policy_of
from bulkhead.cli.console import EXIT_REFUSED, emit, emit_rows, example, json_option, note, one_line, time_text
from bulkhead.errors import BulkheadError, InvalidRequestError

if TYPE_CHECKING:
    from bulkhead.attestation.collateral.cache import CollateralCache
    from bulkhead.attestation.collateral.kinds import CollateralEntry, CollateralItem

__all__ = ["collateral"]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_DIRECTORY = click.Path(file_okay=False, path_type=Path)


@click.group()
def collateral() -> None:
    """What vendors publish for verification: kept in a cache, fetched only where you allow it."""


@collateral.command(
    "show",
    epilog=example(
        "bulkhead evidence collateral show",
        "bulkhead evidence collateral show intel-tcb-info 00806f050000 --out tcb.json",
    ),
)
@click.argument("kind", type=click.Choice(FETCHABLE), required=False)
@click.argument("name", required=False)
@click.option("--cache", type=_DIRECTORY, help="Directory [default: ~/.cache/bulkhead/collateral].")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write one piece, as it came, to a file.")
@json_option
def show(*, kind: str | None, name: str | None, cache: Path | None, out: Path | None, as_json: bool) -> None:
    """List the pieces at hand with their age and end of use; with KIND and NAME one of them."""
    from bulkhead.attestation.collateral.store import CollateralStore, default_directory

    store = CollateralStore(cache if cache is not None else default_directory())
    entries = [
        entry for entry in store.entries() if (not kind or entry.kind == kind) and (not name or entry.name == name)
    ]
    if out is not None:
        if len(entries) != 1:
            raise InvalidRequestError(f"--out takes one piece: {len(entries)} are meant")
        out.write_bytes(entries[0].data)
    now_s = int(time.time())
    emit_rows(
        [_facts(entry, now_s) for entry in entries],
        as_json=as_json,
        columns={
            "kind": lambda row: row["kind"],
            "name": lambda row: _short(row["name"]),
            "fetched": lambda row: time_text(row["fetched_s"]),
            "of use until": lambda row: time_text(row["end_s"] or 0),
            "bytes": lambda row: row["bytes"],
        },
        empty=f"no collateral in {store.directory}",
    )


@collateral.command(
    "fetch",
    epilog=example(
        "bulkhead evidence collateral fetch report.bin --fetch amd-vcek --fetch amd-crl",
        "bulkhead evidence collateral fetch quote.dat --policy trust.toml",
        "bulkhead evidence collateral fetch gpu-report.bin gpu-certificates.pem --fetch nvidia-rim --fetch nvidia-ocsp",
    ),
)
@click.argument("evidence_files", metavar="FILE...", nargs=-1, required=True, type=_FILE)
@click.option("--policy", type=_FILE, help="Trust policy, whose [collateral] fetch says what may be fetched.")
@click.option("--product", default="", help="Product, for a report that does not name it.")
@collateral_options
@click.option("--refresh", is_flag=True, help="Fetch also what is at hand.")
@json_option
@click.pass_context
def fetch(
    ctx: click.Context, /, *, evidence_files: tuple[Path, ...], policy: Path | None, product: str,
    cache: Path | None, fetch: tuple[str, ...], refresh: bool, as_json: bool,
) -> None:  # fmt: skip
    """Have at hand what verifying FILE... will need: fetches what is missing and allowed, and tells what is not.

    The evidence is read, not verified. Nothing is asked that neither the policy nor --fetch allows.

    Ends with 1 if a piece is missing still.
    """
    from bulkhead.cli.collateral_needed import needed_items

    trust = policy_of(policy, fetch)
    found = cache_of(cache, trust.collateral)
    outcomes: list[dict[str, Any]] = []
    complete = True
    for item in needed_items(evidence_files, product=product, cache=found, random_bytes=os.urandom):
        outcome, error = _outcome(item, found, refresh=refresh)
        complete = complete and error is None
        facts = {"kind": item.kind.value, "name": item.name, "source": item.url, "outcome": outcome}
        outcomes.append({**facts, "error": {"code": error.code, "message": error.message} if error else None})
        if not as_json:
            note(f"{item.kind.value} {_short(item.name)}: {outcome if error is None else one_line(error)}")
    if as_json:
        emit(outcomes, as_json=True, text="")
    if not complete:
        ctx.exit(EXIT_REFUSED)


def _outcome(item: "CollateralItem", cache: "CollateralCache", *, refresh: bool) -> tuple[str, BulkheadError | None]:
    at_hand = cache.has(item) and not (refresh and cache.allows(item))
    try:
        cache.find(item, fresh=refresh)
    except BulkheadError as error:
        return "missing", error
    return "at hand" if at_hand else "fetched", None


def _facts(entry: "CollateralEntry", now_s: int) -> dict[str, Any]:
    from bulkhead.attestation.collateral.dates import end_of_use

    try:
        end_s = end_of_use(entry)
    except BulkheadError:
        end_s = 0
    return {
        "kind": entry.kind.value,
        "name": entry.name,
        "source": entry.source,
        "fetched_s": entry.fetched_s,
        "age_s": now_s - entry.fetched_s,
        "end_s": end_s,
        "bytes": len(entry.data),
    }


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:24]}…{name[-12:]}"
