"""The main job on real processes: two tenants, a denial, an officer's proof, a changed byte, an end of everything."""

import asyncio
import json
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bulkhead.client import AsyncBulkhead, AsyncSession, Bulkhead, RecordFilter
from bulkhead.errors import EvidencePolicyError, PolicyDeniedError, SimulatedEvidenceError
from scripts.local_platform import LocalPlatform
from tests.conftest import start_platform, stop_platform
from tests.simulator import live

pytestmark = pytest.mark.e2e

ROUNDS = 5  # a busy machine may serve one answer whole before it begins another; who takes turns never overlaps


def cli(platform: LocalPlatform, profile: str, *command: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command as a person would and insist on its exit code."""
    done = live.cli(platform, profile, *command)
    assert done.returncode == expect, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def told(platform: LocalPlatform, profile: str, *command: str) -> Any:
    """Return what a command prints with ``--json``."""
    return json.loads(cli(platform, profile, *command, "--json").stdout)


def records(platform: LocalPlatform, profile: str, *options: str) -> list[dict[str, Any]]:
    """Return the records that ``bulkhead audit list`` shows, newest first."""
    return told(platform, profile, "bulkhead", "audit", "list", "--limit", "500", *options)  # type: ignore[no-any-return]


async def test_two_tenants_stream_at_the_same_time_from_their_own_partitions(platform: LocalPlatform) -> None:
    """A hospital on tier gpu and a start-up on tier mig are served side by side, by a process for each partition."""

    async def stream(session: AsyncSession) -> tuple[float, float]:
        """Return when the first part of an answer came, and when its end."""
        started, tokens = 0.0, 0
        generation = session.generate("Tell me about lighthouses.", max_tokens=200)
        async for delta in generation:
            started = started or time.monotonic()
            tokens += delta.tokens
        assert session.simulated
        assert generation.receipt.simulated
        assert generation.usage.completion_tokens >= tokens > 0
        return started, time.monotonic()

    async with (
        AsyncBulkhead.from_profile("mercy", path=platform.client_config) as mercy,
        AsyncBulkhead.from_profile("acme", path=platform.client_config) as acme,
        mercy.open_session() as hospital,
        acme.open_session() as startup,
    ):
        for _ in range(ROUNDS):
            one, other = await asyncio.gather(stream(hospital), stream(startup))
            if beside := one[0] < other[1] and other[0] < one[1]:
                break
        assert beside
        served = {session.worker.descriptor.partition: session.tier.value for session in (hospital, startup)}
        assert list(served.values()) == ["gpu", "mig"]
        present = {entry["partition_id"]: entry for entry in platform.admin("fleet", "partitions")}
        assert len({present[partition]["tenant_id"] for partition in served}) == 2
        assert {partition: present[partition]["tier"] for partition in served} == served
        live.wait_until(
            lambda: len(live.workers(platform)) == len(platform.admin("fleet", "partitions")),
            timeout_s=20,
            what="each partition is a process",
        )


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
    decision = records(platform, "officer", "--action", "decision", "--decision", "allow")[0]
    fields = decision["fields"]
    assert fields["subject"].startswith("subj_")  # who
    assert (fields["roles"], fields["model"], fields["data"]["on"]) == (["developer"], "tiny", "session.open")  # what
    assert len(bytes.fromhex(fields["bundle"])) == 32  # why: by these policies, on these facts
    assert fields["data"]["input"]["context"]["tenant"]["models"] == ["tiny"]
    outcome = records(platform, "officer", "--action", "outcome", "--session", fields["session"])[0]["fields"]
    assert (outcome["pair_id"], outcome["data"]["result"]) == (fields["pair_id"], "ready")
    assert (outcome["tier"], outcome["data"]["agent"][:10]) == ("mig", "rack1-tray")  # where
    assert outcome["partition"].startswith("part_")
    table = cli(platform, "officer", "bulkhead", "audit", "list", "--session", fields["session"]).stdout
    assert f"policy bundle {fields['bundle'][:12]}" in table
    proof = told(platform, "officer", "bulkhead", "audit", "prove", fields["record_id"])
    assert (proof["verified"], proof["index"]) == (True, decision["index"])
    with Bulkhead.from_profile("officer", path=platform.client_config) as officer:
        outcomes = officer.audit_records(RecordFilter(action="outcome", session_id=fields["session"]))
        assert [found.fields.pair_id for found in outcomes] == [fields["pair_id"]]
        acme_key = platform.admin("tenant", "show", "acme")["log_vkey"]
        assert officer.prove(fields["record_id"], vkey=acme_key).index == decision["index"]
    mercy_key = platform.admin("tenant", "show", "mercy-hospital")["log_vkey"]
    another = ("bulkhead", "audit", "prove", fields["record_id"], "--log-key", mercy_key)
    assert "error CHECKPOINT_INVALID" in cli(platform, "officer", *another, expect=1).stderr
    export = tmp_path / "acme.jsonl"
    cli(platform, "officer", "bulkhead", "audit", "export", str(export))
    verified = told(platform, "officer", "bulkhead", "audit", "verify", str(export))
    assert verified["verified"]
    assert verified["records"] > decision["index"]
    refused = cli(platform, "officer", "bulkhead", "audit", "verify", str(export), "--log-key", mercy_key, expect=1)
    assert "error CHECKPOINT_INVALID" in refused.stderr
    whole = export.read_bytes()
    place = whole.index(fields["subject"].encode(), whole.index(f'"record","index":{decision["index"]},'.encode()))
    export.write_bytes(whole[:place] + b"t" + whole[place + 1 :])
    named = cli(platform, "officer", "bulkhead", "audit", "verify", str(export), expect=1)
    assert "error RECORD_INVALID" in named.stderr
    assert f"record {decision['index']} ({fields['record_id']})" in named.stderr


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


def test_simulated_is_named_everywhere(platform: LocalPlatform) -> None:
    """Banner, chat, evidence, session, partition, agent, receipt and audit records call the simulated rack so."""
    banner = cli(platform, "acme", "bulkhead", "chat", "hello", "--max-tokens", "2")
    assert "SIMULATED" in banner.stderr
    assert told(platform, "acme", "bulkhead", "chat", "hello", "--max-tokens", "2")["simulated"] is True
    evidence = told(platform, "acme", "bulkhead", "evidence", "show")
    assert (evidence["kind"], evidence["simulated"], evidence["verified"]) == ("simulated", True, False)
    assert "SIMULATED" in cli(platform, "acme", "bulkhead", "evidence", "show").stdout
    session = told(platform, "acme", "bulkhead", "session", "show", evidence["session"])
    assert (session["state"], session["tier"], session["simulated"]) == ("closed", "mig", True)
    assert "(SIMULATED)" in cli(platform, "acme", "bulkhead", "session", "show", evidence["session"]).stdout
    assert all(partition["simulated"] for partition in platform.admin("fleet", "partitions"))
    assert all(agent["simulated"] for agent in platform.admin("fleet", "agents"))
    outcome = records(platform, "officer", "--action", "outcome", "--session", evidence["session"])[0]["fields"]
    assert (outcome["data"]["evidence_kind"], outcome["data"]["simulated"]) == ("simulated", True)
    shown = cli(platform, "officer", "bulkhead", "audit", "list", "--session", evidence["session"]).stdout
    assert "(SIMULATED)" in shown


def test_an_sdk_outside_development_mode_refuses_the_simulated_worker(platform: LocalPlatform, tmp_path: Path) -> None:
    """EVIDENCE_SIMULATED from SDK and command line (exit 1), the session is closed, and no request was served."""
    with (
        Bulkhead.from_profile("acme", path=platform.client_config, development_mode=False) as production,
        pytest.raises(SimulatedEvidenceError) as caught,
        production.open_session(),
    ):
        pass
    assert caught.value.code == "EVIDENCE_SIMULATED"
    config = platform.client_config.with_name("production.toml")
    config.write_text(platform.client_config.read_text().replace("development_mode = true", "development_mode = false"))
    receipt = tmp_path / "receipt.json"
    ask = ("bulkhead", "--config", str(config), "chat", "--save-receipt", str(receipt), "the secret of a patient")
    refused = cli(platform, "acme", *ask, expect=1)
    assert "error EVIDENCE_SIMULATED" in refused.stderr
    assert (refused.stdout, receipt.exists()) == ("", False)
    newest = told(platform, "acme", "bulkhead", "session", "list")[:2]
    assert [session["state"] for session in newest] == ["closed", "closed"]
    for session in newest:
        assert records(platform, "officer", "--action", "receipts", "--session", session["session_id"]) == []


COMMANDS = (
    ("acme", "bulkhead session list"),
    ("acme", "bulkhead session list --open"),
    ("acme", "bulkhead profile list"),
    ("acme", "bulkhead profile check"),
    ("officer", "bulkhead profile check"),
    ("officer", "bulkhead audit list --action decision --limit 3"),
    ("officer", "bulkhead audit show 0"),
    ("officer", "bulkhead audit prove 0"),
    ("admin", "bulkhead-admin tenant list"),
    ("admin", "bulkhead-admin tenant show acme"),
    ("admin", "bulkhead-admin principal list --tenant acme"),
    ("admin", "bulkhead-admin model list"),
    ("admin", "bulkhead-admin policy list"),
    ("admin", "bulkhead-admin policy check policies"),
    ("admin", "bulkhead-admin fleet agents"),
    ("admin", "bulkhead-admin fleet partitions --all"),
)


@pytest.mark.parametrize(("profile", "command"), COMMANDS, ids=[command for _, command in COMMANDS])
def test_commands_speak_to_people_and_to_programs(platform: LocalPlatform, profile: str, command: str) -> None:
    """Without --json there is text, with it one JSON value, both from the running platform."""
    words = command.split()
    text = cli(platform, profile, *words).stdout
    assert text.strip()
    assert not text.lstrip().startswith(("{", "["))
    assert isinstance(told(platform, profile, *words), list | dict)


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


@pytest.fixture(scope="module")
def brief(tiny_model: Path) -> Iterator[LocalPlatform]:
    """A platform of one tray that releases what nobody uses after a second."""
    started = start_platform(tiny_model, control="[sessions]\nidle_grace_s = 1\n", trays=1)
    yield started
    stop_platform(started)


def test_an_idle_partition_is_released_scrubbed_and_its_process_ends(brief: LocalPlatform) -> None:
    """After the idle grace the worker ends, its place is scrubbed and freed, and the log says so step by step."""
    with Bulkhead.from_profile("acme", path=brief.client_config) as client, client.open_session() as session:
        partition = session.worker.descriptor.partition
        (worker,) = live.workers(brief)
        in_use = time.monotonic()
        while time.monotonic() - in_use < 2.0:  # beyond the grace: a session that is open keeps its worker
            assert session.generate_text("hello", max_tokens=1).usage.completion_tokens == 1
    live.wait_until(lambda: not Path(f"/proc/{worker}").exists(), timeout_s=20, what="the worker ends")
    live.wait_until(lambda: not brief.admin("fleet", "partitions"), timeout_s=20, what="its place is free")
    (ended,) = brief.admin("fleet", "partitions", "--all")
    assert (ended["partition_id"], ended["state"]) == (partition, "free")
    steps = [
        record["fields"]["action"]
        for record in reversed(records(brief, "officer"))
        if record["fields"]["partition"] == partition and record["fields"]["action"].startswith("partition.")
    ]
    expected = ("reserved", "creating", "attesting", "ready", "draining", "scrubbing", "freed")
    assert steps == [f"partition.{step}" for step in expected]


def test_operator_evidence_is_verified_without_development_mode(brief: LocalPlatform) -> None:
    """A host agent's evidence is verified under the pinned operator key, and refused under any other."""
    brief.processes.stop(["rack1-tray01"])
    config = brief.root / "rack1-tray01.toml"
    config.write_text(config.read_text().replace('backend = "simulated"', 'backend = "host"'))
    brief.start_agent("rack1-tray01")
    brief.wait_for_agents()
    brief.admin("tenant", "update", "acme", "--minimum-tier", "process")
    key = _evidence_key(brief.root / "rack1-tray01" / "evidence.key")
    profiles = brief.client_config.read_text()
    trust = 'accepted_kinds = ["simulated", "operator"]\nminimum_tier = "mig"'
    assert trust in profiles

    def pinned(value: str) -> str:
        policy = f'accepted_kinds = ["operator"]\nminimum_tier = "process"\noperator_keys = ["{value}"]'
        return profiles.replace(trust, policy).replace('tier = "mig"', 'tier = "process"')

    brief.client_config.write_text(pinned(key))
    with (
        Bulkhead.from_profile("acme", path=brief.client_config, development_mode=False) as client,
        client.open_session() as session,
    ):
        assert (session.simulated, session.tier.value) == (False, "process")
        answer = session.generate_text("hello", max_tokens=4)
        assert (answer.usage.completion_tokens, answer.receipt.simulated) == (4, False)
        session_id = session.session_id
    brief.client_config.write_text(pinned("A" * 43))
    with (
        Bulkhead.from_profile("acme", path=brief.client_config, development_mode=False) as client,
        pytest.raises(EvidencePolicyError),
        client.open_session(),
    ):
        pass
    outcome = records(brief, "officer", "--action", "outcome", "--session", session_id)[0]["fields"]
    assert (outcome["data"]["evidence_kind"], outcome["data"]["simulated"]) == ("operator", False)


def _evidence_key(path: Path) -> str:
    """Return the public half of an agent's evidence key as a profile pins it."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from bulkhead.encoding import b64url_encode

    key = load_pem_private_key(path.read_bytes(), password=None)
    assert isinstance(key, Ed25519PrivateKey)
    return b64url_encode(key.public_key().public_bytes_raw())
