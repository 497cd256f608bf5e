"""Another language: a Go client, written from docs/protocol.md with the standard library alone, against ours."""

import base64
import json
import os
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from bulkhead.client import Bulkhead
from bulkhead.key_files import load_key_file
from scripts.local_platform import LocalPlatform

SOURCES = Path(__file__).parent / "client"
VECTORS = Path(__file__).parents[1] / "vectors" / "protocol"
BUILD_TIMEOUT_S = 240
ASK_TIMEOUT_S = 150


@pytest.fixture(scope="session")
def go_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built client; a machine without Go 1.26 fails here."""
    go = shutil.which("go")
    assert go is not None, "Go 1.26 or later is needed: install it and put `go` on PATH"
    binary = tmp_path_factory.mktemp("interop") / "bulkhead-interop"
    environment = {**os.environ, "GOPROXY": "off", "GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false -mod=readonly"}
    for command in (["vet", "./..."], ["build", "-trimpath", "-o", str(binary), "."]):
        done = subprocess.run(
            [go, *command],
            cwd=SOURCES,
            env=environment,
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    return binary


def run(client: Path, *arguments: str, stdin: str = "") -> tuple[int, dict[str, Any]]:
    """Return exit status and printed JSON."""
    done = subprocess.run(
        [str(client), *arguments], input=stdin, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def settings(platform: LocalPlatform, *, name: str = "acme", **changes: Any) -> str:
    """Return the Go client's settings for a profile of the platform; its byte strings are standard base64."""
    profile = tomllib.loads(platform.client_config.read_text())["profile"][name]
    issuers = profile.get("ticket_issuers") or [profile["ticket_issuer"]]
    made = {
        "address": profile["address"],
        "server_name": profile["server_name"],
        "authority_file": profile["ca_file"],
        "api_key": (platform.client_config.parent / profile["api_key_file"]).read_text().strip(),
        "tenant": profile["tenant"],
        "log_vkey": profile["log_vkey"],
        "ticket_issuers": [base64.b64encode(base64.urlsafe_b64decode(key + "=")).decode() for key in issuers],
        "trust": {**profile["trust"], "development_mode": True},
        "model": profile["defaults"]["model"],
        "region": profile["defaults"]["region"],
        "minimum_tier": "process",
        "padding": "default",
        "prompt": "What is the capital of France?",
        "max_tokens": 24,
    }
    if (root := profile.get("tenant_root_key_file")) is not None:
        seed = load_key_file(platform.client_config.parent / root, what="root").private_bytes_raw()
        made["tenant_root_seed"] = base64.b64encode(seed).decode()
    return json.dumps(made | changes)


def test_it_needs_nothing_but_the_standard_library() -> None:
    """The module requires no other."""
    assert (SOURCES / "go.mod").read_text().split() == ["module", "bulkhead-interop", "go", "1.26"]
    assert not (SOURCES / "go.sum").exists()


def test_every_vector_holds(go_client: Path) -> None:
    """All committed vectors, of what holds and of what must be refused, give the recorded values and codes."""
    status, told = run(go_client, "vectors", str(VECTORS))
    assert told["failures"] is None
    assert status == 0
    recorded = json.loads((VECTORS / "refusals.json").read_text())
    usage = json.loads((VECTORS / "totals.json").read_text())
    cases = sum(map(len, recorded.values())) + 3 * len(usage["accepted"]) + len(usage["refused"])
    assert told["checked"] > cases + 60


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("hpke", "sealed"),
        ("chunks", "chunks"),
        ("schedule", "commitment"),
        ("statement", "statement"),
        ("exchange", "receipt_digest"),
        ("refusals", "code"),
        ("totals", "digest"),
        ("totals", "code"),
    ],
)
def test_a_changed_vector_is_noticed(go_client: Path, tmp_path: Path, name: str, key: str) -> None:
    """The check is able to fail: another digit, or another code, in any file is a failure."""
    for path in VECTORS.glob("*.json"):
        shutil.copy(path, tmp_path)
    changed = tmp_path / f"{name}.json"
    text = changed.read_text()
    at = text.index('"', text.index(f'"{key}": ') + len(key) + 4) + 1
    changed.write_text(text[:at] + ("1" if text[at] != "1" else "2") + text[at + 1 :])
    status, told = run(go_client, "vectors", str(tmp_path))
    assert status == 1
    assert len(told["failures"]) >= 1


