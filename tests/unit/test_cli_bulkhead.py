"""The `bulkhead` command against a platform on real gRPC: output, exit codes, one-line errors."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bulkhead.attestation import EvidenceKind
from bulkhead.cli import chat as chat_module
from bulkhead.cli.console import one_line
from bulkhead.cli.program import program
from bulkhead.client.config import load_profile
from bulkhead.encoding import b64url_decode, canonical_json
from bulkhead.errors import BulkheadError, PolicyDeniedError
from tests.simulator.fake_platform import ANSWER, TRACE, FakePlatform, running_platform
from tests.simulator.sealed_world import ORIGIN


async def _invoke(config: Path, *arguments: str, stdin: str | None = None) -> Result:
    """Run the command in a thread of its own: the platform lives in this thread's event loop."""
    return await asyncio.to_thread(
        CliRunner().invoke, program, ["--config", str(config), "--profile", "test", *arguments], input=stdin
    )


def test_help_loads_neither_grpc_nor_cryptography() -> None:
    """Start-up stays short: --help imports no transport and no cryptography."""
    code = (
        "import sys; from bulkhead.cli.program import program;"
        "print([name for name in ('grpc', 'cryptography', 'google.protobuf') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


async def test_chat_streams_the_answer_and_says_what_was_verified(tmp_path: Path) -> None:
    """The answer is on standard output alone; standing and progress are on standard error."""
    async with running_platform() as platform:
        result = await _invoke(platform.write_config(tmp_path), "chat", "What is the capital of France?")
    assert (result.exit_code, result.stdout) == (0, "".join(ANSWER) + "\n")
    assert "verified by operator evidence" in result.stderr
    assert "SIMULATED" not in result.stderr


async def test_chat_names_a_simulated_worker(tmp_path: Path) -> None:
    """A simulated worker is called SIMULATED beside the answer, in JSON too."""
    async with running_platform(kind=EvidenceKind.SIMULATED) as platform:
        config = platform.write_config(tmp_path)
        shown = await _invoke(config, "chat", "hi")
        parsed = json.loads((await _invoke(config, "chat", "--json", "hi")).stdout)
    assert "SIMULATED" in shown.stderr
    assert parsed["simulated"] is True


async def test_chat_json_has_answer_usage_and_receipt(tmp_path: Path) -> None:
    """--json prints one object with text, usage, ids, tier and the receipt's state."""
    async with running_platform() as platform:
        result = await _invoke(platform.write_config(tmp_path), "chat", "--json", "--max-tokens", "5", "hi")
        answer = json.loads(result.stdout)
        assert platform.prompts[0].max_tokens == 5
    assert answer["text"] == "".join(ANSWER)
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 6}
    assert (answer["tier"], answer["simulated"], answer["receipt"]["verified"]) == ("gpu", False, True)


async def test_chat_reads_standard_input_and_saves_the_receipt(tmp_path: Path) -> None:
    """A prompt may come from standard input; the saved receipt is private and holds what was verified."""
    saved = tmp_path / "receipt.json"
    async with running_platform() as platform:
        config = platform.write_config(tmp_path)
        result = await _invoke(config, "chat", "--save-receipt", str(saved), stdin="  a question\n")
        assert result.exit_code == 0, result.stderr
        assert platform.prompts[0].messages[0].content == "a question"
    content = json.loads(saved.read_bytes())
    assert saved.stat().st_mode & 0o777 == 0o600
    assert json.loads(b64url_decode(content["receipt"], what="receipt"))["status"] == "ok"
    assert content["decision"]["checkpoint"].startswith(ORIGIN)


async def test_chat_asks_with_rank_and_time_and_saves_a_profile(tmp_path: Path) -> None:
    """--priority and --timeout go into the request; --save-profile writes the trace, or says that there was none."""
    saved = tmp_path / "step.json.gz"
    options = ("--priority", "-7", "--timeout", "2.5", "--save-profile", str(saved))
    async with running_platform() as platform:
        config = platform.write_config(tmp_path)
        result = await _invoke(config, "chat", *options, "hi")
        assert result.exit_code == 0, result.stderr
        asked = platform.prompts[0]
        assert (asked.priority, asked.timeout_s, asked.profile) == (-7, 2.5, True)
        assert saved.read_bytes() == TRACE
        refused = await _invoke(config, "chat", "--timeout", "-1", "hi")
        wrong = await _invoke(config, "chat", "--priority", "101", "hi")
        platform.cut_short = True
        without = await _invoke(config, "chat", *options, "hi")
        assert len(platform.prompts) == 2
    assert (refused.exit_code, wrong.exit_code, without.exit_code) == (1, 2, 1)
    assert "timeout_s" in refused.stderr
    assert "before a step could be traced" in without.stderr


