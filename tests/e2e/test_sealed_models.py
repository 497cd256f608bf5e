"""Sealed models on real processes: platform custody with the key in a PKCS#11 token, and a tenant's own broker."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.local_platform import BIN, LocalPlatform
from tests.conftest import start_platform, stop_platform
from tests.simulator import live
from tests.simulator.softhsm import SoftHsm, softhsm_token
from tests.simulator.tiny_model import make_tiny_model

pytestmark = pytest.mark.e2e

BROKER_TIMEOUT_S = 20


def command(*arguments: str, **environment: str) -> dict[str, Any]:
    """Run a command of the project and return its JSON."""
    done = subprocess.run(
        [str(BIN / arguments[0]), *arguments[1:], "--json"],
        env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@dataclass
class Sealed:
    """A platform with one model in each custody.

    Attributes:
        plain: the model that was sealed; a directory of its own, which no process of the platform knows.
    """

    platform: LocalPlatform
    plain: Path
    keys: Path
    token: SoftHsm
    tenant: str
    broker: "Broker"

    def seal(self, name: str, version: int, kek: str, out: Path) -> dict[str, Any]:
        """Seal the plain model."""
        return command(
            "bulkhead-admin", "model", "seal", str(self.plain), "--out", str(out), "--name", name,
            "--version", str(version), "--kek", kek, "--signer", str(self.keys / "signer.pem"),
            **self.token.environment,
        )  # fmt: skip

    def ask(self, model: str) -> subprocess.CompletedProcess[str]:
        """Open a session with ``model``, ask something, and close it."""
        return live.cli(self.platform, "acme", "bulkhead", "chat", "hello", "--model", model, "--max-tokens", "4")

    def records(self, action: str) -> list[dict[str, Any]]:
        """Return the tenant's records of an action, newest first."""
        listed = live.cli(
            self.platform, "officer", "bulkhead", "audit", "list", "--limit", "100", "--action", action, "--json"
        )
        return [item["fields"] for item in json.loads(listed.stdout)]

    def wait_for_no_worker(self) -> None:
        """Wait until the workers of earlier tests are released, so that the next session starts one."""
        live.wait_until(lambda: not self.platform.admin("fleet", "partitions"), timeout_s=60, what="nothing runs")

    def refused_by(self, model: str) -> str:
        """Ask for a model that must not be served; return the error's code."""
        done = self.ask(model)
        assert done.returncode == 1, done.stdout
        assert "Traceback" not in done.stderr
        return done.stderr.split("error ", 1)[1].split(":", 1)[0]


