"""Root of `bulkhead`."""

import os
from pathlib import Path

import click

from bulkhead.cli.audit import audit
from bulkhead.cli.broker import broker
from bulkhead.cli.chat import chat
from bulkhead.cli.console import Program, example
from bulkhead.cli.evidence import evidence
from bulkhead.cli.isolation import isolation_test
from bulkhead.cli.models import model
from bulkhead.cli.profiles import profile
from bulkhead.cli.receipts import receipt
from bulkhead.cli.roots import root
from bulkhead.cli.sessions import session
from bulkhead.cli.settings import Settings, with_settings

__all__ = ["main", "program"]


@click.group(
    cls=Program,
    name="bulkhead",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=example(
        'bulkhead chat "What is the capital of France?"',
        "bulkhead --profile officer audit list --decision deny",
        "bulkhead audit verify log.jsonl --log-key audit.example/t/4f2a/0+1b2c3d4e+AbCd…",
    ),
)
@with_settings
@click.version_option(package_name="bulkhead-sdk")
@click.pass_context
def program(ctx: click.Context, profile_name: str | None, config_path: Path | None) -> None:
    """Talk to verified workers, and check what the audit log says about it."""
    ctx.obj = Settings(profile_name, config_path)


for _command in (chat, session, evidence, receipt, audit, model, broker, root, profile, isolation_test):
    program.add_command(_command)


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # core's own log lines are no output of a command
    program.main()
