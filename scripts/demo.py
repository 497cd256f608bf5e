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

FIRST_QUESTION: Final = "What is the capital of France?"
HOSPITAL_QUESTION: Final = "Explain why washing hands before surgery protects patients."
STARTUP_QUESTION: Final = "Explain how a bakery can win new customers."
LINE_CHARS: Final = 96


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
        """Ask, show progress, and show the answer line by line as it streams in."""
        self._print(f'asks: "{self._question}"')
        child = subprocess.Popen(
            [str(BIN / "bulkhead"), "chat", "--max-tokens", "96", self._question],
            env=environment(self._platform, self._profile),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        assert child.stdout is not None
        assert child.stderr is not None
        progress = threading.Thread(target=self._show_progress, args=(child.stderr,))
        progress.start()
        shown = 0
        while piece := os.read(child.stdout.fileno(), 4096):
            if not self.answer:
                self.first_text_s = time.monotonic()
            self.answer += piece.decode(errors="replace")
            shown = self._show_answer(shown, final=False)
        self.end_s = time.monotonic()
        self._show_answer(shown, final=True)
        progress.join()
        code = child.wait(CHAT_TIMEOUT_S)
        if code:
            self.failed = f"bulkhead chat of {self._who} ended with exit code {code}"

    def _show_answer(self, shown: int, *, final: bool) -> int:
        """Print whole lines of the answer that are not shown yet; return how many characters are."""
        while True:
            text = self.answer[shown:]
            cut = text.rfind(" ", 0, LINE_CHARS) if len(text) > LINE_CHARS else -1
            newline = text.find("\n", 0, LINE_CHARS)
            if newline >= 0:
                cut = newline
            if cut < 0:
                if final and text.strip():
                    self._print(f"> {text.strip()}")
                return shown
            if text[:cut].strip():
                self._print(f"> {text[:cut].strip()}")
            shown += cut + 1

    def _show_progress(self, stream: IO[bytes]) -> None:
        for line in stream:
            self._print("  " + line.decode(errors="replace").strip())

    def _print(self, text: str) -> None:
        say(f"   {self._who:8} | {text}")


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


def ask_both(platform: LocalPlatform, hospital: str, startup: str) -> tuple[Chat, Chat]:
    """Let both tenants ask at the same time and wait for both answers."""
    chats = (
        Chat(platform=platform, who="hospital", profile="mercy", question=hospital),
        Chat(platform=platform, who="start-up", profile="acme", question=startup),
    )
    for chat in chats:
        chat.start()
    for chat in chats:
        chat.join()
    for chat in chats:
        if chat.failed:
            raise DemoError(chat.failed)
    return chats


def two_tenants(platform: LocalPlatform) -> None:
    """Let both tenants ask, first on cold partitions, then on warm ones so that their answers stream side by side."""
    for chat in ask_both(platform, FIRST_QUESTION, FIRST_QUESTION):
        if "Paris" not in chat.answer:
            raise DemoError(f"an answer does not name Paris: {chat.answer!r}")
    say("   both partitions are warm now; longer answers, side by side:")
    hospital, startup = ask_both(platform, HOSPITAL_QUESTION, STARTUP_QUESTION)
    if min(hospital.end_s, startup.end_s) <= max(hospital.first_text_s, startup.first_text_s):
        raise DemoError("the two answers did not stream at the same time")
    ready = [entry for entry in platform.admin("fleet", "partitions") if entry["state"] == "ready"]
    tenants = {entry["tier"]: entry["tenant_id"] for entry in ready}
    if set(tenants) != {"gpu", "mig"} or len(set(tenants.values())) != 2 or len(ready) != 2:
        raise DemoError(f"expected a gpu and a mig partition of two tenants, found {ready}")
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
    if "DENY" not in listed.out:
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
    database = scratch / "copy.db"
    live = sqlite3.connect(f"file:{platform.root / 'control' / 'audit' / 'audit.db'}?mode=ro", uri=True)
    connection = sqlite3.connect(database)
    live.backup(connection)
    live.close()
    say("   a copy of the database verifies as it is:")
    show("operator", "bulkhead-audit", "verify", str(database), platform=platform)
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
        platform = LocalPlatform(
            root=root,
            model=chat_model(),
            say=lambda text: say(f"   {text}"),
            control_overrides="[sessions]\nidle_grace_s = 600\n",  # a busy machine may answer one tenant minutes later
        )
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
    say(f"done{f'; the state is kept in {root}' if arguments.keep else ''}")
    say("The rack, its GPUs and its evidence were SIMULATED.")
    say("The model and its answers, the policies, the sealing and the audit log were real.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
