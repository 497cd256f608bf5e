"""`bulkhead audit monitor`: follows the tenant's own log and raises an alarm at what must not be."""

import asyncio
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from bulkhead.cli.console import EXIT_REFUSED, compose, example, json_option, note, one_line, run, to_json
from bulkhead.cli.settings import settings_of
from bulkhead.errors import BulkheadError, ConfigError

if TYPE_CHECKING:
    from bulkhead.client.config import Profile
    from bulkhead.client.monitoring import Check, MonitorOptions

__all__ = ["monitor"]

_PATH: Final = click.Path(path_type=Path)
_OPTIONS: Final = (
    click.option(
        "--state", type=click.Path(path_type=Path, dir_okay=False), required=True,
        help="File in which the monitor remembers what it has verified; made at first.",
    ),
    click.option("--once/--follow", default=True, help="Check once (default), or again and again until interrupted."),
    click.option("--interval", type=click.IntRange(1), default=60, show_default=True, help="Seconds between checks."),
    click.option("--log-key", help="Verifier key (vkey) of the log; without it the profile's log_vkey."),
    click.option("--platform-key", help="Verifier key of the platform's log; without it the profile's platform_vkey."),
    click.option("--witness", "witnesses", multiple=True, help="Verifier key of a witness; default: the profile's."),
    click.option("--quorum", type=click.IntRange(0), help="How many witnesses must cosign; default: the profile's."),
    click.option(
        "--journal", "journals", multiple=True, type=_PATH,
        help="Request journal of a client; repeatable. Default: the profile's request_journal.",
    ),
    click.option(
        "--kept", multiple=True, type=click.Path(path_type=Path, exists=True),
        help="Saved receipt or tlog-proof file, or a directory of them: the log must hold them. Repeatable.",
    ),
    click.option(
        "--gossip", type=click.Path(path_type=Path, file_okay=False),
        help="Directory shared with other monitors of the log: each leaves its checkpoint, and compares the others'.",
    ),
    click.option(
        "--own-witness", "witness_url",
        help="URL of a witness of one's own (`bulkhead-audit witness serve`) that is asked to cosign the tenant's log.",
    ),
    click.option("--own-witness-key", "witness_keys", multiple=True, help="Its verifier key; repeatable."),
    click.option(
        "--grace", type=click.IntRange(0), default=60, show_default=True,
        help="Seconds that a journal or a receipt may take to get here, or into the log.",
    ),
    click.option(
        "--from-round", "first_round", type=click.IntRange(1),
        help="Round to begin with, for a new state file; default: the newest. Every later one is checked.",
    ),
    click.option("--acknowledge", is_flag=True, help="Forget earlier alarms first; what still holds is raised again."),
)  # fmt: skip


def _options(function: Any) -> Any:
    return compose(_OPTIONS, function)


@click.command(
    "monitor",
    epilog=example(
        "bulkhead --profile officer audit monitor --state acme.monitor --journal app.journal --kept receipts/",
        "bulkhead --profile officer audit monitor --state acme.monitor --gossip /mnt/shared --follow --json",
    ),
)
@_options
@json_option
@click.pass_context
def monitor(
    ctx: click.Context, /, *, once: bool, interval: int, acknowledge: bool, as_json: bool, **chosen: Any
) -> None:
    """Follow the own log: every record, its history, its place in the platform's rounds, and what clients know.

    Alarms: fork, rewind, gap, stranger (a record whose request no journal holds), invalid. They are kept in the state
    file until acknowledged. Exit codes: 0 nothing found, 1 an alarm (or no server), 2 wrong usage or configuration.
    """
    profile = settings_of(ctx).profile()
    found = run(
        _watch(
            profile, _chosen(profile, **chosen), interval if not once else 0, acknowledge=acknowledge, as_json=as_json
        )
    )
    if found:
        ctx.exit(EXIT_REFUSED)


def _chosen(
    profile: "Profile",
    *,
    state: Path,
    log_key: str | None,
    platform_key: str | None,
    witnesses: tuple[str, ...],
    quorum: int | None,
    journals: tuple[Path, ...],
    kept: tuple[Path, ...],
    gossip: Path | None,
    witness_url: str | None,
    witness_keys: tuple[str, ...],
    grace: int,
    first_round: int | None,
) -> "MonitorOptions":
    from bulkhead.client.monitoring import MonitorOptions
    from bulkhead.client.own_witness import OwnWitness
    from bulkhead.protocol.saved import PublicPins
    from bulkhead.transparency.cosignature import Witness

    vkey = log_key or profile.log_vkey
    if vkey is None:
        raise ConfigError("no log key is pinned: give --log-key, or log_vkey in the profile")
    keys = tuple(map(Witness.from_vkey, witnesses or profile.witnesses))
    needed = profile.witness_quorum if quorum is None else quorum
    platform = platform_key or profile.platform_vkey
    if needed > len({key.name for key in keys}) or (needed and platform is None):
        raise ConfigError("a quorum needs the platform's key and as many witnesses")
    own = () if profile.request_journal is None else (profile.request_journal,)
    return MonitorOptions(
        vkey=vkey,
        state=state,
        pins=PublicPins(platform_vkey=platform, witnesses=keys, quorum=needed),
        journals=journals or own,
        kept=kept,
        gossip=gossip,
        own_witness=None if witness_url is None else OwnWitness.of(witness_url, witness_keys),
        grace_s=grace,
        first_round=first_round,
    )


async def _watch(
    profile: "Profile",
    options: "MonitorOptions",
    interval_s: int,
    *,
    acknowledge: bool,
    as_json: bool,
) -> bool:
    """Check once, or every ``interval_s``; return whether there are alarms."""
    from bulkhead.client.audit import AuditLog
    from bulkhead.client.connect import control_plane_channel
    from bulkhead.client.monitoring import Monitor

    async with control_plane_channel(profile) as channel:
        watcher = Monitor(AuditLog(channel), options, now_us=lambda: time.time_ns() // 1_000, progress=_progress)
        if acknowledge:
            watcher.acknowledge()
        while True:
            try:
                check = await watcher.check()
            except ConfigError:
                raise
            except BulkheadError as error:  # a server that is away is no alarm; whoever follows waits for it
                if not interval_s:
                    raise
                note(one_line(error))
            else:
                _tell(check, as_json=as_json)
                if not interval_s:
                    return bool(check.alarms)
            await asyncio.sleep(interval_s)


def _progress(reached: int, newest: int) -> None:
    if reached < newest:  # what takes one page only needs no word
        note(f"round {reached} of {newest}")


def _tell(check: "Check", *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(to_json(check), ensure_ascii=False))
        return
    round_text = f", rounds {check.first_round} to {check.round} ({check.rounds} new)" if check.round else ""
    witnesses = f" cosigned by {', '.join(check.witnesses)}" if check.witnesses else ""
    click.echo(f"{check.size} records verified ({check.new} new){round_text}{witnesses}, {len(check.alarms)} alarms")
    for alarm in check.alarms:
        click.echo(f"ALARM {alarm.kind}: {alarm.message}", err=True)
    for text in check.notes:
        note(text)
