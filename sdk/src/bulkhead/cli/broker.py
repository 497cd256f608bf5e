"""`bulkhead broker`: a tenant's own key broker."""

import asyncio
import datetime as dt
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bulkhead.cli.console import emit, example, json_option, note, run

if TYPE_CHECKING:
    from bulkhead.broker.config import BrokerConfig

__all__ = ["broker"]


@click.group()
def broker() -> None:
    """Your own key broker: model keys go to workers that your policy accepts, and to no others."""


@broker.command("serve", epilog=example("bulkhead broker serve --config broker.toml"))
@click.option("--config", "path", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True)
@click.option("--check-config", is_flag=True, help="Check the file, its keys and its state, and stop.")
@click.option("--ports-file", type=click.Path(path_type=Path), help="Write the address that it listens on there.")
@json_option
def serve(path: Path, *, check_config: bool, ports_file: Path | None, as_json: bool) -> None:
    """Release model keys to attested workers until stopped (docs/models.md has the file's keys)."""
    from bulkhead.broker.config import load_broker_config

    config = load_broker_config(path)
    if check_config:
        config.open_broker()
        emit({"tenant": config.tenant, "listen": config.listen}, as_json=as_json, text=f"{path} can be served")
        return
    run(_serve(config, ports_file, as_json=as_json))


async def _serve(config: "BrokerConfig", ports_file: Path | None, *, as_json: bool) -> None:
    from bulkhead.broker.rpc import BrokerServer

    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    server = await BrokerServer.start(config)
    if ports_file is not None:
        temporary = ports_file.with_name(f".{ports_file.name}.new")
        temporary.write_text(server.address)
        temporary.replace(ports_file)
    if config.development_mode:
        note("development mode: simulated workers get keys")
    emit({"address": server.address}, as_json=as_json, text=f"key broker of {config.tenant} on {server.address}")
    await stopped.wait()
    await server.stop()


@broker.command(
    "create-certificate",
    epilog=example("bulkhead broker create-certificate --name broker.acme.example --certificate tls.pem --key tls.key"),
)
@click.option("--name", required=True, help="DNS name in the certificate.")
@click.option("--certificate", type=click.Path(path_type=Path), required=True)
@click.option("--key", type=click.Path(path_type=Path), required=True)
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True)
@json_option
def create_certificate(*, name: str, certificate: Path, key: Path, days: int, as_json: bool) -> None:
    """Make a self-signed certificate for the broker; the platform pins it with the model."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import NameOID

    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bulkhead key broker")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(private, SHA256())
    )
    _create(key, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
    _create(certificate, made.public_bytes(Encoding.PEM), mode=0o644)
    emit({"certificate": str(certificate)}, as_json=as_json, text=f"made {certificate} for {name}, {days} days")


def _create(path: Path, data: bytes, *, mode: int) -> None:
    from bulkhead.errors import AlreadyExistsError, ConfigError

    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
    except FileExistsError as error:
        raise AlreadyExistsError(f"{path}: exists already and is not overwritten") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