async def test_saved_receipt_is_verified_offline(tmp_path: Path) -> None:
    """`receipt verify` needs the file and the pins alone; a changed file is refused by name, with exit status 1."""
    saved = tmp_path / "receipt.json"
    async with running_platform() as platform:
        config = platform.write_config(tmp_path)
        await _invoke(config, "chat", "--save-receipt", str(saved), "a question")
    told = await _invoke(config, "receipt", "verify", str(saved), "--json")
    assert told.exit_code == 0, told.stderr
    proven = json.loads(told.stdout)
    assert (proven["verified"], proven["status"], proven["counted_by_client"]) == (True, "ok", True)
    assert proven["usage"] == {"prompt_tokens": 5, "completion_tokens": 6}
    shown = await _invoke(config, "receipt", "verify", str(saved))
    assert "5 + 6, counted by the client too" in shown.stdout
    assert f"tier       {proven['tier']}\n" in shown.stdout
    content = json.loads(saved.read_bytes())
    content["answer"]["completion_tokens"] = 7
    saved.write_bytes(canonical_json(content))
    refused = await _invoke(config, "receipt", "verify", str(saved))
    assert refused.exit_code == 1
    assert "RECEIPT_COUNT" in refused.stderr


async def test_conversation_keeps_its_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a prompt on a terminal each line is a turn; the next request carries the whole conversation."""
    lines = iter(["first", "second", ""])
    monkeypatch.setattr(chat_module, "_line", lambda: next(lines))
    async with running_platform() as platform:
        profile = load_profile("test", path=platform.write_config(tmp_path), environ={})
        conversation = chat_module._Chat(
            as_json=False,
            model=None,
            tier=None,
            region=None,
            purpose=None,
            data_classes=(),
            system="be brief",
            max_tokens=None,
            temperature=0.0,
            seed=None,
            priority=0,
            timeout_s=None,
            save_receipt=None,
            save_profile=None,
        )
        await conversation.lines(profile)
    turns = [(message.role, message.content) for message in platform.prompts[1].messages]
    assert turns == [
        ("system", "be brief"),
        ("user", "first"),
        ("assistant", "".join(ANSWER)),
        ("user", "second"),
    ]


async def test_denial_is_one_line_with_reason_and_exit_1(tmp_path: Path) -> None:
    """A denied session gives one line with code, reason in plain words and what to do; no stack trace."""
    reasons = json.dumps([{"code": "PURPOSE_MISSING", "policy": "hipaa", "message": "HIPAA demands a purpose"}])

    async def deny(_request: object) -> None:
        raise PolicyDeniedError("the session is not allowed", details={"reasons": reasons})

    async with running_platform() as platform:
        platform.before_open = deny
        result = await _invoke(platform.write_config(tmp_path), "chat", "hi")
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error POLICY_DENIED: the session is not allowed (PURPOSE_MISSING: HIPAA demands a purpose)")


async def test_cut_answer_is_marked_and_exits_1(tmp_path: Path) -> None:
    """When the stream ends early the text is followed by a plain warning, and the exit code is 1."""
    async with running_platform() as platform:
        honest = platform.respond

        async def cut(at: FakePlatform, request: object) -> object:
            async for message in honest(at, request):  # type: ignore[arg-type]
                yield message
                return

        platform.respond = cut  # type: ignore[assignment]
        result = await _invoke(platform.write_config(tmp_path), "chat", "hi")
    assert result.exit_code == 1
    assert "NOT whole" in result.stderr
    assert "error STREAM_TRUNCATED" in result.stderr


async def test_evidence_is_explained(tmp_path: Path) -> None:
    """`evidence show` names kind, tier, place and digests; simulated evidence rests on nothing."""
    async with running_platform() as platform:
        config = platform.write_config(tmp_path)
        shown = await _invoke(config, "evidence", "show")
        parsed = json.loads((await _invoke(config, "evidence", "show", "--json")).stdout)
        assert platform.worker_calls == 0
    assert "the operator is trusted" in shown.stdout
    assert (parsed["kind"], parsed["tier"], parsed["verified"]) == ("operator", "gpu", True)
    async with running_platform(kind=EvidenceKind.SIMULATED) as platform:
        shown = await _invoke(platform.write_config(tmp_path), "evidence", "show")
    assert "rests on     NOTHING" in shown.stdout


async def test_sessions_are_shown_listed_and_closed(tmp_path: Path) -> None:
    """`session list`, show and close work; an unknown id is a one-line NOT_FOUND with exit 1."""
    async with running_platform() as platform:
        config, session = platform.write_config(tmp_path), platform.world.session
        assert session in (await _invoke(config, "session", "list")).stdout
        assert json.loads((await _invoke(config, "session", "show", session, "--json")).stdout)["tier"] == "gpu"
        assert (await _invoke(config, "session", "close", session)).exit_code == 0
        assert platform.closed == [session]
        missing = await _invoke(config, "session", "show", "sess_00000000000000000000000000")
    assert (missing.exit_code, missing.stderr) == (1, "error NOT_FOUND: no such session.\n")


async def test_officer_sees_who_what_why_where(tmp_path: Path) -> None:
    """`audit list` shows subject, decision, reason and tier over all pages; filters reach the server."""
    async with running_platform() as platform:
        config = platform.write_config(tmp_path)
        everything = await _invoke(config, "audit", "list")
        denied = json.loads((await _invoke(config, "audit", "list", "--decision", "deny", "--json")).stdout)
        few = await _invoke(config, "audit", "list", "--limit", "2")
    lines = everything.stdout.splitlines()
    assert lines[0].split() == ["INDEX", "WHEN", "WHO", "WHAT", "WHY", "WHERE", "RECORD"]
    assert len(lines) == 4
    assert "PURPOSE_MISSING: The HIPAA pack demands a purpose of use." in lines[3]
    assert "(developer)" in lines[3]
    assert "DENY" in lines[3]
    assert [record["fields"]["decision"] for record in denied] == ["deny"]
    assert len(few.stdout.splitlines()) == 3
    assert "--limit" in few.stderr
    assert "index" not in few.stderr


async def test_a_list_says_what_was_not_looked_at(tmp_path: Path) -> None:
    """Records that the server's index does not hold yet are counted, on standard error."""
    async with running_platform() as platform:
        platform.audit.unindexed = 2
        shown = await _invoke(platform.write_config(tmp_path), "audit", "list", "--json")
    assert "2 records are not in the index yet" in shown.stderr
    assert len(json.loads(shown.stdout)) == 3


