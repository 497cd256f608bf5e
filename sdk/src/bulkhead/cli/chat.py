"""`bulkhead chat`."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bulkhead.cli.asking import Wanted, opened, session_options
from bulkhead.cli.console import emit, example, json_option, note, run
from bulkhead.cli.settings import settings_of
from bulkhead.errors import BulkheadError, InvalidRequestError
from bulkhead.protocol.generate import MAX_PRIORITY

if TYPE_CHECKING:
    from bulkhead.client.config import Profile
    from bulkhead.client.generation import Generation
    from bulkhead.client.session import AsyncSession
    from bulkhead.protocol.payloads import Message

__all__ = ["chat"]

MAX_STDIN_CHARS = 2 * 1024 * 1024  # the protocol's largest request


@click.command(
    epilog=example(
        'bulkhead chat "What is the capital of France?"',
        "bulkhead chat --tier gpu --purpose treatment --data-class phi < question.txt",
        "bulkhead chat --temperature 0.7 --seed 7 --save-receipt receipt.json --json Hello",
        "bulkhead chat --priority -10 --timeout 30 --save-profile step.json.gz Hello",
    )
)
@click.argument("prompt", required=False)
@session_options
@click.option("--system", help="System prompt.")
@click.option("--max-tokens", type=click.IntRange(1), help="Most tokens of an answer.")
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--seed", type=click.IntRange(0), help="Makes sampling repeatable.")
@click.option(
    "--priority",
    type=click.IntRange(-MAX_PRIORITY, MAX_PRIORITY),
    default=0,
    show_default=True,
    help="Lower numbers begin first among the tenant's own requests that wait.",
)
@click.option("--timeout", "timeout_s", type=float, help="Seconds after which the worker gives an answer up.")
@click.option("--save-receipt", type=click.Path(path_type=Path, dir_okay=False), help="File for the (last) receipt.")
@click.option(
    "--save-profile",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File for a trace of one step of the (last) answer, for Perfetto or chrome://tracing.",
)
@json_option
@click.pass_context
def chat(ctx: click.Context, /, *, prompt: str | None, as_json: bool, **options: Any) -> None:
    """Ask PROMPT and stream the answer; without PROMPT read it from standard input, or chat line by line.

    The worker is verified before the prompt leaves this process, and an answer that does not arrive whole, with its
    receipt, is an error.
    """
    logging.getLogger("bulkhead.client").setLevel(logging.ERROR)  # the banner says what the log would
    talk = _Chat(as_json=as_json, **options)
    profile = settings_of(ctx).profile()
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read(MAX_STDIN_CHARS + 1).strip()
        if not prompt:
            raise click.UsageError("no prompt: give one, or write it to standard input")
    if prompt is None and as_json:
        raise click.UsageError("--json needs a prompt")
    run(talk.once(profile, prompt) if prompt is not None else talk.lines(profile))


class _Chat:
    """One conversation on the command line."""

    def __init__(
        self,
        *,
        as_json: bool,
        model: str | None,
        tier: str | None,
        region: str | None,
        purpose: str | None,
        data_classes: tuple[str, ...],
        system: str | None,
        max_tokens: int | None,
        temperature: float,
        seed: int | None,
        priority: int,
        timeout_s: float | None,
        save_receipt: Path | None,
        save_profile: Path | None,
    ) -> None:
        self._wanted = Wanted(model=model, tier=tier, region=region, purpose=purpose, data_classes=data_classes)
        self._as_json = as_json
        self._system = system
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._seed = seed
        self._priority = priority
        self._timeout_s = timeout_s
        self._save_receipt = save_receipt
        self._save_profile = save_profile

    async def once(self, profile: "Profile", prompt: str) -> None:
        """Ask once."""
        async with opened(profile, self._wanted, quiet=self._as_json) as session:
            generation, text = await self._ask(session, [*self._beginning(), _turn("user", prompt)])
            if self._as_json:
                receipt = generation.receipt
                answer = {
                    "text": text,
                    "finish_reason": generation.finish_reason,
                    "usage": generation.usage,
                    "request_id": generation.request_id,
                    "session_id": session.session_id,
                    "model": session.model,
                    "tier": session.tier,
                    "simulated": session.simulated,
                    "receipt": {"status": receipt.status, "ts_us": receipt.ts_us, "verified": True},
                }
                emit(answer, as_json=True, text="")

    async def lines(self, profile: "Profile") -> None:
        """Ask line by line until the input ends."""
        history = self._beginning()
        async with opened(profile, self._wanted, quiet=False) as session:
            note("An empty line or Ctrl-D ends the conversation.")
            while prompt := _line():
                history.append(_turn("user", prompt))
                try:
                    _, text = await self._ask(session, history)
                except InvalidRequestError as error:  # the conversation has outgrown the context, for one
                    note(f"error {error.code}: {error.message}")
                    history.pop()
                else:
                    history.append(_turn("assistant", text))

    async def _ask(self, session: "AsyncSession", messages: list["Message"]) -> tuple["Generation", str]:
        generation = session.generate(
            messages,
            max_tokens=self._max_tokens,
            temperature=self._temperature,
            seed=self._seed,
            priority=self._priority,
            timeout_s=self._timeout_s,
            profile=self._save_profile is not None,
        )
        parts: list[str] = []
        try:
            async with generation:
                async for delta in generation:
                    parts.append(delta.text)
                    if not self._as_json:
                        click.echo(_shown(delta.text), nl=False)
        except BulkheadError:
            if parts and not self._as_json:
                click.echo()
                note("the answer above is NOT whole")
            raise
        if not self._as_json:
            click.echo()
        self._save(generation)
        return generation, "".join(parts)

    def _save(self, generation: "Generation") -> None:
        from bulkhead.client.saved import saved_receipt, write_receipt

        if self._save_receipt is not None:
            write_receipt(
                self._save_receipt, saved_receipt(generation.link, generation.signed_receipt, answer=generation.usage)
            )
            self._tell(f"receipt saved to {self._save_receipt}")
        if self._save_profile is not None:
            if not generation.trace:
                raise InvalidRequestError(
                    "the answer ended before a step could be traced: ask for more tokens, or later"
                )
            try:
                self._save_profile.write_bytes(generation.trace)
            except OSError as error:
                raise InvalidRequestError(f"cannot write {self._save_profile}: {error.strerror}") from error
            self._tell(f"trace of one step saved to {self._save_profile}")

    def _tell(self, line: str) -> None:
        if not self._as_json:
            note(line)

    def _beginning(self) -> list["Message"]:
        return [_turn("system", self._system)] if self._system else []


def _turn(role: str, content: str) -> "Message":
    from bulkhead.protocol.payloads import Message

    return Message(role=role, content=content)


def _line() -> str:
    """Return the next line of the person, empty at the end of input."""
    try:
        return str(click.prompt("you", prompt_suffix="> ", default="", show_default=False, err=True)).strip()
    except click.Abort:
        return ""


def _shown(text: str) -> str:
    """Return text for standard output: a terminal gets no control characters, which a model might be made to write."""
    if not sys.stdout.isatty():
        return text
    return "".join(char for char in text if char.isprintable() or char in "\n\t")
