"""Metrics and a profile on a running platform."""

import asyncio
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_plane.session.observing import PERIOD_S
from scripts.local_platform import LocalPlatform
from tests.simulator.live import cli, client

pytestmark = pytest.mark.e2e

QUESTION = "Is the patient in room seven allergic to penicillin?"


def metrics(platform: LocalPlatform, *options: str) -> list[str]:
    """Return what each tray's agent tells its scraper."""
    told = []
    for config in sorted(platform.root.glob("rack*-tray*.toml")):
        command = [sys.executable, "-m", "data_plane", "metrics", "--config", str(config), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        told.append(done.stdout)
    return told


async def test_an_agent_shows_its_partitions_and_nothing_of_one_request(platform: LocalPlatform) -> None:
    """After an answer the partition stands in the metrics by id and load; nothing names the request."""
    async with client(platform) as opened, opened.open_session() as session:
        answer = await session.generate_text(QUESTION, max_tokens=2)
        text = "".join(metrics(platform))
        samples = [sample for told in metrics(platform, "--json") for sample in json.loads(told)]
    assert f'bulkhead:num_requests_running{{model_name="tiny",partition="{answer.receipt.partition}"}}' in text
    assert "# TYPE bulkhead:time_to_first_token_seconds histogram" in text
    for secret in ("penicillin", answer.request_id, session.session_id):
        assert secret not in text
    assert {"bulkhead:num_requests_running", "bulkhead:num_requests_waiting"} <= {item["name"] for item in samples}
    assert {name for item in samples for name in item["labels"]} <= {"partition", "model_name", "finished_reason", "le"}


def test_a_tenant_profiles_a_step_of_its_own_answer(platform: LocalPlatform, tmp_path: Path) -> None:
    """The confined worker's trace arrives sealed, names operators, and tells nothing of the host or the prompt."""
    saved = tmp_path / "step.json.gz"
    done = cli(platform, "acme", "bulkhead", "chat", "--max-tokens", "4", "--save-profile", str(saved), QUESTION)
    assert done.returncode == 0, done.stdout + done.stderr
    trace = json.loads(gzip.decompress(saved.read_bytes()))
    assert set(trace) == {"displayTimeUnit", "traceEvents"}
    assert {"aten::index_select", "aten::max"} <= {event["name"] for event in trace["traceEvents"]}
    assert min(event["ts"] for event in trace["traceEvents"]) == 0
    assert {name for event in trace["traceEvents"] for name in event} == {"name", "ph", "pid", "tid", "ts", "dur"}


@pytest.mark.long
async def test_sixteen_answers_let_a_snapshot_out(own_platform: LocalPlatform) -> None:
    """After fifteen answers nothing is told, however long one waits; after the sixteenth all of them together are."""
    async with client(own_platform) as opened, opened.open_session() as session:
        for _ in range(15):
            await session.generate_text(QUESTION, max_tokens=2, ignore_eos=True)
        await asyncio.sleep(PERIOD_S + 5)
        assert "bulkhead:prompt_tokens_total{" not in "".join(metrics(own_platform))
        last = await session.generate_text(QUESTION, max_tokens=2, ignore_eos=True)
        prompt_tokens = last.usage.prompt_tokens
        async with asyncio.timeout(60):
            while "bulkhead:prompt_tokens_total{" not in (text := "".join(metrics(own_platform))):  # noqa: ASYNC110 - agents tell when asked
                await asyncio.sleep(1)
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    told = {name.partition("{")[0]: float(value) for name, value in values.items() if "le=" not in name}
    assert told["bulkhead:prompt_tokens_total"] == 16 * prompt_tokens
    assert told["bulkhead:generation_tokens_total"] == 32
    assert told["bulkhead:time_to_first_token_seconds_count"] == 16
    assert told["bulkhead:prefix_cache_queries_total"] == 16 * prompt_tokens
    assert told["bulkhead:prefix_cache_hits_total"] > 0
