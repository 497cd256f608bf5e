"""The command line of the control plane.

Standard output is one JSON object for programs; logs and errors go to standard error. Exit status: 0 done, 1 failed or
refused, 2 wrong usage.
"""

import argparse
import asyncio
import json
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from bulkhead.encoding import Json
from bulkhead.errors import BulkheadError, ConfigError
from bulkhead.ids import check_name
from control_plane.app import App
from control_plane.assembly import now_us
from control_plane.authz.bundle import VerifiedBundle, build_bundle
from control_plane.authz.opa_tool import find_opa
from control_plane.authz.sources import read_sources
from control_plane.bootstrap import Bootstrap
from control_plane.config import ControlPlaneConfig
from control_plane.issuance import IssuedIdentity, record_issued
from control_plane.keys import KeyRing
from service.config import load_config
from service.files import PUBLIC, make_private_directory, write_file
from service.lifecycle import EXIT_DONE, EXIT_FAILED, run_process
from service.logging import configure
from service.tls import Identity, parse_certificate, spiffe_uri

__all__ = ["main"]

S_PER_DAY: Final = 86_400
US_PER_S: Final = 1_000_000
STOP_TIMEOUT_S: Final = 30.0  # beyond the drain: closing databases and the policy engine
SWITCH_INTERVAL_S: Final = 0.0005  # database threads give the interpreter back to the loop, which every call needs
DEFAULT_ADMINS: Final = ("admin", "second-admin")
DEFAULT_POLICIES: Final = Path(__file__).resolve().parent.parent / "policies"

_EPILOG: Final = """\
examples:
  python -m control_plane init --config control.toml
  python -m control_plane --config control.toml --check-config
  python -m control_plane --config control.toml
  python -m control_plane issue-agent --config control.toml --agent-id rack1-tray01 --out ./rack1-tray01
  python -m control_plane issue-client-certificate --config control.toml --name acme-batch --out ./acme-batch

The configuration's keys are described in the docstrings of control_plane/config.py; the smallest file is
  state_directory = "var/control-plane"
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.config is None:
        parser.error("--config FILE is required")
    try:
        config = load_config(ControlPlaneConfig, options.config)
        configure(output=config.log.format, level=config.log.level)
        status: int = options.run(config, options)
    except BulkheadError as error:
        print(f"{error.code}: {error.message}", file=sys.stderr)  # noqa: T201  a command-line program
        return EXIT_FAILED
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m control_plane",
        description="Bulkhead's control plane. Without a command it serves until SIGTERM.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_serve)
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration (TOML)")
    parser.add_argument("--check-config", action="store_true", help="read the configuration, say so, and end")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    init = commands.add_parser("init", help="make keys, databases, first policies and first administrators; once")
    init.add_argument("--admin", action="append", default=[], metavar="NAME", help="administrator (repeatable)")
    init.add_argument("--policies", type=Path, default=DEFAULT_POLICIES, metavar="DIR", help="first policy sources")
    init.add_argument("--lifetime-days", type=int, default=90, help="of the administrators' API keys (1 to 366)")
    init.set_defaults(run=_init)

    agent = commands.add_parser("issue-agent", help="issue a node agent's identity: agent.pem, agent.key, ca.pem")
    agent.add_argument("--agent-id", required=True, metavar="NAME", help="the agent's name, e.g. rack1-tray01")
    agent.set_defaults(run=_issue_agent)

    client = commands.add_parser(
        "issue-client-certificate", help="issue a client certificate, to be registered for a principal"
    )
    client.add_argument("--name", required=True, help="name in the certificate's URI")
    client.set_defaults(run=_issue_client)
    for command in (init, agent, client):
        # Suppressed, so that the command's absence does not undo what stood before it.
        command.add_argument("--config", type=Path, default=argparse.SUPPRESS, metavar="FILE", help="configuration")
    for command in (agent, client):
        command.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory for the files")
    return parser


def _serve(config: ControlPlaneConfig, options: argparse.Namespace) -> int:
    if options.check_config:
        _show({"config": str(options.config), "ok": True})
        return EXIT_DONE
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return run_process(App(config=config), stop_timeout_s=config.limits.drain_s + STOP_TIMEOUT_S)


def _init(config: ControlPlaneConfig, options: argparse.Namespace) -> int:
    if not 1 <= options.lifetime_days <= 366:
        raise ConfigError("--lifetime-days: 1 to 366")
    if not options.policies.is_dir():
        raise ConfigError(f"--policies: {options.policies} is not a directory")
    opa = config.policy.opa or find_opa()

    def build(sources: Mapping[str, bytes], number: int, created_us: int, keys: KeyRing) -> VerifiedBundle:
        return build_bundle(sources, number=number, created_us=created_us, signing_key=keys.bundle_signing, opa=opa)

    bootstrap = Bootstrap(config=config, build=build, now_us=now_us, random_bytes=secrets.token_bytes)
    made = asyncio.run(
        bootstrap.run(
            admins=options.admin or DEFAULT_ADMINS,
            policies=read_sources(options.policies),
            lifetime_s=options.lifetime_days * S_PER_DAY,
        )
    )
    _show(made)
    return EXIT_DONE


def _issue_agent(config: ControlPlaneConfig, options: argparse.Namespace) -> int:
    uri = spiffe_uri(config.trust_domain, "agent", check_name(options.agent_id, "--agent-id"))
    return _issue(config, options.out, "agent", uri)


def _issue_client(config: ControlPlaneConfig, options: argparse.Namespace) -> int:
    uri = spiffe_uri(config.trust_domain, "client", check_name(options.name, "--name"))
    return _issue(config, options.out, "client", uri)


def _issue(config: ControlPlaneConfig, out: Path, stem: str, uri: str) -> int:
    if not (config.keys_directory / "ca" / "ca.key").exists():
        raise ConfigError("this platform was never initialised: run `python -m control_plane init --config FILE`")
    authority = KeyRing.load_or_create(config).authority
    identity: Identity = authority.issue_client(uri=uri)
    parsed = parse_certificate(identity.certificate_pem)
    expires_s = int(parsed.not_after.timestamp())
    issued = IssuedIdentity(uri=uri, fingerprint=parsed.fingerprint, expires_us=expires_s * US_PER_S)
    record_issued(config, issued)
    make_private_directory(out)
    identity.save(out / f"{stem}.pem", out / f"{stem}.key")
    write_file(out / "ca.pem", authority.certificate_pem, mode=PUBLIC)
    _show(
        {
            "uri": uri,
            "certificate": str(out / f"{stem}.pem"),
            "private_key": str(out / f"{stem}.key"),
            "authority": str(out / "ca.pem"),
            "fingerprint": parsed.fingerprint,
            "expires_unix_s": expires_s,
        }
    )
    return EXIT_DONE


def _show(value: dict[str, Json]) -> None:
    print(json.dumps(value, indent=2, sort_keys=True))  # noqa: T201  a command-line program
