"""`bulkhead root`: a tenant's root and what it certifies. No server is asked; private keys stay in their files."""

import os
import time
from pathlib import Path
from typing import Final

import click

from bulkhead.cli.console import emit, example, json_option, time_text
from bulkhead.errors import ConfigError

__all__ = ["root"]

_S_PER_HOUR: Final = 3_600
_new_file = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
_file = click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))


@click.group()
def root() -> None:
    """The tenant's root: certifies the session keys that workers take, so that an operator cannot invent them."""


@root.command("new", epilog=example("bulkhead root new root.pem"))
@_new_file
@json_option
def new(file: Path, *, as_json: bool) -> None:
    """Make a root in the new FILE (mode 0600), and print the fingerprint that the platform's admin records.

    Keep FILE where the operator cannot read it, and a copy: whoever has it can certify session keys of the tenant.
    """
    from bulkhead.key_files import create_key_file

    _show(create_key_file(file).public_key().public_bytes_raw(), file, as_json=as_json, what="made")


@root.command("show", epilog=example("bulkhead root show root.pem --json"))
@_file
@json_option
def show(file: Path, *, as_json: bool) -> None:
    """Print public key and fingerprint of the root in FILE."""
    from bulkhead.key_files import load_key_file

    _show(load_key_file(file, what="tenant's root").public_key().public_bytes_raw(), file, as_json=as_json, what="root")


@root.command("session-key", epilog=example("bulkhead root session-key session.pem"))
@_new_file
@json_option
def session_key(file: Path, *, as_json: bool) -> None:
    """Make a session key in the new FILE (mode 0600), to be certified where the root is, and print its public key."""
    from bulkhead.encoding import b64url_encode
    from bulkhead.key_files import create_key_file

    public = b64url_encode(create_key_file(file).public_key().public_bytes_raw())
    emit({"session_key": public}, as_json=as_json, text=f"made {file}; its public key is {public}")


@root.command(
    "certify",
    epilog=example(
        "bulkhead root certify --session-key 3q2-7w… --root root.pem --tenant tenant_01h455vb4pex… --out session.cert"
    ),
)
@click.option("--session-key", "public_key", required=True, help="Public key, as `session-key` prints it.")
@click.option(
    "--root", "root_file", type=click.Path(path_type=Path, exists=True), required=True, help="The root's file."
)
@click.option("--tenant", required=True, help="The tenant's identifier.")
@click.option("--hours", type=click.IntRange(1, 24), default=24, show_default=True, help="How long it holds.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File, new or replaced.")
@json_option
def certify(*, public_key: str, root_file: Path, tenant: str, hours: int, out: Path, as_json: bool) -> None:
    """Certify a session key from now on.

    The certificate is no secret. Clients that have it in session_certificate_file read it anew at each renewal, so
    issue the next one before it ends.
    """
    from bulkhead.encoding import b64url_decode
    from bulkhead.errors import BulkheadError
    from bulkhead.ids import TENANT, check_id
    from bulkhead.key_files import load_key_file
    from bulkhead.protocol.certificates import CLOCK_SKEW_S, SessionCertificate, issue_certificate

    key = load_key_file(root_file, what="tenant's root")
    try:
        cnf, tenant_id = b64url_decode(public_key, what="--session-key"), check_id(tenant, TENANT)
    except BulkheadError as error:
        raise click.UsageError(error.message) from error
    if len(cnf) != len(key.public_key().public_bytes_raw()):
        raise click.UsageError("--session-key is the base64url of 32 bytes")
    now_s = int(time.time())
    said = SessionCertificate(
        tenant=tenant_id,
        root=key.public_key().public_bytes_raw(),
        cnf=cnf,
        not_before_s=now_s - CLOCK_SKEW_S,
        not_after_s=now_s - CLOCK_SKEW_S + hours * _S_PER_HOUR,
    )
    _replace(out, issue_certificate(said, sign=key.sign))
    emit(said, as_json=as_json, text=f"wrote {out}; it holds until {time_text(said.not_after_s)}")


@root.command("check", epilog=example("bulkhead root check session.cert --json"))
@_file
@json_option
def check(file: Path, *, as_json: bool) -> None:
    """Print what the certificate in FILE says. The root that it names signed it; whose root that is, you judge."""
    from bulkhead.attestation.descriptor import key_fingerprint
    from bulkhead.encoding import b64url_encode
    from bulkhead.protocol.certificates import MAX_CERTIFICATE_BYTES, read_certificate

    with file.open("rb") as stream:
        found = read_certificate(stream.read(MAX_CERTIFICATE_BYTES + 1))
    holds = found.not_before_s <= time.time() < found.not_after_s
    lines = (
        f"tenant       {found.tenant}",
        f"root         {key_fingerprint(found.root).hex()}",
        f"session key  {b64url_encode(found.cnf)}",
        f"holds        {time_text(found.not_before_s)} to {time_text(found.not_after_s)}{'' if holds else ', not now'}",
    )
    value = {"certificate": found, "root_fingerprint": key_fingerprint(found.root), "holds_now": holds}
    emit(value, as_json=as_json, text="\n".join(lines))


def _show(public_key: bytes, file: Path, *, as_json: bool, what: str) -> None:
    from bulkhead.attestation.descriptor import key_fingerprint
    from bulkhead.encoding import b64url_encode

    fingerprint, public = key_fingerprint(public_key).hex(), b64url_encode(public_key)
    text = f"{what} {file}\npublic key   {public}\nfingerprint  {fingerprint}"
    emit({"public_key": public, "fingerprint": fingerprint}, as_json=as_json, text=text)


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: a client may read it at any time."""
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