async def test_a_list_of_all_logs_has_no_place_to_go_on_at(tmp_path: Path) -> None:
    """A platform officer names the log that is followed or continued; the hint under a list does not say otherwise."""
    async with running_platform() as platform:
        config = platform.write_config(tmp_path)
        text = config.read_text()
        config.write_text("\n".join(line for line in text.splitlines() if not line.strip().startswith("tenant = ")))
        for options in (["--follow"], ["--after", "1"]):
            refused = await _invoke(config, "audit", "list", *options)
            assert (refused.exit_code, "--tenant" in refused.stderr) == (2, True)
        few = await _invoke(config, "audit", "list", "--limit", "1")
        named = await _invoke(config, "audit", "list", "--limit", "1", "--tenant", "platform")
    assert (few.exit_code, "--after" in few.stderr) == (0, False)
    assert (named.exit_code, "--after 0" in named.stderr) == (0, True)


@pytest.mark.parametrize("moment", ["1960-01-01", "1970-01-01", "9999-01-01", "999999d", "yesterday"])
async def test_a_time_out_of_range_is_wrong_usage(tmp_path: Path, moment: str) -> None:
    """A bound that no record can be held against is refused, never taken for none."""
    async with running_platform() as platform:
        config = platform.write_config(tmp_path)
        for option in ("--since", "--until"):
            refused = await _invoke(config, "audit", "list", option, moment)
            assert (refused.exit_code, option in refused.stderr) == (2, True)


async def test_record_is_proven_with_the_pinned_key(tmp_path: Path) -> None:
    """`audit prove` verifies a record by index and by id and prints it with the tree it is in."""
    async with running_platform() as platform:
        config = platform.write_config(tmp_path)
        by_index = await _invoke(config, "audit", "prove", "2")
        record = json.loads((await _invoke(config, "audit", "show", "2", "--json")).stdout)["fields"]["record_id"]
        by_id = json.loads((await _invoke(config, "audit", "prove", record, "--json")).stdout)
    assert "tree of 3" in by_index.stdout
    assert (by_id["verified"], by_id["index"], by_id["log"]) == (True, 2, ORIGIN)


