"""`bulkhead-admin model`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bulkhead.cli.console import emit, emit_rows, example, json_option, note
from bulkhead.cli.models import SEALING_COMMANDS
from bulkhead.cli.settings import on_channel
from bulkhead.errors import InvalidRequestError

if TYPE_CHECKING:
    from bulkhead.client.transport import Channel
    from bulkhead.client.views import ModelView

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
    as_json: bool,
) -> None:
    """Register the Hugging Face model in DIRECTORY under the digest of all its files."""
    from bulkhead.attestation.model_digest import model_manifest
    from bulkhead.client.tenancy import TenancyAdmin

    if not as_json:
        note(f"reading every file of {directory} for its digest")
    manifest = model_manifest(directory)
    size_mib = -(-sum(file.size for file in manifest.files) // MIB)
    default_name = directory.resolve().name
    context = context_length if context_length is not None else _context_length(directory)

    async def work(channel: "Channel") -> "ModelView":
        return await TenancyAdmin(channel).register_model(
            name=name or default_name,
            digest=manifest.digest(),
            path=path or default_name,
            context_length=context,
            memory_mib=memory_mib or 2 * size_mib + CACHE_MIB,
        )

    made = on_channel(ctx, work)
    emit(
        made,
        as_json=as_json,
        text=f"registered {made.name}: digest {made.digest}, context {made.context_length}, {made.memory_mib} MiB",
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
