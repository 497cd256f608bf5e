"""A prompt and its answer are nowhere but in the tenant's process and its worker."""

import base64
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bulkhead.client import Bulkhead
from bulkhead.errors import ContextLengthError, SimulatedEvidenceError
from scripts.local_platform import BIN, LocalPlatform
from tests.conftest import stop_platform
from tests.simulator import provisioned
from tests.simulator.commands import CommandedPlatform
from tests.simulator.relay import RecordingRelay

MIN_ANSWER_CHARS = 12
MIN_RECORDED_BYTES = 2_000


@dataclass(frozen=True, slots=True)
class Wiretapped:
    """A platform each of whose connections passes a recording relay."""

    platform: LocalPlatform
    client_to_control: RecordingRelay
    client_to_worker: RecordingRelay
    agent_to_control: RecordingRelay


@pytest.fixture(scope="module")
def wiretapped(tiny_model: Path) -> Iterator[Wiretapped]:
    """Start one tray behind three relays."""
    root = Path(tempfile.mkdtemp(prefix="bh-"))
    with RecordingRelay() as to_control, RecordingRelay() as to_worker, RecordingRelay() as agent_to_control:
        platform = CommandedPlatform(
            root=root,
            model=tiny_model,
            trays=1,
            say=lambda _: None,
            model_name="tiny",
            internal_address=agent_to_control.address,
        )
        ports = platform.ports_wanted()
        platform.agent_overrides = f'[ingress]\nport = {ports["spare"]}\nadvertise = "{to_worker.address}"\n'
        to_control.target = f"127.0.0.1:{ports['public']}"
        to_worker.target = f"127.0.0.1:{ports['spare']}"
        agent_to_control.target = f"127.0.0.1:{ports['internal']}"
        try:
            provisioned.fill(platform)
            platform.up()
            profiles = platform.client_config.read_text()
            platform.client_config.write_text(profiles.replace(to_control.target, to_control.address))
            yield Wiretapped(platform, to_control, to_worker, agent_to_control)
        finally:
            stop_platform(platform)
            shutil.rmtree(root, ignore_errors=True)


def _encodings(secret: str) -> list[bytes]:
    raw = secret.encode()
    # Base64 of the middle, at each alignment, finds the text inside a longer encoded string.
    aligned = [base64.b64encode(raw[start : len(raw) - (len(raw) - start) % 3]) for start in range(3)]
    return [raw, raw.hex().encode(), *aligned, *(part.translate(bytes.maketrans(b"+/", b"-_")) for part in aligned)]


def _found(secret: str, data: bytes) -> bool:
    return any(encoding in data for encoding in _encodings(secret))


def test_search_finds_what_it_looks_for() -> None:
    """The search used below is able to fail: it finds plain, hexadecimal and base64 copies."""
    canary = "canary-" + "x7" * 8
    for copy in (canary.encode(), canary.encode().hex().encode(), base64.b64encode(b"ab" + canary.encode() + b"c")):
        assert _found(canary, b"..." + copy + b"...")


@pytest.mark.e2e
def test_canary_prompt_and_answer_are_seen_nowhere(wiretapped: Wiretapped) -> None:
    """No relay, log, SQL file, spool or audit record holds the prompt or the answer, in any common encoding."""
    platform = wiretapped.platform
    canary = "canary-" + secrets.token_hex(12)
    with Bulkhead.from_profile("acme", path=platform.client_config) as client, client.open_session() as session:
        completion = session.generate_text(f"Please repeat: {canary}", max_tokens=48, temperature=0.0)
        refused = "canary-refused-" + secrets.token_hex(12)
        with pytest.raises(ContextLengthError):
            session.generate_text(refused * 2_000, max_tokens=8)
    answer = completion.text.strip()
    assert len(answer) >= MIN_ANSWER_CHARS, "the answer is too short to be searched for"
    secret_texts = [canary, refused, answer]

    relays = {
        "client to control plane": wiretapped.client_to_control,
        "client to worker": wiretapped.client_to_worker,
        "agent to control plane": wiretapped.agent_to_control,
    }
    for name, relay in relays.items():
        assert len(relay.recorded) > MIN_RECORDED_BYTES, f"nothing passed the relay {name}"
        assert not any(_found(text, relay.recorded) for text in secret_texts), name
    searched = 0
    for path in [*platform.root.rglob("*"), *platform.run_directory.rglob("*")]:
        if path.is_file() and "models" not in path.relative_to(path.anchor).parts[-3:]:
            data = path.read_bytes()
            searched += 1
            assert not any(_found(text, data) for text in secret_texts), path
    assert searched >= 10
    records = platform.run([str(BIN / "bulkhead"), "audit", "list", "--json", "--limit", "500"], profile="officer")
    assert "session.open" in records
    assert not any(_found(text, records.encode()) for text in secret_texts)


@pytest.mark.e2e
def test_nothing_is_sent_to_a_worker_that_was_not_verified(wiretapped: Wiretapped) -> None:
    """An SDK outside development mode refuses the simulated worker before it even connects to it."""
    canary = "canary-" + secrets.token_hex(12)
    before = wiretapped.client_to_worker.connections
    path = wiretapped.platform.client_config
    with (
        Bulkhead.from_profile("acme", path=path, development_mode=False) as client,
        pytest.raises(SimulatedEvidenceError),
        client.open_session() as session,
    ):
        session.generate_text(canary, max_tokens=8)
    assert wiretapped.client_to_worker.connections == before
    assert not _found(canary, wiretapped.client_to_control.recorded)