async def test_altered_record_fails_its_proof(tmp_path: Path) -> None:
    """A server that hands out a changed record is caught: exit 1 and INCLUSION_INVALID; show prints it unproven."""
    async with running_platform() as platform:
        config = platform.write_config(tmp_path)
        platform.audit.served[2] = platform.audit.leaves[2].replace(b'"deny"', b'"allow"')
        proven = await _invoke(config, "audit", "prove", "2")
        other = await _invoke(config, "audit", "prove", "2", "--log-key", ORIGIN + "+00000000+AAAA")
    assert (proven.exit_code, proven.stdout) == (1, "")
    assert "error INCLUSION_INVALID" in proven.stderr
    assert other.exit_code == 1
    assert "error CHECKPOINT_INVALID" in other.stderr


async def test_another_record_than_asked_for_is_refused(tmp_path: Path) -> None:
    """A server that proves a different record of the same log is caught."""
    async with running_platform() as platform:
        config = platform.write_config(tmp_path)
        platform.audit.instead[2] = 1
        result = await _invoke(config, "audit", "prove", "2")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error RECORD_INVALID" in result.stderr


async def test_export_verifies_offline_and_one_changed_byte_does_not(tmp_path: Path) -> None:
    """An export verifies with the log key alone; a byte changed in it fails and names the record."""
    target = tmp_path / "log.jsonl"
    async with running_platform() as platform:
        config = platform.write_config(tmp_path)
        written = await _invoke(config, "audit", "export", str(target))
        vkey = platform.world.log.vkey
    assert written.exit_code == 0
    verified = CliRunner().invoke(program, ["audit", "verify", str(target), "--log-key", vkey, "--json"])
    assert json.loads(verified.stdout)["records"] == 3
    assert "none altered" in CliRunner().invoke(program, ["audit", "verify", str(target), "--log-key", vkey]).stdout
    target.write_bytes(target.read_bytes().replace(b"demands a purpose", b"demands 1 purpose"))
    changed = CliRunner().invoke(program, ["audit", "verify", str(target), "--log-key", vkey])
    assert (changed.exit_code, changed.stdout) == (1, "")
    assert "record 2" in changed.stderr


async def test_broken_export_leaves_no_file(tmp_path: Path) -> None:
    """An export that breaks off leaves neither the file nor a part of it."""
    target = tmp_path / "log.jsonl"
    async with running_platform() as platform:
        platform.audit.export_limit = 900
        result = await _invoke(platform.write_config(tmp_path), "audit", "export", str(target))
    assert result.exit_code == 1
    assert not target.exists()
    assert not target.with_name("log.jsonl.part").exists()


async def test_profiles_are_listed_and_checked(tmp_path: Path) -> None:
    """`profile list` names them without secrets; profile check reaches the control plane with the credential."""
    async with running_platform() as platform:
        config = platform.write_config(tmp_path)
        listed = json.loads((await _invoke(config, "profile", "list", "--json")).stdout)
        checked = await _invoke(config, "profile", "check")
    assert listed == [{"name": "test", "default": False}]
    assert checked.exit_code == 0
    assert checked.stdout.endswith("ok\n")
    assert "bhk_" not in checked.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["chat", "hi"], 2, "error CONFIG: cannot read"),
        (["audit", "verify"], 2, "Missing argument"),
        (["chat", "--tier", "none", "hi"], 2, "Invalid value"),
        (["chat", "--max-tokens", "0", "hi"], 2, "Invalid value"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_wrong_usage_exits_2(tmp_path: Path, arguments: list[str], code: int, text: str) -> None:
    """Wrong options and a missing configuration are exit code 2 with a plain sentence."""
    result = CliRunner().invoke(program, ["--config", str(tmp_path / "none.toml"), *arguments])
    assert result.exit_code == code
    assert text in result.stderr
    assert "Traceback" not in result.output


async def test_unreachable_platform_is_one_line(tmp_path: Path) -> None:
    """A platform that is not up is CONNECTION_FAILED in one line that says what to check."""
    async with running_platform() as platform:
        config = platform.write_config(tmp_path)
    result = await _invoke(config, "session", "list")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error CONNECTION_FAILED")
    assert "Check that the platform is up" in line


def test_error_line_holds_no_control_characters() -> None:
    """What a server says cannot drive the terminal, nor add lines."""
    reasons = json.dumps([{"code": "A\x1b[31m", "message": "b\nc"}, "no object"])
    line = one_line(PolicyDeniedError("x\r\x1b[2J", details={"reasons": reasons}))
    assert line.isprintable()
    assert one_line(BulkheadError("", details={"reasons": "{"})).isprintable()
