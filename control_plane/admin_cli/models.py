"""`bulkhead-admin model`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bulkhead.cli.console import emit, emit_rows, example, json_option, note
from bulkhead.cli.models import SEALING_COMMANDS, is_sealed
from bulkhead.cli.settings import on_channel
from bulkhead.errors import InvalidRequestError

if TYPE_CHECKING:
    from bulkhead.client.transport import Channel
    from bulkhead.client.views import ModelView, SealedTerms

__all__ = ["model"]

MIB: Final = 1024 * 1024
CACHE_MIB: Final = 512  # key-value cache of a default worker
MAX_CONFIG_BYTES: Final = 4 * MIB


@click.group()
def model() -> None:
    """Models that workers can serve."""


for _command in SEALING_COMMANDS:
    model.add_command(_command)


@model.command(
    "add", epilog=example("bulkhead-admin model add models/smollm2-135m-instruct --name smollm2-135m-instruct")
)
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--name", help="Name that tenants use; without it the directory's name.")
@click.option("--path", help="Where agents find it below their model directory; without it the directory's name.")
@click.option("--context-length", type=click.IntRange(1), help="Tokens; without it from config.json.")
@click.option(
    "--memory-mib",
    type=click.IntRange(1),
    help="Device memory for weights and cache; without it twice the directory's size (fp32 of bf16) and 512.",
)
@click.option(
    "--custody",
    type=click.Choice(["platform", "tenant"]),
    default="platform",
    show_default=True,
    help="Of a sealed model: whose key broker releases its key.",
)
@click.option("--broker", help="Custody tenant: host:port of the tenant's key broker.")
@click.option(
    "--broker-certificate", type=click.Path(path_type=Path, dir_okay=False), help="Its certificate (PEM), pinned."
)
@click.option("--broker-name", help="A name in that certificate; without it the host of --broker.")
@json_option
@click.pass_context
def add(
    ctx: click.Context,
    directory: Path,
    *,
    name: str | None,
    path: str | None,
    context_length: int | None,
    memory_mib: int | None,
    custody: str,
    broker: str | None,
    broker_certificate: Path | None,
    broker_name: str | None,
    as_json: bool,
) -> None:
    """Register the model in DIRECTORY: a Hugging Face model under the digest of its files, or a sealed model.

    Nobody here can read a sealed model, so --context-length must be given for it.
    """
    from bulkhead.client.tenancy import TenancyAdmin

    found = _read_sealed(directory) if is_sealed(directory) else _read_plain(directory, quiet=as_json)
    sealed = None
    if found.document:
        sealed = _terms(found.document, custody, broker, broker_certificate, broker_name)
    elif broker or broker_certificate or broker_name:
        raise click.UsageError("a plain model has no key, so no key broker")
    size_mib = -(-found.size // MIB)
    default_name, place = found.name, path or directory.resolve().name
    context = context_length if context_length is not None else _context_length(directory)

    async def work(channel: "Channel") -> "ModelView":
        return await TenancyAdmin(channel).register_model(
            name=name or default_name,
            digest=found.digest,
            path=place,
            context_length=context,
            memory_mib=memory_mib or 2 * size_mib + CACHE_MIB,
            sealed=sealed,
        )

    made = on_channel(ctx, work)
    emit(
        made,
        as_json=as_json,
        text=f"registered {made.name}: digest {made.digest}, context {made.context_length}, {made.memory_mib} MiB"
        + (f", sealed, version {made.version}, key with the {made.custody}" if sealed else ""),
    )


@model.command("list", epilog=example("bulkhead-admin model list"))
@json_option
@click.pass_context
def list_models(ctx: click.Context, *, as_json: bool) -> None:
    """List registered models."""
    from bulkhead.client.tenancy import TenancyAdmin

    async def work(channel: "Channel") -> list["ModelView"]:
        return [item async for item in TenancyAdmin(channel).models()]

    emit_rows(
        on_channel(ctx, work),
        as_json=as_json,
        columns={
            "name": lambda item: item.name,
            "status": lambda item: item.status,
            "context": lambda item: item.context_length,
            "memory MiB": lambda item: item.memory_mib,
            "path": lambda item: item.path,
            "key": lambda item: item.custody,
            "version": lambda item: item.version or "",
            "digest": lambda item: item.digest,
        },
        empty="no models",
    )


@model.command("retire", epilog=example("bulkhead-admin model retire smollm2-135m-instruct"))
@click.argument("name")
@json_option
@click.pass_context
def retire(ctx: click.Context, name: str, *, as_json: bool) -> None:
    """Give the model NAME to no new session."""
    from bulkhead.client.tenancy import TenancyAdmin

    retired = on_channel(ctx, lambda channel: TenancyAdmin(channel).retire_model(name))
    emit(retired, as_json=as_json, text=f"retired {retired.name}")


@dataclass(frozen=True, slots=True)
class _Found:
    """What is registered: ``size`` in bytes, ``document`` the manifest of a sealed model, else empty."""

    name: str
    digest: bytes
    size: int
    document: bytes = b""


def _read_plain(directory: Path, *, quiet: bool) -> _Found:
    from bulkhead.attestation.model_digest import model_manifest

    if not quiet:
        note(f"reading every file of {directory} for its digest")
    manifest = model_manifest(directory)
    return _Found(directory.resolve().name, manifest.digest(), sum(file.size for file in manifest.files))


def _read_sealed(directory: Path) -> _Found:
    from bulkhead.models import SealedManifest, read_manifest
    from bulkhead.models.manifest import claimed_signer
    from bulkhead.models.sealed import check_layout

    document = read_manifest(directory)
    manifest = SealedManifest.open(document, signers=[claimed_signer(document)])
    check_layout(directory, manifest)
    size = sum(file.size for file in manifest.files)
    return _Found(manifest.model, manifest.model_digest, size, document)


def _terms(
    document: bytes, custody: str, broker: str | None, certificate: Path | None, name: str | None
) -> "SealedTerms":
    from bulkhead.client.views import SealedTerms

    if (custody == "tenant") != bool(broker and certificate):
        raise click.UsageError("--broker and --broker-certificate go with --custody tenant, and only with it")
    if broker is None or certificate is None:
        return SealedTerms(custody=custody, manifest=document)
    try:
        pem = certificate.read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"{certificate}: cannot be read: {error.strerror}") from error
    host = broker.rpartition(":")[0].strip("[]")
    return SealedTerms(
        custody=custody,
        manifest=document,
        broker_address=broker,
        broker_name=name or host,
        broker_certificate=pem,
    )


def _context_length(directory: Path) -> int:
    path = directory / "config.json"
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise InvalidRequestError(f"{path}: too large for a model's configuration")
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"{path}: cannot be read as JSON; give --context-length") from error
    length = config.get("max_position_embeddings") if isinstance(config, dict) else None
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise InvalidRequestError(f"{path}: no max_position_embeddings; give --context-length")
    return length
