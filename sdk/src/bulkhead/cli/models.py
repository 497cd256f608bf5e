"""`bulkhead model`: sealing models, and looking at sealed ones. `bulkhead-admin model` has the same commands."""

import hmac
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bulkhead.cli.console import emit, example, json_option, note
from bulkhead.errors import ConfigError, MalformedRequestError, ModelKeyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from bulkhead.models import KeyEncryptionKey, SealedManifest

__all__ = ["SEALING_COMMANDS", "is_sealed", "model"]

_KEK_HELP: Final = "Key encryption key: file:PATH or a PKCS#11 URI (RFC 7512)."
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestView:
    """What a command prints of a sealed model; the key itself is nowhere."""

    model: str
    version: int
    model_digest: bytes
    manifest_digest: bytes
    files: int
    size_bytes: int
    keks: tuple[str, ...]
    signer: str


def is_sealed(directory: Path) -> bool:
    """Return whether a directory holds a sealed model rather than a plain one."""
    return (directory / "manifest.json").is_file() and not (directory / "config.json").exists()


def _view(manifest: "SealedManifest") -> ManifestView:
    from bulkhead.encoding import b64url_encode

    return ManifestView(
        model=manifest.model,
        version=manifest.version,
        model_digest=manifest.model_digest,
        manifest_digest=manifest.digest,
        files=len(manifest.files),
        size_bytes=sum(file.size for file in manifest.files),
        keks=tuple(item.kek for item in manifest.wrapped),
        signer=b64url_encode(manifest.signer),
    )


def _text(view: ManifestView) -> str:
    return "\n".join(
        (
            f"model            {view.model}, version {view.version}",
            f"model digest     {view.model_digest.hex()}",
            f"manifest digest  {view.manifest_digest.hex()}",
            f"files            {view.files}, {view.size_bytes / _MIB:.1f} MiB",
            f"key wrapped by   {', '.join(view.keks)}",
            f"signer           {view.signer}",
        )
    )


@click.command(
    "create-key",
    epilog=example(
        "bulkhead-admin model create-key --signer signer.pem",
        "bulkhead-admin model create-key --kek file:kek",
        "bulkhead model create-key --kek 'pkcs11:token=hsm;object=models?module-path=/usr/lib/…so&pin-source=pin'",
    ),
)
@click.option("--kek", metavar="URI", help=f"{_KEK_HELP} Made there.")
@click.option("--signer", type=click.Path(path_type=Path), help="File for a new signing key.")
@json_option
def create_key(*, kek: str | None, signer: Path | None, as_json: bool) -> None:
    """Make a key encryption key or a signing key; one that exists is never overwritten."""
    from bulkhead.encoding import b64url_encode
    from bulkhead.models.kek import create_kek
    from bulkhead.models.signers import create_signer

    if (kek is None) == (signer is None):
        raise click.UsageError("give --kek or --signer, one of them")
    if kek is not None:
        kek_id = create_kek(kek).kek_id
        emit({"kek": kek_id}, as_json=as_json, text=f"made the key encryption key {kek_id}")
    elif signer is not None:
        public = b64url_encode(create_signer(signer).public_key().public_bytes_raw())
        emit({"signer": public}, as_json=as_json, text=f"made {signer}; its public key is {public}")


@click.command(
    "seal",
    epilog=example(
        "bulkhead-admin model seal models/chat --out sealed/chat --version 1 --kek file:kek --signer signer.pem"
    ),
)
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New directory for the sealed model.")
@click.option("--name", help="Name that tenants use; without it the directory's name.")
@click.option("--version", type=click.IntRange(1), required=True, help="Above every version released before.")
@click.option("--kek", "keks", metavar="URI", multiple=True, required=True, help=f"{_KEK_HELP} Repeatable.")
@click.option("--signer", type=click.Path(path_type=Path), required=True, help="File of the signing key.")
@json_option
def seal(
    directory: Path, *, out: Path, name: str | None, version: int, keks: tuple[str, ...], signer: Path, as_json: bool
) -> None:
    """Encrypt and sign the model in DIRECTORY; OUT appears whole or not at all."""
    from bulkhead.models import open_kek, seal_model
    from bulkhead.models.signers import load_signer

    manifest = seal_model(
        directory,
        out=out,
        model=name or directory.resolve().name,
        version=version,
        keks=[open_kek(uri) for uri in keks],
        signer=load_signer(signer),
        progress=_progress("sealing"),
    )
    view = _view(manifest)
    emit(view, as_json=as_json, text=f"sealed {directory} into {out}\n{_text(view)}")


