"""The main job of Bulkhead, end to end on this machine; exits 0 only if every step did what it must.

    make demo           or: python scripts/demo.py [--keep] [--plain]

A hospital and a start-up stream answers of a real model from their own partitions of a simulated rack, a policy denies
a request, an officer reads and proves what happened, and a changed byte in a copy of the audit database is found.
"""

import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from scripts.local_platform import BIN, LocalPlatform, chat_model  # noqa: E402  the path above allows it
from scripts.local_processes import LocalError  # noqa: E402

STARTED: Final = time.monotonic()
CHAT_TIMEOUT_S: Final = 180.0

HOSPITAL_QUESTION: Final = "A patient asks how much water an adult should drink each day. Answer in two sentences."
STARTUP_QUESTION: Final = "What is the capital of France?"


class DemoError(Exception):
    """A step did not show what it must."""


def say(text: str = "") -> None:
    """Print a line of the demo's own voice, with the seconds since its start."""
    print(f"[demo {time.monotonic() - STARTED:5.1f}s] {text}" if text else "", flush=True)


def heading(number: int, text: str) -> None:
    """Print the beginning of a step."""
    say()
    say(f"{number}. {text}")


@dataclass(frozen=True, slots=True)
class Done:
    """A finished command: exit code, standard output and error output."""

    code: int
    out: str
    err: str


