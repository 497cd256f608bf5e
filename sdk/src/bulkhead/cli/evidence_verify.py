"""`bulkhead evidence verify`."""

from pathlib import Path
from typing import Any, Final

import click

from bulkhead.cli.collateral_options import cache_of, collateral_options, policy_of
from bulkhead.cli.console import EXIT_REFUSED, emit, example, json_option, note, one_line, to_json
from bulkhead.cli.evidence_files import (
    TECHNOLOGIES,
    EvidenceFiles,
    detect_technology,
    parse_time,
    technology_module,
)
from bulkhead.errors import BulkheadError, ConfigError, EvidencePolicyError, InvalidRequestError

__all__ = ["claims", "verify"]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_HELP: Final = """Verify hardware evidence in files against a trust policy, on this machine and offline.

Ends with 0 and the claims that are proven, with 1, a code and the number of the obligation that is not met, or with 2
if an option or the policy is wrong.

FILE... is the evidence and, in any order, what belongs to it; content says which is which, and every file may be
binary, hexadecimal, base64 or PEM. The options name the kind of a file where content shall not decide.

\b
snp     report; the VCEK's or VLEK's certificate (--certs); AMD's revocation list (--crl).
        ASK, ASVK and ARK are built in. A version 2 report needs --product milan, genoa, siena, bergamo or turin.
tdx     quote; collateral (--collateral): one JSON bundle, or Intel's answers with TCB info and QE identity,
        their certificate chain (--certs) and the revocation lists of PCK CA and root (--crl). Intel's root is built in.
nvidia  report; the device's certificates (--certs); manifests of driver and VBIOS (--rim); OCSP answers (--ocsp).
        NVIDIA's two roots are built in.

What is missing is looked for in the cache (--cache), then fetched if the policy's [collateral] fetch or --fetch allows
it; nothing is fetched otherwise, and the error names the missing piece and where it comes from.

Without --policy the strict defaults hold. They name no measurement, so that they refuse every guest, and say why a
guest would be refused before that: a policy that names a known good one is written by

\b
  bulkhead evidence policy init --from FILE > trust.toml

What a file claims, its nonce among it, is shown by bulkhead evidence claims FILE.
"""