class Broker:
    """`bulkhead broker serve` with its directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None
        self.address = ""

    def configure(self, *, tenant: str, log_vkey: str, signer: str, listen: str, software: str = "") -> None:
        """Write its files."""
        text = f"""
            listen = "{listen}"
            tls_certificate = "tls.pem"
            tls_key = "tls.key"
            tenant = "{tenant}"
            log_key = "{log_vkey}"
            trust_policy = "trust.toml"
            keks = ["file:{self.directory / "kek"}"]
            signers = ["{signer}"]
            state_directory = "state"
            development_mode = true
            {f'software = ["{software}"]' if software else ""}
        """
        (self.directory / "broker.toml").write_text(text)
        (self.directory / "trust.toml").write_text('accepted_kinds = ["simulated"]\nminimum_tier = "process"\n')

    def start(self) -> None:
        """Start it and wait for its address."""
        ports = self.directory / "address"
        ports.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [str(BIN / "bulkhead"), "broker", "serve", "--config", str(self.directory / "broker.toml"),
             "--ports-file", str(ports)],
            stderr=(self.directory / "broker.log").open("ab"), stdout=subprocess.DEVNULL,
        )  # fmt: skip
        until = time.monotonic() + BROKER_TIMEOUT_S
        while not ports.exists():
            assert self.process.poll() is None, (self.directory / "broker.log").read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
        self.address = ports.read_text()

    def stop(self) -> None:
        """Stop it."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(BROKER_TIMEOUT_S)

    def journal(self) -> list[dict[str, Any]]:
        """Return its own record of what it did."""
        lines = (self.directory / "state" / "releases.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sealed]:
    keys, plain = tmp_path_factory.mktemp("keys"), make_tiny_model(tmp_path_factory.mktemp("secret") / "m", seed=77)
    served = make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    broker = Broker(tmp_path_factory.mktemp("broker"))
    with softhsm_token(tmp_path_factory.mktemp("softhsm")) as token:
        uri = token.uri("platform-e2e")
        command("bulkhead", "model", "create-key", "--kek", uri, **token.environment)
        command("bulkhead", "model", "create-key", "--kek", f"file:{broker.directory / 'kek'}")
        signer = command("bulkhead", "model", "create-key", "--signer", str(keys / "signer.pem"))["signer"]
        os.environ.update(token.environment)
        platform = start_platform(
            served,
            trays=1,
            control=f'[sessions]\nidle_grace_s = 1\n[keys]\nkeks = ["{uri}"]\nsigners = ["{signer}"]\n',
            environment=token.environment,
        )
        try:
            tenants = platform.admin("tenant", "list")
            acme = next(item for item in tenants if item["name"] == "acme")
            made = Sealed(platform, plain, keys, token, acme["tenant_id"], broker)
            models = platform.root / "models"
            made.seal("in-token", 2, uri, models / "in-token")
            made.seal("at-tenant", 1, f"file:{broker.directory / 'kek'}", models / "at-tenant")
            command(
                "bulkhead", "broker", "create-certificate", "--name", "broker.acme.test",
                "--certificate", str(broker.directory / "tls.pem"), "--key", str(broker.directory / "tls.key"),
            )  # fmt: skip
            broker.configure(tenant=acme["tenant_id"], log_vkey=acme["log_vkey"], signer=signer, listen="127.0.0.1:0")
            broker.start()
            broker.configure(tenant=acme["tenant_id"], log_vkey=acme["log_vkey"], signer=signer, listen=broker.address)
            platform.admin("model", "add", str(models / "in-token"), "--context-length", "512", "--memory-mib", "64")
            platform.admin(
                "model", "add", str(models / "at-tenant"), "--context-length", "512", "--memory-mib", "64",
                "--custody", "tenant", "--broker", broker.address,
                "--broker-certificate", str(broker.directory / "tls.pem"), "--broker-name", "broker.acme.test",
            )  # fmt: skip
            names = ("tiny", "in-token", "at-tenant")
            allowed = [argument for name in names for argument in ("--model", name)]
            platform.admin("tenant", "update", "acme", *allowed)
            yield made
        finally:
            broker.stop()
            stop_platform(platform)


def test_a_model_whose_key_is_in_a_token_is_served(sealed: Sealed) -> None:
    """Platform custody: SoftHSM unwraps, the broker releases to the attested worker, and the log says so."""
    answered = sealed.ask("in-token")
    assert answered.returncode == 0, answered.stderr
    released = sealed.records("key.released")[0]
    assert (released["model"], released["data"]["custody"], released["data"]["version"]) == ("in-token", "platform", 2)
    assert released["data"]["simulated"] is True
    decision = next(item for item in sealed.records("decision") if item["session"] == released["session"])
    assert {"type": "key_custody", "custody": "platform"} in decision["data"]["obligations"]
    assert released["pair_id"] == decision["pair_id"]


def test_a_model_whose_key_the_tenant_holds_is_served(sealed: Sealed) -> None:
    """Tenant custody: the tenant's own broker decides; its journal and the tenant's log tell the same."""
    answered = sealed.ask("at-tenant")
    assert answered.returncode == 0, answered.stderr
    released, own = sealed.records("key.released")[0], sealed.broker.journal()[-1]
    assert (released["model"], released["data"]["custody"]) == ("at-tenant", "tenant")
    assert own["outcome"] == "released"
    for name in ("manifest_digest", "decision_leaf_hash"):
        assert own[name] == released["data"][name]
    assert own["evidence_digest"] == released["evidence"]


def test_the_plaintext_is_in_no_file_log_or_core(sealed: Sealed) -> None:
    """After serving both models no 32 bytes of the weights stand anywhere that the platform wrote.

    A worker that is made to abort leaves no core; of one whose memory is locked nothing is in the host's swap.
    """
    weights = (sealed.plain / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(weights[:8], "little")
    canaries = [weights[at : at + 32] for at in np.linspace(start, len(weights) - 32, 64, dtype=int).tolist()]
    canaries.append(b'"vocab"')  # the tokenizer is sealed, too
    assert sealed.ask("in-token").returncode == 0
    workers = live.workers(sealed.platform)
    assert workers
    for pid in workers:
        assert (Path(f"/proc/{pid}/limits").read_text().split("Max core file size")[1].split()[:2]) == ["0", "0"]
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert status["VmLck"].split()[0] == "0" or status["VmSwap"].split()[0] == "0"
        os.kill(pid, signal.SIGABRT)
    time.sleep(1)
    looked = 0
    roots = [sealed.platform.root, sealed.platform.run_directory, sealed.broker.directory]
    for path in (path for root in roots for path in root.rglob("*")):
        if path.is_file() and path.parent.name != "tiny":  # the plain model that others are served from
            assert not path.name.startswith("core"), path
            data = path.read_bytes()
            looked += 1
            assert not any(canary in data for canary in canaries), path
    assert looked > 30


TAMPERING = [
    ("a changed byte", "MODEL_ALTERED"),
    ("a missing shard", "MODEL_FILE_MISSING"),
    ("a rolled-back manifest", "MODEL_ROLLED_BACK"),
    ("swapped files", "MODEL_FILE_TRUNCATED"),
]


@pytest.mark.parametrize(("what", "code"), TAMPERING, ids=[item[0] for item in TAMPERING])
def test_tampering_on_the_hosts_disk_is_refused_by_name(sealed: Sealed, what: str, code: str) -> None:
    """Whoever writes the agent's disk gets no session out of it; the caller reads what was done."""
    directory = sealed.platform.root / "models" / "in-token"
    kept = {path: path.read_bytes() for path in directory.iterdir()}
    sealed.wait_for_no_worker()
    first, second = directory / "00002.sealed", directory / "00003.sealed"
    try:
        if what == "a changed byte":
            first.write_bytes(bytes((kept[first][0] ^ 1,)) + kept[first][1:])
        elif what == "a missing shard":
            first.unlink()
        elif what == "swapped files":
            first.write_bytes(kept[second])
            second.write_bytes(kept[first])
        else:
            old = sealed.platform.root / "old"
            sealed.seal("in-token", 1, sealed.token.uri("platform-e2e"), old)
            for path in directory.iterdir():
                path.write_bytes((old / path.name).read_bytes())
        assert sealed.refused_by("in-token") == code
    finally:
        for path, data in kept.items():
            path.write_bytes(data)


def test_what_was_put_back_is_served_again(sealed: Sealed) -> None:
    """After the tampering tests the same files are the same model: nothing was remembered against them."""
    assert sealed.ask("in-token").returncode == 0


def test_a_worker_that_the_tenants_policy_refuses_gets_no_key_and_the_log_says_so(sealed: Sealed) -> None:
    """Software that the tenant's broker does not accept: no key, a typed error, and a record in both logs."""
    settings = (sealed.broker.directory / "broker.toml").read_text()
    sealed.wait_for_no_worker()
    sealed.broker.stop()
    (sealed.broker.directory / "broker.toml").write_text(settings + '\nsoftware = ["another-worker 9"]\n')
    sealed.broker.start()
    try:
        assert sealed.refused_by("at-tenant") == "EVIDENCE_POLICY"
        refused, own = sealed.records("key.refused")[0], sealed.broker.journal()[-1]
        assert (refused["decision"], refused["reasons"][0]["code"]) == ("deny", "EVIDENCE_POLICY")
        assert (own["outcome"], own["code"]) == ("refused", "EVIDENCE_POLICY")
        assert refused["evidence"] == own["evidence_digest"]
    finally:
        sealed.broker.stop()
        (sealed.broker.directory / "broker.toml").write_text(settings)


def test_without_its_broker_a_tenants_model_is_unavailable(sealed: Sealed) -> None:
    """The broker of the test before is down: a typed error at once, recorded; back again, the model is served."""
    assert sealed.refused_by("at-tenant") == "KEY_BROKER"
    assert sealed.records("key.refused")[0]["reasons"][0]["code"] == "KEY_BROKER"
    sealed.broker.start()
    assert sealed.ask("at-tenant").returncode == 0
