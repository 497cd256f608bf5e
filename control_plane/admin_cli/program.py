"""Root of `bulkhead-admin`."""

import os
from pathlib import Path

import click

from bulkhead.cli.console import Program, example
from bulkhead.cli.settings import Settings, with_settings
from control_plane.admin_cli.fleet import fleet
from control_plane.admin_cli.issuers import issuer
from control_plane.admin_cli.models import model
from control_plane.admin_cli.policies import policy
from control_plane.admin_cli.principals import certificate, key, principal
from control_plane.admin_cli.tenants import tenant

__all__ = ["main", "program"]


@click.group(
    cls=Program,
    name="bulkhead-admin",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=example(
        "bulkhead-admin tenant create acme --model smollm2-135m-instruct --session-limit 20",
        "bulkhead-admin principal create ci --tenant acme --role developer",
        "bulkhead-admin key create prin_01h… --out acme.key",
    ),
)
@with_settings
@click.version_option(package_name="bulkhead-platform")
@click.pass_context
def program(ctx: click.Context, profile_name: str | None, config_path: Path | None) -> None:
    """Administer a Bulkhead platform. The profile's credential must have role admin."""
    ctx.obj = Settings(profile_name, config_path)


for _group in (tenant, principal, key, certificate, model, policy, fleet, issuer):
    program.add_command(_group)


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # core's own log lines are no output of a command
    program.main()
