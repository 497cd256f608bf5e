"""The main job on real processes: two tenants, a denial, an officer's proof, a changed byte, an end of everything."""

import asyncio
import json
import os
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from bulkhead.client import AsyncBulkhead, Bulkhead
from bulkhead.errors import EvidencePolicyError, PolicyDeniedError, SimulatedEvidenceError
from scripts.local_platform import BIN, LocalPlatform
from tests.conftest import start_platform, stop_platform

pytestmark = pytest.mark.e2e


def cli(platform: LocalPlatform, profile: str, *command: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command as a person would and insist on its exit code."""
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        env={**os.environ, "BULKHEAD_CONFIG": str(platform.client_config), "BULKHEAD_PROFILE": profile},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == expect, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def records(platform: LocalPlatform, profile: str, *options: str) -> list[dict[str, Any]]:
    """Return the records that ``bulkhead audit list`` shows, newest first."""
    listed = cli(platform, profile, "bulkhead", "audit", "list", "--json", "--limit", "500", *options)
    return json.loads(listed.stdout)  # type: ignore[no-any-return]


async def test_two_tenants_stream_at_the_same_time_from_their_own_partitions(platform: LocalPlatform) -> None:
    """A hospital on tier gpu and a start-up on tier mig are served by different workers, side by side."""

    async def ask(profile: str) -> tuple[str, str, float, float, int]:
        async with (
            AsyncBulkhead.from_profile(profile, path=platform.client_config) as client,
            client.open_session() as session,
        ):
            await barrier.wait()
            started, tokens = 0.0, 0
            generation = session.generate("Tell me about lighthouses.", max_tokens=200)
            async for delta in generation:
                started = started or time.monotonic()
                tokens += delta.tokens
            assert session.simulated
            assert generation.receipt.simulated
            assert generation.usage.completion_tokens >= tokens > 0
            descriptor = session.worker.descriptor
            return descriptor.partition, session.tier.value, started, time.monotonic(), tokens

    barrier = asyncio.Barrier(2)
    hospital, startup = await asyncio.gather(ask("mercy"), ask("acme"))
    assert hospital[0] != startup[0]
    assert (hospital[1], startup[1]) == ("gpu", "mig")
    assert hospital[2] < startup[3]
    assert startup[2] < hospital[3]
    live = {entry["partition_id"]: entry for entry in platform.admin("fleet", "partitions")}
    assert live[hospital[0]]["tenant_id"] != live[startup[0]]["tenant_id"]


def test_a_denial_reaches_caller_and_log_in_plain_words(platform: LocalPlatform) -> None:
    """Policy's code and sentence are in the SDK's error, on the command line, and in the tenant's log."""
    with (
        Bulkhead.from_profile("mercy", path=platform.client_config) as client,
        pytest.raises(PolicyDeniedError) as caught,
        client.open_session(purpose="marketing"),
    ):
        pass
    reason = json.loads(caught.value.details["reasons"])[0]
    assert reason["code"] == "HIPAA_PURPOSE"
    assert "treatment" in reason["message"]
    told = cli(platform, "mercy", "bulkhead", "chat", "--purpose", "marketing", "hello", expect=1)
    assert "POLICY_DENIED" in told.stderr
    assert reason["message"].rstrip(".") in told.stderr
    assert reason["code"] in told.stderr
    newest = records(platform, "mercy-officer", "--decision", "deny")[0]
    assert "HIPAA_PURPOSE" in json.dumps(newest)


def test_an_officer_sees_who_what_why_and_where_and_proves_it(platform: LocalPlatform, tmp_path: Path) -> None:
    """Listing, proof, export and offline verification work, and fail with another log's key or a changed byte."""
    cli(platform, "acme", "bulkhead", "chat", "hello", "--max-tokens", "4")
    shown = json.dumps(records(platform, "officer"))
    for fact in ("session.open", "subj_", "developer", "mig", "part_", "rack1-tray", "simulated", '"allow"'):
        assert fact in shown, fact
    decision = records(platform, "officer", "--decision", "allow")[0]
    proof = cli(platform, "officer", "bulkhead", "audit", "prove", str(decision["index"]), "--json")
    assert json.loads(proof.stdout)["index"] == decision["index"]
    export = tmp_path / "acme.jsonl"
    cli(platform, "officer", "bulkhead", "audit", "export", str(export))
    verified = cli(platform, "officer", "bulkhead", "audit", "verify", str(export), "--json")
    assert json.loads(verified.stdout)
    mercy_key = platform.admin("tenant", "show", "mercy-hospital")["log_vkey"]
    refused = cli(platform, "officer", "bulkhead", "audit", "verify", str(export), "--log-key", mercy_key, expect=1)
    assert "error" in refused.stderr
    damaged = export.read_bytes().replace(b"developer", b"developes", 1)
    export.write_bytes(damaged)
    named = cli(platform, "officer", "bulkhead", "audit", "verify", str(export), expect=1)
    assert "record" in named.stderr


def test_a_changed_byte_in_a_copy_of_the_database_names_the_record(platform: LocalPlatform, tmp_path: Path) -> None:
    """A copy verifies; one byte of one record changed, `bulkhead-audit verify` exits 1 and names that record."""
    copy = tmp_path / "copy.db"
    live = sqlite3.connect(f"file:{platform.root / 'control' / 'audit' / 'audit.db'}?mode=ro", uri=True)
    changed = sqlite3.connect(copy)
    live.backup(changed)
    live.close()
    cli(platform, "admin", "bulkhead-audit", "verify", str(copy), "--json")
    position, leaf = changed.execute("SELECT pos, leaf FROM audit_leaf ORDER BY pos DESC LIMIT 1").fetchone()
    middle = len(leaf) // 2
    flipped = leaf[:middle] + bytes([leaf[middle] ^ 1]) + leaf[middle + 1 :]
    with changed:
        changed.execute("UPDATE audit_leaf SET leaf = ? WHERE pos = ?", (flipped, position))
    changed.close()
    record_id = json.loads(leaf)["id"]
    refused = cli(platform, "admin", "bulkhead-audit", "verify", str(copy), expect=1)
    assert record_id in refused.stderr


def test_simulated_is_named_everywhere_and_refused_outside_development(platform: LocalPlatform) -> None:
    """The banner, the evidence, the session and the records say simulated; a production SDK sends no prompt."""
    banner = cli(platform, "acme", "bulkhead", "chat", "hello", "--max-tokens", "2")
    assert "SIMULATED" in banner.stderr
    evidence = cli(platform, "acme", "bulkhead", "evidence", "show", "--json")
    assert "simulated" in evidence.stdout.lower()
    sessions = cli(platform, "acme", "bulkhead", "session", "list", "--json")
    assert json.loads(sessions.stdout)[0]["simulated"] is True
    with (
        Bulkhead.from_profile("acme", path=platform.client_config, development_mode=False) as production,
        pytest.raises(SimulatedEvidenceError),
        production.open_session(),
    ):
        pass


def test_receipts_reach_the_log_with_their_counts(platform: LocalPlatform) -> None:
    """Every request of a session is counted in its `receipts` leaf when the session closes."""
    with Bulkhead.from_profile("acme", path=platform.client_config) as client, client.open_session() as session:
        answers = [session.generate_text(f"number {number}", max_tokens=5) for number in range(3)]
        session_id = session.session_id
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = [
            record
            for record in records(platform, "officer", "--session", session_id)
            if "receipts" in json.dumps(record)
        ]
        leaves = [json.dumps(record) for record in found]
        if any('"count": 3' in leaf for leaf in leaves):
            break
        time.sleep(0.3)
    else:
        pytest.fail(f"no receipts leaf with count 3: {leaves}")
    total = sum(answer.usage.completion_tokens for answer in answers)
    assert any(f'"completion_tokens": {total}' in leaf for leaf in leaves)


def test_an_idle_partition_is_released_scrubbed_and_its_process_ends(tiny_model: Path) -> None:
    """After the idle grace the worker ends, its place is scrubbed and freed, and the log says so step by step."""
    platform = start_platform(tiny_model, control="[sessions]\nidle_grace_s = 1\n", trays=1)
    try:
        cli(platform, "acme", "bulkhead", "chat", "hello", "--max-tokens", "4")
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline and platform.admin("fleet", "partitions"):
            time.sleep(0.3)
        assert platform.admin("fleet", "partitions") == []
        shown = json.dumps(records(platform, "officer"))
        for step in ("draining", "scrubbing", "freed"):
            assert f"partition.{step}" in shown, step
        assert not _workers(platform)
        agent = platform.processes.remembered()
        platform.down()
        assert not any(entry.alive() for entry in agent)
        assert not platform.run_directory.exists()
    finally:
        stop_platform(platform)


def _workers(platform: LocalPlatform) -> list[int]:
    """Return the worker processes of this platform's agents."""
    agents = {entry.pid for entry in platform.processes.remembered() if entry.name.startswith("rack1")}
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) in agents and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


