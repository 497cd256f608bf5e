"""`bulkhead isolation-test`."""

import logging
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from bulkhead.cli.asking import Wanted, opened, session_options
from bulkhead.cli.console import emit, example, json_option, note, run
from bulkhead.cli.settings import settings_of
from bulkhead.errors import IsolationError

if TYPE_CHECKING:
    from bulkhead.client.config import Profile
    from bulkhead.client.isolation import IsolationReport

__all__ = ["isolation_test"]

MS_PER_S = 1_000
SHOWN_EVERY = 10  # samples between two lines of progress


@click.command(
    name="isolation-test",
    epilog=example("bulkhead isolation-test", "bulkhead isolation-test --samples 200 --tier gpu --json"),
)
@session_options
@click.option("--samples", type=click.IntRange(10, 2_000), default=50, show_default=True, help="Of each kind.")
@click.option("--words", type=click.IntRange(20, 20_000), default=150, show_default=True, help="Of a prompt.")
@json_option
@click.pass_context
def isolation_test(ctx: click.Context, /, *, samples: int, words: int, as_json: bool, **options: Any) -> None:
    """Measure whether one session can tell by time what another has asked.

    Two sessions on one partition are opened. Prompts that the other session has just asked must take as long as
    prompts that nobody ever asked; prompts asked again in the same session show that the measurement would tell.
    Exit code 1 if a difference is seen (p at most 0.01, which happens by chance in one run of a hundred: run it again),
    or if the measurement could not tell.
    """
    logging.getLogger("bulkhead.client").setLevel(logging.ERROR)  # the banner says what the log would
    report = run(_measure(settings_of(ctx).profile(), Wanted(**options), samples, words, quiet=as_json))
    emit(
        {**asdict(report), "can_tell": report.can_tell, "isolated": report.isolated},
        as_json=as_json,
        text=_text(report),
    )
    if not report.can_tell:
        raise IsolationError("the measurement cannot tell a kept prompt from a new one: try more samples or words")
    if not report.isolated:
        raise IsolationError("prompts of another session are told apart from prompts that nobody asked")


async def _measure(profile: "Profile", wanted: Wanted, samples: int, words: int, *, quiet: bool) -> "IsolationReport":
    from bulkhead.client.isolation import measure_isolation

    def tell(done: int, of: int) -> None:
        if not quiet and (done % SHOWN_EVERY == 0 or done == of):
            sys.stderr.write(f"\r  {done} of {of} samples" + ("\n" if done == of else ""))
            sys.stderr.flush()

    async with opened(profile, wanted, quiet=quiet) as mine, opened(profile, wanted, quiet=True) as other:
        if not quiet:
            note(f"measuring {samples} prompts of each of three kinds, {words} words each")
        return await measure_isolation(mine, other, samples=samples, words=words, progress=tell)


def _text(report: "IsolationReport") -> str:
    rows = (
        ("asked by nobody before", report.never_asked_s, ""),
        ("asked by another session", report.asked_elsewhere_s, f"p = {report.p_elsewhere:.3f}"),
        ("asked by this session", report.asked_here_s, f"p = {report.p_here:.2g}"),
    )
    worker = "SIMULATED rack, real engine" if report.simulated else "verified worker"
    lines = [f"{report.samples} prompts of {report.prompt_tokens} tokens each, {worker}; median time to first token:"]
    lines += [f"  {name:<26} {seconds * MS_PER_S:8.1f} ms  {chance}" for name, seconds, chance in rows]
    seen = "no difference" if report.isolated else "A DIFFERENCE"
    lines.append(f"{seen} between another session's prompts and new ones")
    return "\n".join(lines)
