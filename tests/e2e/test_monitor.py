"""A tenant's own look at its log on real processes: journalled requests, rounds, proofs as files, others' tools."""

import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from audit.records.schema import DATA_MEMBERS
from bulkhead.client import Bulkhead
from bulkhead.encoding import canonical_json
from scripts.local_platform import BIN, LocalPlatform
from tests.simulator import live
from tests.simulator.go_tools import run_fsck

pytestmark = pytest.mark.e2e


@dataclass(frozen=True)
class Seen:
    """A platform through other profiles."""

    client_config: Path


def journalled(platform: LocalPlatform, directory: Path) -> Seen:
    """Return the platform as seen with profiles that journal their requests."""
    folder = directory / "config"
    shutil.copytree(platform.client_config.parent, folder)
    config = folder / platform.client_config.name
    text = config.read_text()
    for profile in ("acme", "officer"):
        text = text.replace(f"[profile.{profile}]\n", f'[profile.{profile}]\nrequest_journal = "{profile}.journal"\n')
    config.write_text(text)
    return Seen(config)


def test_the_monitor_on_a_running_platform(platform: LocalPlatform, tmp_path: Path) -> None:
    """Journals and log agree, both ways; the log is in the platform's rounds; proof, export, tiles verify offline."""
    seen = journalled(platform, tmp_path)
    folder = seen.client_config.parent

    with Bulkhead.from_profile("acme", path=seen.client_config) as client, client.open_session() as session:
        assert session.worker.descriptor.partition
    sent = [json.loads(line) for line in (folder / "acme.journal").read_text().splitlines()]
    opens = [entry["id"] for entry in sent if entry["event"] == "sent" and entry["call"] == "OpenSession"]
    assert {"v": 1, "event": "answered", "id": opens[0], "code": ""} in sent

    (folder / "officer.journal").touch()  # the officer has asked for nothing yet
    monitor = (
        "bulkhead", "audit", "monitor", "--state", str(tmp_path / "state"), "--grace", "100000", "--json",
        "--journal", str(folder / "acme.journal"), "--journal", str(folder / "officer.journal"),
    )  # fmt: skip
    for _ in range(3):  # the second sees the first's own read, which its journal holds
        done = live.cli(seen, "officer", *monitor)
        check = json.loads(done.stdout)
        assert (done.returncode, check["alarms"], check["notes"]) == (0, [], []), done.stderr
    assert check["round"] > 0
    assert 0 < check["first_round"] <= check["round"]
    again = (*monitor[:4], str(tmp_path / "again"), *monitor[5:], "--from-round", str(check["first_round"]))
    from_there = json.loads(live.cli(seen, "officer", *again).stdout)
    assert (from_there["alarms"], from_there["first_round"]) == ([], check["first_round"])
    assert from_there["rounds"] == from_there["round"] - from_there["first_round"] + 1

    (folder / "acme.journal").write_text("")
    lost = live.cli(seen, "officer", *monitor[:4], str(tmp_path / "fresh"), "--grace", "0", "--json", *monitor[8:])
    assert lost.returncode == 1
    strangers = [alarm["message"] for alarm in json.loads(lost.stdout)["alarms"] if alarm["kind"] == "stranger"]
    assert any(opens[0] in message for message in strangers)

    proof, export, tiles = tmp_path / "rec.tlog-proof", tmp_path / "log.jsonl", tmp_path / "tiles"
    wrote = live.cli(
        seen, "officer", "bulkhead", "audit", "prove", "1", "--format", "tlog-proof", "--out", str(proof), "--json"
    )
    assert json.loads(wrote.stdout)["round"] > 0
    for command in (
        ("prove", "1"), ("verify", str(proof)), ("export", str(export)), ("verify", str(export)),
        ("serve-tiles", str(export), "--out", str(tiles)), ("verify", str(tiles)),
    ):  # fmt: skip
        done = live.cli(seen, "officer", "bulkhead", "audit", *command, "--json")
        assert done.returncode == 0, done.stderr
    for line in export.read_text().splitlines():
        record = json.loads(line)
        if record["type"] == "record":  # what a running platform writes is what the schema publishes
            assert json.loads(record["leaf"]).get("data", {}).keys() <= DATA_MEMBERS.keys(), record["leaf"]
    vkey = next(line for line in seen.client_config.read_text().splitlines() if line.startswith("log_vkey"))
    (tmp_path / "vkey").write_text(vkey.partition('"')[2].rstrip('"'))
    assert "Successfully fsck'd log" in run_fsck(tiles.as_uri(), tmp_path / "vkey")