@pytest.mark.e2e
@pytest.mark.parametrize("padding", ["default", "strict"])
def test_round_trip_with_a_running_worker(go_client: Path, platform: LocalPlatform, padding: str) -> None:
    """It opens a session, verifies the worker, gets the answer that our SDK gets, and its receipt holds."""
    status, told = run(go_client, "ask", stdin=settings(platform, padding=padding))
    assert status == 0, told
    assert (told["kind"], told["simulated"], told["padding"]) == ("simulated", True, padding)
    assert told["end"]["type"] == "end"
    assert told["tokens"] == told["end"]["usage"]["completion_tokens"] > 0
    assert told["receipt_digest"] == told["fetched_receipt_digest"]
    receipt = json.loads(told["receipt"])["receipt"]
    assert (receipt["request_id"], receipt["session"]) == (told["request_id"], told["session"])
    if padding == "strict":
        assert told["messages"] == told["chunks"] >= 16
    assert told["replay"] == "SEQUENCE_REPLAYED"
    assert told["stolen_ticket"] == "SIGNATURE_INVALID"
    assert told["uncertified"] == "CERTIFICATE_INVALID"
    with Bulkhead.from_profile("acme", path=platform.client_config) as client, client.open_session() as session:
        ours = session.generate_text("What is the capital of France?", max_tokens=24)
    assert told["text"] == ours.text


@pytest.mark.e2e
def test_round_trip_of_a_tenant_with_a_root(go_client: Path, platform: LocalPlatform) -> None:
    """It certifies its session key, checks the worker's root and is answered; a key of no certified kind is not."""
    asked = {"name": "mercy", "minimum_tier": "gpu", "purpose": "treatment", "data_classes": ["phi"]}
    status, told = run(go_client, "ask", stdin=settings(platform, **asked))
    assert status == 0, told
    assert told["tokens"] == told["end"]["usage"]["completion_tokens"] > 0
    assert told["receipt_digest"] == told["fetched_receipt_digest"]
    assert told["stolen_ticket"] == "SIGNATURE_INVALID"
    assert told["uncertified"] == "CERTIFICATE_ROOT"
    for seed, code in ((base64.b64encode(bytes(32)).decode(), "TENANT_ROOT_MISMATCH"), (None, "TENANT_ROOT_REQUIRED")):
        status, told = run(go_client, "ask", stdin=settings(platform, **asked, tenant_root_seed=seed))
        assert (status, told["code"]) == (1, code)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"trust": {"accepted_kinds": ["simulated"], "minimum_tier": "process"}}, "EVIDENCE_SIMULATED"),
        ({"ticket_issuers": [base64.b64encode(bytes(32)).decode()]}, "TICKET_INVALID"),
        ({"log_vkey": "log+28a5a1d3+AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}, "CHECKPOINT_INVALID"),
        ({"minimum_tier": "confidential"}, "POLICY_DENIED"),
        ({"api_key": "bhk_nobody"}, "CREDENTIAL_INVALID"),
        ({"model": "no-such-model"}, "MODEL_UNKNOWN"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_refusals_of_a_running_platform(
    go_client: Path, platform: LocalPlatform, changes: dict[str, Any], code: str
) -> None:
    """Nothing is asked of a worker that does not verify, and the platform's own refusals arrive as their codes."""
    status, told = run(go_client, "ask", stdin=settings(platform, **changes))
    assert status == 1
    assert told["code"] == code, told