class Chat(threading.Thread):
    """A `bulkhead chat` of one tenant, its output shown line by line as it arrives."""

    def __init__(self, *, platform: LocalPlatform, who: str, profile: str, question: str) -> None:
        super().__init__(name=who)
        self.failed: str | None = None
        self.answer = ""
        self.first_text_s = 0.0
        self.end_s = 0.0
        self._platform = platform
        self._who = who
        self._profile = profile
        self._question = question

    def run(self) -> None:
        """Ask, and show progress and answer."""
        command = [str(BIN / "bulkhead"), "chat", "--max-tokens", "64", self._question]
        child = subprocess.Popen(
            command,
            env=environment(self._platform, self._profile),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        assert child.stdout is not None
        assert child.stderr is not None
        progress = threading.Thread(target=self._show, args=(child.stderr, "  "))
        progress.start()
        while piece := os.read(child.stdout.fileno(), 4096):
            if not self.answer:
                self.first_text_s = time.monotonic()
            self.answer += piece.decode(errors="replace")
        self.end_s = time.monotonic()
        progress.join()
        code = child.wait(CHAT_TIMEOUT_S)
        if code:
            self.failed = f"bulkhead chat of {self._who} ended with exit code {code}"
        else:
            self._print(f'asked  "{self._question}"')
            self._print(f'answer "{" ".join(self.answer.split())}"')

    def _show(self, stream: IO[bytes], indent: str) -> None:
        for line in stream:
            self._print(indent + line.decode(errors="replace").rstrip())

    def _print(self, text: str) -> None:
        say(f"   {self._who:9} | {text}")


def environment(platform: LocalPlatform, profile: str) -> dict[str, str]:
    """Return the environment of a command of ``profile``."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "LANG": "C.UTF-8",
        "COLUMNS": "150",
        "BULKHEAD_CONFIG": str(platform.client_config),
        "BULKHEAD_PROFILE": profile,
    }


def command(platform: LocalPlatform, profile: str, program: str, *arguments: str) -> Done:
    """Run a command as a person would and return what it printed."""
    done = subprocess.run(
        [str(BIN / program), *arguments],
        env=environment(platform, profile),
        capture_output=True,
        text=True,
        timeout=CHAT_TIMEOUT_S,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def show(profile: str, program: str, *arguments: str, platform: LocalPlatform, expect: int = 0) -> Done:
    """Show a command, run it, show its output, and insist on its exit code."""
    quoted = " ".join(f'"{word}"' if " " in word else word for word in (program, *arguments))
    say(f"   {profile}$ {quoted}")
    done = command(platform, profile, program, *arguments)
    for line in (done.out + done.err).splitlines():
        print(f"      {line}", flush=True)
    if done.code != expect:
        raise DemoError(f"{program} {arguments[0]} ended with exit code {done.code} instead of {expect}")
    return done


def two_tenants(platform: LocalPlatform) -> None:
    """Let both tenants ask at the same time, each on its own partition."""
    chats = [
        Chat(platform=platform, who="hospital", profile="mercy", question=HOSPITAL_QUESTION),
        Chat(platform=platform, who="start-up", profile="acme", question=STARTUP_QUESTION),
    ]
    for chat in chats:
        chat.start()
    for chat in chats:
        chat.join()
    for chat in chats:
        if chat.failed:
            raise DemoError(chat.failed)
    if "Paris" not in chats[1].answer:
        raise DemoError(f"the start-up's answer does not name Paris: {chats[1].answer!r}")
    if len(chats[0].answer.split()) < 5:
        raise DemoError(f"the hospital's answer is too short: {chats[0].answer!r}")
    partitions = platform.admin("fleet", "partitions")
    tiers = {partition["tier"]: partition for partition in partitions if partition["state"] == "ready"}
    if not {"gpu", "mig"} <= set(tiers) or tiers["gpu"]["tenant_id"] == tiers["mig"]["tenant_id"]:
        raise DemoError(f"expected a gpu and a mig partition of two tenants, found {partitions}")
    show("admin", "bulkhead-admin", "fleet", "partitions", platform=platform)


def denial(platform: LocalPlatform) -> None:
    """Show a request that policy denies, and that its reason reaches the caller in words."""
    arguments = ("chat", "--purpose", "marketing", "--data-class", "phi", "Write an advertisement for this patient.")
    done = show("mercy", "bulkhead", *arguments, platform=platform, expect=1)
    if "POLICY_DENIED" not in done.err:
        raise DemoError("the denial does not carry its code")


def officer(platform: LocalPlatform, scratch: Path) -> None:
    """Let the hospital's officer read, prove, export and verify."""
    listed = show("mercy-officer", "bulkhead", "audit", "list", platform=platform)
    if "deny" not in listed.out:
        raise DemoError("the officer does not see the denial")
    records: list[dict[str, Any]] = json.loads(
        command(platform, "mercy-officer", "bulkhead", "audit", "list", "--decision", "deny", "--json").out
    )
    show("mercy-officer", "bulkhead", "audit", "prove", str(records[-1]["index"]), platform=platform)
    export = scratch / "mercy.jsonl"
    show("mercy-officer", "bulkhead", "audit", "export", str(export), platform=platform)
    show("mercy-officer", "bulkhead", "audit", "verify", str(export), platform=platform)


def tamper(platform: LocalPlatform, scratch: Path) -> None:
    """Change one byte in a copy of the audit database and show that verification names the record."""
    copy = scratch / "copy"
    shutil.copytree(platform.root / "control" / "audit", copy)
    database = copy / "audit.db"
    intact = platform.run([str(BIN / "bulkhead-audit"), "verify", str(database), "--json"])
    say(f"   a copy of the database verifies as it is: {intact.strip()[:120]}")
    connection = sqlite3.connect(database)
    with connection:
        position, leaf = connection.execute(
            "SELECT pos, leaf FROM audit_leaf WHERE instr(CAST(leaf AS TEXT), '\"deny\"') > 0 LIMIT 1"
        ).fetchone()
        changed = leaf.replace(b'"marketing"', b'"treatment"', 1)
        if changed == leaf:
            raise DemoError("the denial's record does not hold what was to be changed")
        byte = next(index for index, (old, new) in enumerate(zip(leaf, changed, strict=False)) if old != new)
        connection.execute(
            "UPDATE audit_leaf SET leaf = ? WHERE pos = ?",
            (leaf[:byte] + changed[byte : byte + 1] + leaf[byte + 1 :], position),
        )
    connection.close()
    say("   one byte of the denial's record is changed in the copy; verified again:")
    done = show("operator", "bulkhead-audit", "verify", str(database), platform=platform, expect=1)
    if "index" not in (done.out + done.err) and "record" not in (done.out + done.err):
        raise DemoError("verification failed without naming the record")


def steps(platform: LocalPlatform, scratch: Path) -> None:
    """Run the demo on a running platform."""
    heading(2, "Two tenants at the same time: a hospital (HIPAA pack, tier gpu) and a start-up (tier mig)")
    two_tenants(platform)
    heading(3, "What policy denies: the hospital asks to use patients' data for marketing")
    denial(platform)
    heading(4, "The hospital's officer: who, what, why, where; then the proof, offline")
    officer(platform, scratch)
    heading(5, "An administrator changes one byte in the audit database (a copy of it)")
    tamper(platform, scratch)


def main(run: Callable[[LocalPlatform, Path], None] = steps, argv: Sequence[str] | None = None) -> int:
    """Run the command line; exit 0 only if every step held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="keep the state directory and say where it is")
    arguments = parser.parse_args(argv)
    root = Path(tempfile.mkdtemp(prefix="bulkhead-demo-"))
    failed: str | None = None
    platform: LocalPlatform | None = None
    try:
        heading(1, "A platform: control plane, OPA, audit log, two SIMULATED compute trays of a GB300 rack")
        platform = LocalPlatform(root=root, model=chat_model(), say=lambda text: say(f"   {text}"))
        platform.up()
        scratch = root / "scratch"
        scratch.mkdir()
        run(platform, scratch)
    except (DemoError, LocalError, OSError, subprocess.TimeoutExpired) as error:
        failed = str(error)
    finally:
        say()
        say("stopping everything")
        if platform is not None:
            platform.down()
        if not arguments.keep and failed is None:
            shutil.rmtree(root, ignore_errors=True)
    if failed is not None:
        print(f"demo failed: {failed}\nits state and logs are kept in {root}", file=sys.stderr)
        return 1
    say(f"done{f'; the state is kept in {root}' if arguments.keep else ''}. The rack, its GPUs and its evidence were")
    say("SIMULATED; the model, its answers, the sealing, the policies and the audit log were real.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