def test_the_log_holds_a_kept_receipt(platform: LocalPlatform, tmp_path: Path) -> None:
    """A receipt that was kept is in the log once its record is; one that the log does not hold is a gap."""
    kept = tmp_path / "kept"
    kept.mkdir()
    done = live.cli(platform, "acme", "bulkhead", "chat", "hello", "--save-receipt", str(kept / "answer.json"))
    assert done.returncode == 0, done.stderr
    command = ("bulkhead", "audit", "monitor", "--state", str(tmp_path / "state"), "--kept", str(kept), "--json")
    for _ in range(20):
        checked = live.cli(platform, "officer", *command)
        assert (checked.returncode, json.loads(checked.stdout)["alarms"]) == (0, []), checked.stderr
        if json.loads((tmp_path / "state").read_text())["settled"]:
            break
        time.sleep(1)
    else:
        raise AssertionError("the log does not show the receipt")

    saved = json.loads((kept / "answer.json").read_text())
    saved["signature"] = ("A" if saved["signature"][0] != "A" else "B") + saved["signature"][1:]
    (kept / "invented.json").write_bytes(canonical_json(saved))
    invented = live.cli(platform, "officer", *command, "--grace", "0")
    assert invented.returncode == 1
    (alarm,) = json.loads(invented.stdout)["alarms"]
    assert (alarm["kind"], alarm["message"].startswith("invented.json")) == ("gap", True)


def listed(platform: LocalPlatform, *options: str) -> list[dict[str, Any]]:
    done = live.cli(platform, "officer", "bulkhead", "audit", "list", *options, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _growth(platform: LocalPlatform, *, seconds: float) -> int:
    """Return by how many records the log grows in that time, the list before among them."""
    before = listed(platform, "--limit", "1")
    time.sleep(seconds)
    return int(listed(platform, "--limit", "1")[0]["index"]) - int(before[0]["index"])


def test_lists_continue_and_follow(platform: LocalPlatform) -> None:
    """A list goes on behind a record, either way; --follow shows what comes, and its own reads do not feed it."""
    first = listed(platform, "--oldest-first", "--limit", "2")
    second = listed(platform, "--oldest-first", "--limit", "2", "--after", str(first[-1]["index"]))
    assert [record["index"] for record in first + second] == [0, 1, 2, 3]
    newest = listed(platform, "--limit", "2")
    older = listed(platform, "--limit", "2", "--after", str(newest[-1]["index"]))
    assert [record["index"] for record in older] == [newest[-1]["index"] - 1, newest[-1]["index"] - 2]

    command = [str(BIN / "bulkhead"), "audit", "list", "--follow", "--limit", "1", "--interval", "1", "--json"]
    environment = {**os.environ, "BULKHEAD_CONFIG": str(platform.client_config), "BULKHEAD_PROFILE": "officer"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as following:
        try:
            assert following.stdout is not None
            shown = json.loads(following.stdout.readline())["index"]
            listed(platform, "--action", "decision", "--limit", "1")
            came = json.loads(following.stdout.readline())
            assert came["index"] > shown
            # Two lists here, and at most one by the follower, who reads once more only if its index was behind.
            assert any(_growth(platform, seconds=4) <= 3 for _ in range(10))
        finally:
            following.terminate()