def test_operator_evidence_is_verified_without_development_mode(tiny_model: Path) -> None:
    """A host agent's evidence is verified under the pinned operator key, and refused under any other."""
    platform = start_platform(tiny_model, trays=1)
    try:
        platform.processes.stop(["rack1-tray01"])
        config = platform.root / "rack1-tray01.toml"
        config.write_text(config.read_text().replace('backend = "simulated"', 'backend = "host"'))
        platform.start_agent("rack1-tray01")
        platform.wait_for_agents()
        platform.admin("tenant", "update", "acme", "--minimum-tier", "process")
        key = _evidence_key(platform.root / "rack1-tray01" / "evidence.key")
        profiles = platform.client_config.read_text()
        trust = 'accepted_kinds = ["simulated", "operator"]\nminimum_tier = "mig"'
        assert trust in profiles

        def pinned(value: str) -> str:
            policy = f'accepted_kinds = ["operator"]\nminimum_tier = "process"\noperator_keys = ["{value}"]'
            return profiles.replace(trust, policy).replace('tier = "mig"', 'tier = "process"')

        platform.client_config.write_text(pinned(key))
        with (
            Bulkhead.from_profile("acme", path=platform.client_config, development_mode=False) as client,
            client.open_session() as session,
        ):
            assert not session.simulated
            assert session.tier.value == "process"
            assert session.generate_text("hello", max_tokens=4).usage.completion_tokens > 0
        platform.client_config.write_text(pinned("A" * 43))
        with (
            Bulkhead.from_profile("acme", path=platform.client_config, development_mode=False) as client,
            pytest.raises(EvidencePolicyError),
            client.open_session(),
        ):
            pass
    finally:
        stop_platform(platform)


def _evidence_key(path: Path) -> str:
    """Return the public half of an agent's evidence key as a profile pins it."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from bulkhead.encoding import b64url_encode

    key = load_pem_private_key(path.read_bytes(), password=None)
    assert isinstance(key, Ed25519PrivateKey)
    return b64url_encode(key.public_key().public_bytes_raw())
