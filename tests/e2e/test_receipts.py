"""Receipts on real processes: kept, verified offline, proven in the log, held against the usage that the log states."""

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bulkhead.client import AsyncBulkhead
from bulkhead.client.config import load_profile
from bulkhead.client.saved import saved_receipt, write_receipt
from bulkhead.errors import NotFoundError
from scripts.local_platform import LocalPlatform
from tests.simulator import live

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]


def told(platform: LocalPlatform, *command: str, expect: int = 0) -> Any:
    """Return what a tenant's officer gets to see; an error's line where one is expected."""
    done = live.cli(platform, "officer", "bulkhead", *command, "--json")
    assert done.returncode == expect, f"{command}: {done.stdout}{done.stderr}"
    return json.loads(done.stdout) if expect == 0 else done.stderr


async def kept_receipts(platform: LocalPlatform, directory: Path) -> list[Path]:
    """Serve two whole answers, a refused one and a cancelled one in one session; keep all four receipts."""
    files: list[Path] = []

    def keep(name: str, data: bytes) -> None:
        files.append(directory / f"{name}.json")
        write_receipt(files[-1], data)

    async with (
        AsyncBulkhead.from_profile("acme", path=platform.client_config) as client,
        client.open_session() as session,
    ):
        for number in range(2):
            answer = session.generate(f"number {number}", max_tokens=5)
            async for _ in answer:
                pass
            keep(f"answer-{number}", saved_receipt(answer.link, answer.signed_receipt, answer=answer.usage))
        refused = session.generate("x" * 20_000, max_tokens=5)
        error, _ = await live.refusal(refused.completion())
        assert error.code == "CONTEXT_LENGTH"
        keep("refused", saved_receipt(refused.link, refused.signed_receipt))
        cancelled = session.generate("tell me everything", max_tokens=400)
        await anext(cancelled)
        await cancelled.aclose()
        async with asyncio.timeout(20):
            while True:  # the worker may learn of the cancellation a little later
                with suppress(NotFoundError):
                    _, signed = await session.fetch_receipt(cancelled.request_id)
                    break
        keep("cancelled", saved_receipt(cancelled.link, signed))
    return files


async def test_receipts_are_verified_proven_and_held_against_the_log(platform: LocalPlatform, tmp_path: Path) -> None:
    """Each of four receipts verifies offline and leads to the log; together they show every token that it states."""
    files = await kept_receipts(platform, tmp_path)
    proven = [told(platform, "receipt", "verify", str(file)) for file in files]
    assert [item["status"] for item in proven] == ["ok", "ok", "failed", "cancelled"]
    assert [item["number"] for item in proven] == [1, 2, 3, 4]
    assert (proven[2]["code"], proven[0]["simulated"], proven[0]["log"]) == ("CONTEXT_LENGTH", True, None)

    def logged() -> bool:
        return live.cli(platform, "officer", "bulkhead", "audit", "prove", "--receipt", str(files[-1])).returncode == 0

    live.wait_until(logged, timeout_s=20, what="the receipts are recorded")
    for file in files:
        assert told(platform, "audit", "prove", "--receipt", str(file), "--save")["log"]["record"].startswith("rec_")
        assert told(platform, "receipt", "verify", str(file))["log"]["record"].startswith("rec_")
    export = tmp_path / "acme.jsonl"
    told(platform, "audit", "export", str(export))
    log_key = load_profile("acme", path=platform.client_config).log_vkey
    replay = ("policy", "replay", str(export), "--policies", str(ROOT / "policies"), "--log-key", str(log_key))
    replayed = json.loads(live.cli(platform, "admin", "bulkhead-admin", *replay, "--json").stdout)
    assert replayed["asked"] > 0
    assert [(item["codes"], item["version"]) for item in replayed["differing"]] == []
    usage = ("receipt", "usage", "--export", str(export))
    report = told(platform, *usage, *map(str, files))["report"]
    assert report["receipts"] == 4
    assert report["completion_tokens"] == sum(item["usage"]["completion_tokens"] for item in proven)
    assert report["unrecorded"] == []
    missing = told(platform, *usage, *map(str, files[1:]), expect=1)
    assert "error USAGE_UNPROVEN" in missing
    assert "receipt 1, which nobody holds" in missing


async def test_a_strict_sessions_usage_is_stated_once_as_a_whole(platform: LocalPlatform, tmp_path: Path) -> None:
    """The operator's records state nothing of its requests and their sum after its end, as the receipts show."""
    files, completion_tokens = [], 0
    async with (
        AsyncBulkhead.from_profile("acme", path=platform.client_config) as client,
        client.open_session(padding="strict") as session,
    ):
        session_id = session.session_id
        for number, tokens in enumerate((1, 6)):
            answer = session.generate(f"number {number}", max_tokens=tokens)
            async for _ in answer:
                pass
            completion_tokens += answer.usage.completion_tokens
            files.append(tmp_path / f"strict-{number}.json")
            write_receipt(files[-1], saved_receipt(answer.link, answer.signed_receipt, answer=answer.usage))
        listing = ("audit", "list", "--session", session_id, "--action", "receipts")

        def records() -> list[dict[str, Any]]:
            return [record["fields"]["data"] for record in told(platform, *listing)]

        def recorded() -> bool:
            return sum(data["count"] for data in records()) == len(files)

        live.wait_until(recorded, timeout_s=30, what="the receipts are recorded while the session is open")
        assert {data["completion_tokens"] for data in records()} == {0}

    def totals() -> list[dict[str, Any]]:
        return [data for data in records() if data["completion_tokens"]]

    live.wait_until(lambda: bool(totals()), timeout_s=30, what="the session's total is recorded")
    (total,) = totals()
    assert (total["first"], total["completion_tokens"]) == (len(files) + 1, completion_tokens)
    export = tmp_path / "acme.jsonl"
    told(platform, "audit", "export", str(export))
    report = told(platform, "receipt", "usage", "--export", str(export), *map(str, files))["report"]
    assert (report["receipts"], report["completion_tokens"], report["untold"]) == (2, completion_tokens, [])
    assert "error USAGE_UNPROVEN" in told(
        platform, "receipt", "usage", "--export", str(export), str(files[0]), expect=1
    )