@click.command(
    "verify",
    help=_HELP,
    epilog=example(
        "bulkhead evidence verify --type snp report.bin vcek.der --policy trust.toml --nonce 0a1b…",
        "bulkhead evidence verify --type snp report.hex vcek.pem --product milan --nonce 00 --at 2026-03-01 --json",
        "bulkhead evidence verify --type tdx quote.dat collateral.json --policy trust.toml --nonce 0a1b…",
        "bulkhead evidence verify --type nvidia report.txt chain.pem driver.xml vbios.xml --ocsp leaf.der --nonce 4c…",
        "bulkhead evidence verify --type tdx quote.dat --fetch intel-tcb-info --fetch intel-pck-crl … --nonce 0a1b…",
    ),
)
@click.option(
    "--type", "technology", type=click.Choice(tuple(TECHNOLOGIES)), help="Technology; without it content decides."
)
@click.argument("evidence_files", metavar="FILE...", nargs=-1, required=True, type=_FILE)
@click.option("--certs", multiple=True, type=_FILE, help="Certificates; repeatable.")
@click.option("--collateral", multiple=True, type=_FILE, help="Intel's signed statements (tdx); repeatable.")
@click.option("--crl", multiple=True, type=_FILE, help="Revocation list (snp, tdx); repeatable.")
@click.option("--rim", multiple=True, type=_FILE, help="Reference manifest (nvidia); repeatable.")
@click.option("--ocsp", multiple=True, type=_FILE, help="OCSP answer (nvidia); repeatable.")
@click.option("--product", default="", help="Product, for evidence that does not name it.")
@click.option("--policy", type=_FILE, help="Trust policy (TOML); without it the strict defaults.")
@click.option(
    "--nonce",
    required=True,
    help="What the evidence must answer, hexadecimal: REPORT_DATA of snp and tdx, filled with zeros to 64 bytes; 32 "
    "bytes of nvidia.",
)
@click.option("--at", help="Time of verification: 2026-03-01, 2026-03-01T12:00:00Z or @seconds; without it now.")
@collateral_options
@json_option
@click.pass_context
def verify(
    ctx: click.Context, /, *, technology: str | None, policy: Path | None, nonce: str, at: str | None, as_json: bool,
    cache: Path | None, fetch: tuple[str, ...], **options: Any,
) -> None:  # fmt: skip
    """Verify evidence from files."""
    trust = policy_of(policy, fetch)
    chosen = technology or detect_technology(options["evidence_files"])
    now_s = parse_time(at)
    files = EvidenceFiles(
        evidence=options["evidence_files"],
        certificates=options["certs"],
        collateral=options["collateral"],
        crls=options["crl"],
        rims=options["rim"],
        ocsp=options["ocsp"],
        product=options["product"],
        policy=trust,
        nonce=_nonce(nonce),
        now_s=now_s,
        cache=cache_of(cache, trust.collateral),
    )
    module = technology_module(chosen)
    try:
        _check_accepted(chosen, trust.technologies)
        facts = {"verified": True, "type": chosen, **module.verify_files(files)}
    except BulkheadError as error:
        if isinstance(error, ConfigError):
            raise
        _tell(error, chosen, module.OBLIGATIONS, as_json=as_json)
        if not as_json and policy is None and isinstance(error, EvidencePolicyError):
            named = " ".join(f"--from {path}" for path in options["evidence_files"])
            note(f"Without --policy the strict defaults hold: bulkhead evidence policy init {named} writes one.")
        ctx.exit(EXIT_REFUSED)
    emit(facts, as_json=as_json, text=_lines(facts))


@click.command(
    "claims",
    epilog=example(
        "bulkhead evidence claims report.bin", "bulkhead evidence claims quote.dat --json | jq .report_data"
    ),
)
@click.option("--type", "technology", type=click.Choice(tuple(TECHNOLOGIES)), help="Without it content decides.")
@click.argument("file", type=_FILE)
@json_option
def claims(*, technology: str | None, file: Path, as_json: bool) -> None:
    """Show what a piece of evidence says. Nothing of it is verified, and nothing proves that it is true."""
    from bulkhead.cli.evidence_files import read_bounded

    chosen = technology or detect_technology((file,))
    facts = {"verified": False, "type": chosen, **technology_module(chosen).read_claims(read_bounded(file))}
    emit(facts, as_json=as_json, text=_lines(facts))


def _lines(facts: Any) -> str:
    return "\n".join(f"{name:22} {_cell(value)}" for name, value in to_json(facts).items())


def _check_accepted(technology: str, accepted: frozenset[Any]) -> None:
    if technology not in {item.value for item in accepted}:
        raise EvidencePolicyError(f"the policy's technologies do not have {technology}")


def _tell(error: BulkheadError, technology: str, obligations: Any, *, as_json: bool) -> None:
    from bulkhead.attestation.obligations import obligation_of  # cryptography: not for --help

    number = obligation_of(error)
    text = obligations.get(number) if number else None
    failure = {
        "verified": False,
        "type": technology,
        "code": error.code,
        "message": error.message,
        "obligation": number,
        "obligation_text": text,
        "details": {name: value for name, value in error.details.items() if name != "obligation"},
    }
    if as_json:
        emit(failure, as_json=True, text="")
        return
    click.echo(one_line(error), err=True)
    if text:
        note(f"{number} demands: {text.rstrip('.')}.")
    if "collateral" in error.details:
        note(f"To fetch it in this run: --fetch {error.details['collateral']}.")


def _nonce(text: str) -> bytes:
    try:
        return bytes.fromhex(text.removeprefix("0x"))
    except ValueError as error:
        raise InvalidRequestError("--nonce must be hexadecimal") from error


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)
