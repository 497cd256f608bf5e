"""A whole Bulkhead platform on this machine: one control plane, OPA, simulated GB300 compute trays, tenants and keys.

    python scripts/local_platform.py up   --root var      # start, or start again, and print what to type next
    python scripts/local_platform.py down --root var      # stop; state stays in var/
    python scripts/local_platform.py status --root var --json

The rack is simulated and says so; the model, the policies, the audit log and the sealing are real.
"""

import argparse
import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from bulkhead.errors import BulkheadError  # noqa: E402  the path above makes it importable
from scripts.local_config import (  # noqa: E402
    ACCOUNTS,
    TENANTS,
    Account,
    TenantPlan,
    agent_toml,
    control_toml,
    env_sh,
    profiles_toml,
)
from scripts.local_ports import free_ports  # noqa: E402
from scripts.local_processes import LocalError, Processes  # noqa: E402

MODEL_NAME: Final = "smollm2-135m-instruct"
READY_TIMEOUT_S: Final = 120.0  # a busy machine takes its time; what has ended is told at once
COMMAND_TIMEOUT_S: Final = 120.0
COMMANDS_AT_ONCE: Final = 2  # of those that register tenants and accounts; each takes most of a core while it starts
BIN: Final = Path(sys.executable).parent

Say = Callable[[str], None]


