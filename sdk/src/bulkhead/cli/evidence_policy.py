"""`bulkhead evidence policy`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bulkhead.cli.console import EXIT_REFUSED, emit, example, json_option, note
from bulkhead.errors import BulkheadError, ConfigError

if TYPE_CHECKING:
    from bulkhead.attestation.policy_from import PolicyException

__all__ = ["policy"]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def policy() -> None:
    """Trust policies: which evidence a tenant accepts, in a TOML file of its own."""


@policy.command(
    "check",
    epilog=example(
        "bulkhead evidence policy check trust.toml",
        "bulkhead evidence policy check trust.toml --json | jq -e '.weaker == []'",
    ),
)
@click.argument("file", type=_FILE)
@json_option
def check(*, file: Path, as_json: bool) -> None:
    """Read a trust policy and say in words what it accepts, what it refuses, and where it is weaker than the defaults.

    Ends with 2 if the file is no policy: an unknown key is an error, as a misspelt rule must not be no rule.
    """
    from bulkhead.attestation.policy import load_trust_policy
    from bulkhead.cli.policy_words import explain_policy

    words = explain_policy(load_trust_policy(file))
    facts = {"valid": True, "accepts": words.accepts, "refuses": words.refuses, "weaker": words.weaker}
    sections = (
        ("Accepts", words.accepts),
        ("Refuses", words.refuses),
        ("Weaker than the strict defaults: accepts too", words.weaker),
    )
    text = "\n\n".join(
        "\n".join((f"{title}:", *(f"  - {sentence}" for sentence in sentences)))
        for title, sentences in sections
        if sentences
    )
    emit(facts, as_json=as_json, text=text)


@policy.command(
    "init",
    epilog=example(
        "bulkhead evidence policy init --from report.bin --from gpu-report.txt > trust.toml",
        "bulkhead evidence policy init --from quote.dat --pin-machine --out trust.toml",
        "bulkhead evidence policy init > strict.toml",
    ),
)
@click.option(
    "--from",
    "sources",
    multiple=True,
    type=_FILE,
    help="Evidence of a known good worker (report, quote, GPU report, a worker's whole evidence), or certificates that "
    "belong to it; repeatable.",
)
@click.option("--product", default="", help="Product of an SEV-SNP report of version 2, which does not name it.")
@click.option("--pin-machine", is_flag=True, help="Accept these machines alone: pins CHIP_ID and PPID (recommended).")
@click.option(
    "--with-exceptions",
    is_flag=True,
    help="Weaken the strict defaults as far as this evidence needs it; without it they stay, and each is told.",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write here, to a new file.")
@json_option
@click.pass_context
def init(
    ctx: click.Context, /, *, sources: tuple[Path, ...], product: str, pin_machine: bool, with_exceptions: bool,
    out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Write a first trust policy from the evidence of a known good worker, every key with its reason.

    The evidence is read, not verified: you say that the worker is good. Verify it with the policy afterwards, with
    collateral of the vendor: bulkhead evidence verify. Without --from the strict defaults are written.

    Ends with 1 if no policy can accept the evidence, such as that of a guest under debug.
    """
    from bulkhead.attestation.policy_writing import write_trust_policy
    from bulkhead.cli.policy_sources import draft_policy

    try:
        draft, remarks = draft_policy(sources, product=product, pin_machine=pin_machine)
    except BulkheadError as error:
        if not as_json or isinstance(error, ConfigError):
            raise
        emit({"written": False, "code": error.code, "message": error.message}, as_json=True, text="")
        ctx.exit(EXIT_REFUSED)
    written = draft.with_exceptions() if with_exceptions else draft.policy
    text = write_trust_policy(written, remarks=(*remarks, *map(_remark, draft.exceptions if with_exceptions else ())))
    if out is not None:
        _write_new(out, text)
    if as_json:
        exceptions = [{"key": item.key, "cost": item.cost} for item in draft.exceptions]
        facts: dict[str, Any] = {"written": True, "file": str(out) if out else None, "policy": text}
        emit({**facts, "exceptions": exceptions, "exceptions_made": with_exceptions}, as_json=True, text="")
        return
    if out is None:
        click.echo(text, nl=False)
    for exception in draft.exceptions:
        note(_told(exception, made=with_exceptions))


def _told(exception: "PolicyException", *, made: bool) -> str:
    outcome = "accepted in this policy" if made else "this evidence is refused; --with-exceptions accepts it"
    return f"{exception.key}: {exception.cost}: {outcome}"


def _remark(exception: "PolicyException") -> str:
    return f"EXCEPTION {exception.key}: {exception.cost}."


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
