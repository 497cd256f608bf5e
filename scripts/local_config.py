"""Configuration files of a local platform: control plane, agents, profiles, shell."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

__all__ = [
    "ACCOUNTS",
    "REGION",
    "TENANTS",
    "Account",
    "TenantPlan",
    "agent_toml",
    "control_toml",
    "env_sh",
    "profiles_toml",
]

REGION: Final = "us-east"


@dataclass(frozen=True, slots=True)
class Account:
    """One profile of the local platform.

    Attributes:
        profile: name of the profile.
        tenant: tenant's name.
        role: `developer`, `officer` or `admin`.
    """

    profile: str
    tenant: str
    role: str


@dataclass(frozen=True, slots=True)
class TenantPlan:
    """A tenant that the local platform creates, as options of ``bulkhead-admin tenant create``.

    One that is ``rooted`` has a root in its developer's directory, which certifies its session keys.
    """

    name: str
    minimum_tier: str
    options: tuple[str, ...]
    defaults: Mapping[str, Any]
    rooted: bool = False

    @property
    def root_file(self) -> str:
        """Name of the root's file, beside the profiles."""
        return f"{self.name}.root.pem"


TENANTS: Final = (
    TenantPlan(
        "mercy-hospital",
        "gpu",
        ("--pack", "hipaa", "--region", REGION, "--session-limit", "20", "--max-output-tokens", "2048"),
        {"tier": "gpu", "purpose": "treatment", "data_classes": ["phi"]},
        rooted=True,
    ),
    TenantPlan(
        "acme", "mig", ("--region", REGION, "--session-limit", "100", "--max-output-tokens", "2048"), {"tier": "mig"}
    ),
)
ACCOUNTS: Final = (
    Account("acme", "acme", "developer"),
    Account("officer", "acme", "officer"),
    Account("mercy", "mercy-hospital", "developer"),
    Account("mercy-officer", "mercy-hospital", "officer"),
)


def control_toml(root: Path, ports: Mapping[str, int], *, overrides: str) -> str:
    """Return the control plane's configuration; ``overrides`` is TOML appended to it."""
    return f"""\
# Control plane of a local platform; every key is described in control_plane/config.py.
state_directory = "{root}/control"

[listen]
public = "127.0.0.1:{ports["public"]}"
public_mtls = "127.0.0.1:{ports["public_mtls"]}"
internal = "127.0.0.1:{ports["internal"]}"

[log]
format = "console"

[fleet]
allow_simulated = true
{overrides}
"""


def agent_toml(root: Path, agent_id: str, *, tray: int, run_directory: Path, internal: str, overrides: str) -> str:
    """Return a node agent's configuration; ``internal`` is the host:port that it dials."""
    directory = root / agent_id
    return f"""\
# Node agent of a simulated compute tray; every key is described in data_plane/config.py.
agent_id = "{agent_id}"
state_directory = "{directory}/state"
run_directory = "{run_directory}/{agent_id}"
model_directory = "{root}/models"
evidence_key = "{directory}/evidence.key"

[control_plane]
addresses = ["{internal}"]
server_name = "localhost"

[tls]
certificate = "{directory}/agent.pem"
private_key = "{directory}/agent.key"
authority = "{directory}/ca.pem"

[inventory]
backend = "simulated"
rack = "rack1"
tray = {tray}
region = "{REGION}"

[log]
format = "console"

[metrics]
enabled = true

[sandbox]
# On a host of your own set both to "require": a packaged interpreter and models outside home directories allow it.
network = "if_possible"
user = "if_possible"
{overrides}
"""


def profiles_toml(
    made: Mapping[str, Any], *, public_port: int, model: str, tenants: Mapping[str, Mapping[str, Any]]
) -> str:
    """Return the clients' profiles.

    Args:
        made: what ``control_plane init`` printed.
        public_port: of the control plane.
        model: name of the model that sessions ask for.
        tenants: name -> what ``bulkhead-admin tenant create`` printed; empty before there are any.
    """
    address = f"127.0.0.1:{public_port}"
    common = f'address = "{address}"\nca_file = "{made["authority"]}"\nserver_name = "localhost"\n'
    profiles = ['default_profile = "acme"\n' if tenants else 'default_profile = "admin"\n']
    for number, admin in enumerate(made["admins"], start=1):
        name = "admin" if number == 1 else f"admin{number}"
        profiles.append(f'[profile.{name}]\n{common}api_key_file = "{admin["api_key_file"]}"\nrole = "admin"\n')
    plans = {plan.name: plan for plan in TENANTS}
    for account in ACCOUNTS if tenants else ():
        plan, tenant = plans[account.tenant], tenants[account.tenant]
        defaults = {"model": model, "region": REGION, **plan.defaults}
        profiles.append(
            f"""\
[profile.{account.profile}]
{common}api_key_file = "{account.profile}.key"
tenant = "{tenant["tenant_id"]}"
role = "{account.role}"
log_vkey = "{tenant["log_vkey"]}"
platform_vkey = "{made["platform_log_vkey"]}"
ticket_issuer = "{made["ticket_issuer"]}"
{_root_line(account, plan, tenant)}\
# The rack is simulated: only development mode accepts its evidence, and says so every time.
development_mode = true

[profile.{account.profile}.trust]
accepted_kinds = ["simulated", "operator"]
minimum_tier = "{plan.minimum_tier}"

[profile.{account.profile}.defaults]
"""
            + "".join(f"{key} = {json.dumps(value)}\n" for key, value in defaults.items())
        )
    return "\n".join(profiles)


def _root_line(account: Account, plan: TenantPlan, tenant: Mapping[str, Any]) -> str:
    if not plan.rooted:
        return ""
    if account.role == "developer":
        return f'tenant_root_key_file = "{plan.root_file}"\n'
    return f'tenant_root_fingerprint = "{tenant["tenant_root"]}"\n'


def env_sh(path: Path, *, commands: Path, client_config: Path) -> str:
    """Return the shell file that puts the commands on PATH and chooses the profile."""
    return f"""\
# . {path}   (then: bulkhead --help, bulkhead-admin --help)
export PATH="{commands}:$PATH"
export BULKHEAD_CONFIG="{client_config}"
export BULKHEAD_PROFILE="${{BULKHEAD_PROFILE:-acme}}"
"""
