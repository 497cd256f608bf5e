"""`witness`: run our own small witness."""

import asyncio
import os
import secrets
import time
from pathlib import Path

import click

from audit.cli.options import pinned_keys
from audit.cli.serving import listen_option, serve
from audit.witness.core import WitnessCore
from audit.witness.server import witness_application
from audit.witness.state import WitnessState
from bulkhead.cli.console import emit, example, json_option
from bulkhead.errors import ConfigError
from bulkhead.transparency.cosignature import Algorithm, Cosigner

__all__ = ["witness"]

_ALGORITHMS = {"ed25519": Algorithm.ED25519, "ml-dsa-44": Algorithm.ML_DSA_44}


@click.group()
def witness() -> None:
    """A witness cosigns checkpoints that extend what it has seen, so that nobody is shown another history."""


@witness.command(
    "keygen", epilog=example("bulkhead-audit witness keygen witness.example.org/w1 --out w1.key --algorithm ml-dsa-44")
)
@click.argument("name")
@click.option("--algorithm", type=click.Choice(list(_ALGORITHMS)), default="ed25519", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File for the secret key.")
@json_option
def keygen(name: str, *, algorithm: str, out: Path, as_json: bool) -> None:
    """Make a key for the witness NAME (a URL without scheme); print its public key, to be pinned."""
    seed = secrets.token_bytes(32)
    cosigner = Cosigner.from_seed(name, seed, _ALGORITHMS[algorithm])
    try:
        fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(f"{cosigner.skey(seed)}\n")
    except OSError as error:
        raise ConfigError(f"the key file {out} cannot be written: {error.strerror}") from error
    vkey = cosigner.witness.vkey
    emit({"vkey": vkey, "file": str(out)}, as_json=as_json, text=vkey)


@witness.command(
    "serve",
    epilog=example(
        "bulkhead-audit witness serve --key w1.key --state witness --log-key platform.vkey --listen 127.0.0.1:8090"
    ),
)
@click.option(
    "--key", "keys", multiple=True, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The witness's secret key (witness keygen). Repeatable: an Ed25519 and an ML-DSA-44 one cosign together.",
)  # fmt: skip
@click.option(
    "--state", type=click.Path(path_type=Path, file_okay=False), required=True, help="Directory it remembers in."
)
@click.option(
    "--log-key", "log_keys", multiple=True, required=True, metavar="VKEY",
    help="Public key of a log to witness, or a file of them, one per line. Repeatable.",
)  # fmt: skip
@listen_option
def serve_witness(keys: tuple[Path, ...], *, state: Path, log_keys: tuple[str, ...], address: tuple[str, int]) -> None:
    """Serve C2SP tlog-witness (POST /add-checkpoint) until interrupted. Never copy or restore its state directory."""
    cosigners = [_cosigner(path) for path in keys]
    with WitnessState(state) as remembered:
        core = WitnessCore(
            vkeys=list(pinned_keys(log_keys).values()),
            cosigners=cosigners,
            state=remembered,
            now_s=lambda: int(time.time()),
        )
        asyncio.run(serve(witness_application(core), address))


def _cosigner(path: Path) -> Cosigner:
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"the key file {path} must be private to its owner (mode 0600)")
        return Cosigner.from_skey(path.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the key file {path} cannot be read") from error