@click.command(
    "rewrap",
    epilog=example(
        "bulkhead-admin model rewrap sealed/chat --kek file:kek --new-kek file:kek-2027 --keep --signer signer.pem",
        "bulkhead-admin model rewrap sealed/chat --kek file:kek-2027 --new-kek file:kek-2027 --signer signer.pem",
    ),
)
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--kek", "keks", metavar="URI", multiple=True, required=True, help="Present one. Repeatable.")
@click.option("--new-kek", "new_keks", metavar="URI", multiple=True, required=True, help="Wraps it now. Repeatable.")
@click.option("--keep", is_flag=True, help="Leave the present wrappings beside the new ones.")
@click.option("--signer", type=click.Path(path_type=Path), required=True, help="File of the signing key.")
@click.option("--trust", "trusted", multiple=True, help="Public key of another present signer. Repeatable.")
@json_option
def rewrap(
    directory: Path,
    *,
    keks: tuple[str, ...],
    new_keks: tuple[str, ...],
    keep: bool,
    signer: Path,
    trusted: tuple[str, ...],
    as_json: bool,
) -> None:
    """Wrap the key of the sealed model in DIRECTORY under other key encryption keys. Version and files stay.

    For a key encryption key that is retired; one that leaked needs `model seal` under a higher version. A registered
    model is then registered again, since brokers get the manifest from there: model retire, model add.
    """
    from bulkhead.models import open_kek, rewrap_model
    from bulkhead.models.signers import load_signer

    manifest = rewrap_model(
        directory,
        keks=[open_kek(uri) for uri in keks],
        new_keks=[open_kek(uri) for uri in new_keks],
        keep=keep,
        signers=[_public_key(text) for text in trusted],
        signer=load_signer(signer),
    )
    view = _view(manifest)
    emit(view, as_json=as_json, text=f"wrapped the key of {directory} anew\n{_text(view)}")


@click.command("inspect", epilog=example("bulkhead-admin model inspect sealed/chat"))
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@json_option
def inspect(directory: Path, *, as_json: bool) -> None:
    """Show what the manifest in DIRECTORY says. It is consistent with its own signature; whose that is, you judge."""
    manifest = _self_signed(directory)
    emit(_view(manifest), as_json=as_json, text=_text(_view(manifest)))


@click.command("verify", epilog=example("bulkhead-admin model verify sealed/chat --signer 3q2-7w… --kek file:kek"))
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--signer", "signers", multiple=True, required=True, help="Public key trusted for models. Repeatable.")
@click.option("--kek", metavar="URI", help=f"{_KEK_HELP} With it every byte is opened and compared.")
@json_option
def verify(directory: Path, *, signers: tuple[str, ...], kek: str | None, as_json: bool) -> None:
    """Check a sealed model: signature and files, and with --kek every byte. Nothing is written."""
    from bulkhead.models import SealedManifest, open_kek, read_manifest
    from bulkhead.models.sealed import check_layout

    manifest = SealedManifest.open(read_manifest(directory), signers=[_public_key(text) for text in signers])
    check_layout(directory, manifest)
    if kek is not None:
        _verify_content(directory, manifest, open_kek(kek))
    what = "every byte holds" if kek is not None else "signature and files hold; --kek checks the content too"
    emit({"verified": True, "content": kek is not None, "manifest": _view(manifest)}, as_json=as_json, text=what)


def _verify_content(directory: Path, manifest: "SealedManifest", kek: "KeyEncryptionKey") -> None:
    from bulkhead.models import DataKey, SealedSource, hash_model, unwrap_key

    key = DataKey(unwrap_key(manifest, [kek]))
    try:
        source = SealedSource(directory, manifest=manifest, key=key, threads=os.cpu_count() or 1)
    finally:
        key.wipe()
    total = sum(source.files.values())
    report = _progress("opening")
    with source:
        digest = hash_model(source, progress=lambda done: report(done, total)).digest()
    if not hmac.compare_digest(digest, manifest.model_digest):
        raise ModelKeyError("the content is not what the manifest says, though every chunk opens")


def _self_signed(directory: Path) -> "SealedManifest":
    from bulkhead.models import SealedManifest, read_manifest
    from bulkhead.models.manifest import claimed_signer

    document = read_manifest(directory)
    return SealedManifest.open(document, signers=[claimed_signer(document)])


def _public_key(text: str) -> bytes:
    from bulkhead.encoding import b64url_decode

    try:
        return b64url_decode(text, what="public key of a signer")
    except MalformedRequestError as error:
        raise ConfigError(error.message) from error


def _progress(what: str) -> "Callable[[int, int], None]":
    """Return a reporter that writes a line at each tenth of a large model."""
    last = -1

    def report(done: int, total: int) -> None:
        nonlocal last
        tenth = 10 * done // total if total else 10
        if total > 64 * _MIB and tenth > last:
            last = tenth
            note(f"{what}: {done / _MIB:.0f} of {total / _MIB:.0f} MiB")

    return report


SEALING_COMMANDS: Final = (create_key, seal, rewrap, inspect, verify)


@click.group()
def model() -> None:
    """Sealed models: encrypted at rest, for workers that prove themselves."""


for _command in SEALING_COMMANDS:
    model.add_command(_command)