@dataclass(slots=True)
class LocalPlatform:
    """The processes and files of a local platform below ``root``.

    Attributes:
        root: state, configuration, keys and logs; private to this user.
        model: Hugging Face directory of the model that every tenant may use.
        trays: simulated compute trays, one agent each.
        say: told what is being done.
        model_name: name under which the model is registered.
        agent_overrides: TOML text appended to each agent's configuration.
        control_overrides: TOML text appended to the control plane's configuration.
        internal_address: host:port that agents dial; None for the control plane's own.
    """

    root: Path
    model: Path
    trays: int = 2
    say: Say = print
    model_name: str = MODEL_NAME
    agent_overrides: str = ""
    control_overrides: str = ""
    internal_address: str | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def processes(self) -> Processes:
        """The processes started so far."""
        return Processes(root=self.root)

    @property
    def client_config(self) -> Path:
        """The profiles' file."""
        return self.root / "client" / "config.toml"

    @property
    def run_directory(self) -> Path:
        """Sockets and pid files; apart from ``root``, whose path may be too long for a Unix socket (107 bytes)."""
        digest = hashlib.sha256(str(self.root).encode()).hexdigest()[:10]
        return Path(tempfile.gettempdir()) / f"bulkhead-{digest}"

    @property
    def agent_ids(self) -> tuple[str, ...]:
        """Names of the agents."""
        return tuple(f"rack1-tray{tray:02}" for tray in range(1, self.trays + 1))

    def run(self, command: Sequence[str], *, profile: str | None = None, check: bool = True) -> str:
        """Run a command of the platform to its end and return its standard output.

        Raises:
            LocalError: it failed; the message has its error output.
        """
        environment = self._environment()
        if profile is not None:
            environment |= {"BULKHEAD_CONFIG": str(self.client_config), "BULKHEAD_PROFILE": profile}
        done = subprocess.run(
            list(command), env=environment, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
        if check and done.returncode:
            raise LocalError(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stderr.strip()}")
        return done.stdout

    def admin(self, *arguments: str) -> Any:
        """Run ``bulkhead-admin … --json`` as the first admin and return what it printed."""
        return json.loads(self.run([str(BIN / "bulkhead-admin"), *arguments, "--json"], profile="admin"))

    def up(self) -> None:
        """Configure what is not configured, start what does not run, and wait until it serves.

        Raises:
            LocalError: a step failed.
        """
        self.prepare()
        for agent_id in self.agent_ids:
            self.start_agent(agent_id)
        self.wait_for_agents()

    def prepare(self) -> None:
        """Configure what is not configured, start the control plane, and register what is not registered.

        Raises:
            LocalError: a step failed.
        """
        if not (self.root / "control.toml").exists():
            self._configure()
        self.start_control_plane()
        if not self.client_config.exists() or "[profile.acme]" not in self.client_config.read_text():
            self._provision()

    def start_control_plane(self) -> None:
        """Start the control plane if it does not run and wait until it serves."""
        self._start("control-plane", ["-m", "control_plane", "--config", str(self.root / "control.toml")])
        self._await("the control plane serves", "control-plane", self._serving)

    def start_agent(self, agent_id: str) -> None:
        """Start an agent if it does not run."""
        self._start(agent_id, ["-m", "data_plane", "agent", "--config", str(self.root / f"{agent_id}.toml")])

    def wait_for_agents(self) -> None:
        """Wait until every agent is connected."""

        def connected() -> bool:
            return connected_agents(self.client_config) >= set(self.agent_ids)

        for agent_id in self.agent_ids:
            self.processes.check(agent_id)
        self._await("the agents are connected", self.agent_ids[0], connected)

    def down(self) -> None:
        """Stop every process."""
        self.processes.stop()
        shutil.rmtree(self.run_directory, ignore_errors=True)

    def _environment(self) -> dict[str, str]:
        kept = ("PATH", "HOME", "LANG", "BULKHEAD_OPA", "BULKHEAD_CACHE", "TMPDIR")
        return {name: os.environ[name] for name in kept if name in os.environ} | self.environment

    def _start(self, name: str, arguments: Sequence[str]) -> None:
        processes = self.processes
        if any(entry.name == name and entry.alive() for entry in processes.remembered()):
            return
        self.say(f"starting {name}")
        processes.start(name, [sys.executable, *arguments], environment=self._environment())

    def _await(self, what: str, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        problem = ""
        while time.monotonic() < deadline:
            self.processes.check(name)
            try:
                if ready():
                    return
            except BulkheadError as error:
                problem = f"{error.code}: {error.message}"
            time.sleep(0.1)
        raise LocalError(f"waited {READY_TIMEOUT_S:.0f} s in vain until {what}: {problem}\n{self.processes.tail(name)}")

    def _serving(self) -> bool:
        connected_agents(self.client_config)
        return True

    def write_configuration(self) -> None:
        """Write the services' configuration files."""
        for directory in (self.root, self.run_directory):
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o711)  # workers run as other users and must reach what is theirs
        (self.root / "control.toml").write_text(
            control_toml(self.root, self.ports_wanted(), overrides=self.control_overrides)
        )
        for tray, agent_id in enumerate(self.agent_ids, start=1):
            text = agent_toml(
                self.root,
                agent_id,
                tray=tray,
                run_directory=self.run_directory,
                internal=self.internal_address or f"127.0.0.1:{self.ports_wanted()['internal']}",
                overrides=self.agent_overrides,
            )
            (self.root / f"{agent_id}.toml").write_text(text)

    def _configure(self) -> None:
        self.say(f"configuring a platform in {self.root}")
        self.write_configuration()
        made = self.run([sys.executable, "-m", "control_plane", "init", "--config", str(self.root / "control.toml")])
        (self.root / "init.json").write_text(made)
        self._write_profiles({})
        models = self.root / "models"
        if not (models / self.model_name).exists():
            shutil.copytree(self.model, models / self.model_name, copy_function=link_or_copy)
        for agent_id in self.agent_ids:
            self.run(
                [sys.executable, "-m", "control_plane", "issue-agent", "--config", str(self.root / "control.toml"),
                 "--agent-id", agent_id, "--out", str(self.root / agent_id)]
            )  # fmt: skip

    def ports_wanted(self) -> dict[str, int]:
        """Return the ports of this platform, free when it was configured."""
        path = self.root / "ports_wanted.json"
        if not path.exists():
            path.write_text(
                json.dumps(dict(zip(("public", "public_mtls", "internal", "spare"), free_ports(4), strict=True)))
            )
        return json.loads(path.read_text())  # type: ignore[no-any-return]

    def _provision(self) -> None:
        self.say("registering the model, creating tenants, principals and keys")
        self.admin("model", "add", str(self.root / "models" / self.model_name), "--name", self.model_name)
        with ThreadPoolExecutor(COMMANDS_AT_ONCE) as at_once:
            made = dict(zip((plan.name for plan in TENANTS), at_once.map(self._create_tenant, TENANTS), strict=True))
            list(at_once.map(self._create_account, ACCOUNTS))
        self._write_profiles(made)

    def _create_tenant(self, plan: TenantPlan) -> Any:
        options = ("--model", self.model_name, "--minimum-tier", plan.minimum_tier, *plan.options)
        made = self.admin("tenant", "create", plan.name, *options)
        return self._record_root(plan) if plan.rooted else made

    def _create_account(self, account: Account) -> None:
        made = self.admin("principal", "create", account.profile, "--tenant", account.tenant, "--role", account.role)
        key = self.root / "client" / f"{account.profile}.key"
        key.unlink(missing_ok=True)
        self.admin("key", "create", made["principal_id"], "--out", str(key))

    def _record_root(self, plan: TenantPlan) -> Any:
        """Make a tenant's root, as the tenant would, and have its fingerprint recorded; return the tenant."""
        file = self.root / "client" / plan.root_file
        file.unlink(missing_ok=True)
        made = json.loads(self.run([str(BIN / "bulkhead"), "root", "new", str(file), "--json"]))
        return self.admin("tenant", "set-root", plan.name, made["fingerprint"])

    def _write_profiles(self, tenants: Mapping[str, Mapping[str, Any]]) -> None:
        made = json.loads((self.root / "init.json").read_text())
        self.client_config.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.client_config.write_text(
            profiles_toml(made, public_port=self.ports_wanted()["public"], model=self.model_name, tenants=tenants)
        )

    def write_env(self) -> Path:
        """Write ``env.sh``, which puts the commands on PATH and chooses the profile."""
        path = self.root / "env.sh"
        path.write_text(env_sh(path, commands=BIN, client_config=self.client_config))
        return path


def connected_agents(client_config: Path) -> set[str]:
    """Return the agents that are connected, asked as the first admin.

    Raises:
        BulkheadError: the control plane does not serve.
    """
    from bulkhead.client.config import load_profile
    from bulkhead.client.connect import control_plane_channel
    from bulkhead.client.fleet import FleetAdmin
    from bulkhead.client.transport import RetryPolicy

    async def ask() -> set[str]:
        channel = control_plane_channel(load_profile("admin", path=client_config), retry=RetryPolicy(attempts=1))
        try:
            return {agent.agent_id for agent in await FleetAdmin(channel).agents() if agent.connected}
        finally:
            await channel.close()

    with ThreadPoolExecutor(1) as beside:  # the caller's thread may run an event loop
        return beside.submit(asyncio.run, ask()).result()


def link_or_copy(source: str, target: str) -> None:
    """Link a model file into place, or copy it from another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        Path(target).chmod(0o644)


def chat_model() -> Path:
    """Return the directory of the demo's chat model.

    Raises:
        LocalError: it was not fetched yet.
    """
    cache = Path(os.environ.get("BULKHEAD_CACHE") or Path.home() / ".cache" / "bulkhead")
    path = cache / "models" / "SmolLM2-135M-Instruct"
    if not (path / "config.json").exists():
        raise LocalError(f"{path} is missing: run `make up` or `python scripts/fetch_model.py chat`")
    return path


HINTS: Final = """\
The platform is up. In this shell:

    . {env}
    bulkhead chat "What is the capital of France?"
    BULKHEAD_PROFILE=officer bulkhead audit list
    BULKHEAD_PROFILE=admin bulkhead-admin fleet partitions
    grpcurl -cacert {ca} -authority localhost 127.0.0.1:{public} list

Profiles: acme (default), officer, mercy, mercy-officer, admin, admin2. The rack and its evidence are SIMULATED.
Logs stand in {logs}; `make down` stops everything and keeps the state."""


def _up(root: Path, *, as_json: bool) -> None:
    def say(text: str) -> None:
        print(f"[up] {text}", file=sys.stderr if as_json else sys.stdout, flush=True)

    platform = LocalPlatform(root=root, model=chat_model(), say=say)
    try:
        platform.up()
    except BaseException:
        platform.down()  # nothing half-started stays behind
        raise
    facts = {
        "env": str(platform.write_env()),
        "ca": json.loads((root / "init.json").read_text())["authority"],
        "public": platform.ports_wanted()["public"],
        "logs": str(root / "logs"),
    }
    print(json.dumps(facts) if as_json else HINTS.format(**facts))


def _status(root: Path, *, as_json: bool) -> None:
    entries = [
        {"name": entry.name, "pid": entry.pid, "alive": entry.alive()} for entry in Processes(root=root).remembered()
    ]
    if as_json:
        print(json.dumps(entries))
        return
    for entry in entries:
        print(f"{entry['name']:16} pid {entry['pid']:<8} {'runs' if entry['alive'] else 'has ended'}")
    if not entries:
        print("nothing runs")


def main() -> int:
    """Run the command line; exit 0 done, 1 failed, 2 usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("up", "down", "status"))
    parser.add_argument("--root", type=Path, default=ROOT / "var", help="state directory (default: var)")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print JSON for programs")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    try:
        if arguments.command == "up":
            _up(root, as_json=arguments.as_json)
        elif arguments.command == "status":
            _status(root, as_json=arguments.as_json)
        else:
            LocalPlatform(root=root, model=root).down()
            print(json.dumps({"stopped": True}) if arguments.as_json else "[down] everything has stopped")
    except (LocalError, OSError, subprocess.TimeoutExpired) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
