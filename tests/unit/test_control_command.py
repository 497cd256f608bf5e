import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from audit.log import AuditLog
from bulkhead.errors import ConfigError
from bulkhead.transparency import LeafFields, parse_leaf
from control_plane import issuance
from control_plane.command import main
from control_plane.config import ControlPlaneConfig
from control_plane.issuance import IssuanceRecorder
from control_plane.services.journal import Journal
from service.config import load_config
from tests.simulator.witnesses import pinned


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """The command sets up the process's logging; give it back."""
    root = logging.getLogger()
    handlers, level, raising = list(root.handlers), root.level, logging.raiseExceptions
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = raising
    structlog.reset_defaults()


def _config(tmp_path: Path, text: str = 'state_directory = "state"') -> Path:
    path = tmp_path / "control.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ('state_directory = "x"', 0, '"ok": true'),
        ('state_directory = "x"\nport = 1', 1, "unknown key port"),
        ('state_directory = "x"\n[listen]\npublic = "nowhere"', 1, "nowhere is not host:port"),
        ('state_directory = "x"\n[listen]\npublic = "h:99999"', 1, "h:99999 is not host:port"),
        ('state_directory = "x"\n[limits]\nmax_call_s = 5', 1, "at least sessions.open_timeout_s"),
        ('state_directory = "x"\n[audit]\nappend_timeout_s = 0', 1, "append_timeout_s"),
        ('state_directory = "x"\ntrust_domain = "No Name"', 1, "trust_domain"),
        ("", 1, "state_directory: required"),
    ],
)
def test_a_configuration_can_be_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, status: int, said: str
) -> None:
    """--check-config reads the file, says what is wrong with it, makes nothing, and ends."""
    assert main(["--config", str(_config(tmp_path, text)), "--check-config"]) == status
    shown = capsys.readouterr()
    assert said in shown.out + shown.err
    assert [path.name for path in tmp_path.iterdir()] == ["control.toml"]


def test_a_platform_that_was_never_initialised_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Serving and issuing without init end with status 1 and name the command to run."""
    config = str(_config(tmp_path))
    assert main(["issue-agent", "--config", config, "--agent-id", "tray01", "--out", str(tmp_path / "a")]) == 1
    assert "control_plane init" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert main(["--config", config]) == 1
    assert "control_plane init" in capsys.readouterr().err


def test_initialising_makes_everything_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Init writes keys, databases and administrators' keys, privately, shows no secret, and runs once."""
    config = str(_config(tmp_path))
    assert main(["init", "--config", config, "--admin", "ada", "--lifetime-days", "30"]) == 0
    shown = capsys.readouterr().out
    made = json.loads(shown)
    (admin,) = made["admins"]
    key = Path(admin["api_key_file"])
    assert key.read_text().startswith("bhk_")
    assert key.read_text().strip() not in shown
    private = list((tmp_path / "state").rglob("*.key"))
    assert len(private) >= 5
    assert all(path.stat().st_mode & 0o077 == 0 for path in private)
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0
    assert main(["init", "--config", config]) == 1
    assert capsys.readouterr().err.startswith("CONFLICT: ")


def test_initialising_survives_an_interruption(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An init that ended before its administrators were stored can be run again."""
    from control_plane.bootstrap import Bootstrap

    config = str(_config(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(Bootstrap, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            main(["init", "--config", config])
    assert main(["init", "--config", config]) == 0
    assert len(json.loads(capsys.readouterr().out)["admins"]) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--admin", "Not A Name"], "name"),
        (["--admin", "a", "--admin", "a"], "each with a name of their own"),
        (["--lifetime-days", "0"], "1 to 366"),
        (["--policies", "/nonexistent"], "not a directory"),
    ],
)
def test_bad_options_of_init_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    """A name that is none, one name twice, a lifetime out of range and missing policies are refused in one line."""
    assert main(["init", "--config", str(_config(tmp_path)), *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_wrong_usage_is_status_two(capsys: pytest.CaptureFixture[str]) -> None:
    """A missing configuration or an unknown command is wrong usage, with the usage shown."""
    for arguments in ([], ["unheard-of"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert "usage:" in capsys.readouterr().err


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    """--help shows commands to copy."""
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "control_plane init --config" in capsys.readouterr().out


def _issued(tmp_path: Path) -> list[LeafFields]:
    """Return what the platform's log says of issued identities."""

    async def read() -> list[LeafFields]:
        config = load_config(ControlPlaneConfig, tmp_path / "control.toml")
        log = await AuditLog.open(config.audit_config())
        try:
            origin = log.platform_log.log_id
            leaves = [parse_leaf((await log.receipt(origin, at)).leaf) for at in range(log.size(origin))]
            return [leaf for leaf in leaves if leaf.action == "identity.issued"]
        finally:
            await log.close()

    return asyncio.run(read())


def test_issued_identities_are_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An agent's and a client's certificate stand in the platform's log with URI, fingerprint and end."""
    config = str(_config(tmp_path))
    assert main(["init", "--config", config]) == 0
    capsys.readouterr()
    assert main(["issue-agent", "--config", config, "--agent-id", "tray01", "--out", str(tmp_path / "a")]) == 0
    agent = json.loads(capsys.readouterr().out)
    name = ["--name", "acme-batch", "--out", str(tmp_path / "c")]
    assert main(["issue-client-certificate", "--config", config, *name]) == 0
    client = json.loads(capsys.readouterr().out)
    found = _issued(tmp_path)
    assert [leaf.resource.id for leaf in found if leaf.resource] == [agent["uri"], client["uri"]]
    assert [leaf.data["fingerprint"] for leaf in found] == [agent["fingerprint"], client["fingerprint"]]
    assert {leaf.cause.reason for leaf in found} == {"command"}


def test_while_the_log_is_in_use_its_writer_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a running server the command waits for it to record; with nobody to record, nothing is issued."""
    config = str(_config(tmp_path))
    assert main(["init", "--config", config]) == 0
    monkeypatch.setattr(issuance, "PATIENCE_S", 3.0)
    loaded = load_config(ControlPlaneConfig, tmp_path / "control.toml")
    order = ["issue-agent", "--config", config, "--agent-id", "tray01", "--out", str(tmp_path / "a")]

    async def beside(*, records: bool) -> int:
        log = await AuditLog.open(loaded.audit_config())
        recorder = IssuanceRecorder(directory=loaded.issuances_directory, journal=Journal(audit=log))
        recording = asyncio.create_task(recorder.run() if records else asyncio.sleep(60))
        try:
            return await asyncio.to_thread(main, order)
        finally:
            recording.cancel()
            await asyncio.gather(recording, return_exceptions=True)
            await log.close()

    assert asyncio.run(beside(records=False)) == 1
    assert "AUDIT_UNAVAILABLE" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert asyncio.run(beside(records=True)) == 0
    assert (tmp_path / "a" / "agent.key").exists()
    assert len(_issued(tmp_path)) == 1
    assert list(loaded.issuances_directory.iterdir()) == []


def test_witnesses_stand_in_the_configuration(tmp_path: Path) -> None:
    """Witnesses of the platform's log are read from TOML; a quorum above their number stops the start."""
    keys = json.dumps([key.vkey for key in pinned("witness.test/w1")])
    table = f'[[audit.witnesses]]\nurl = "https://witness.test/w1"\nvkeys = {keys}\n'
    text = 'state_directory = "state"\n[audit]\nwitness_quorum = {quorum}\n' + table
    config = load_config(ControlPlaneConfig, _config(tmp_path, text.replace("{quorum}", "1"))).audit_config()
    assert (config.witnesses[0].url, config.witness_quorum) == ("https://witness.test/w1", 1)
    with pytest.raises(ConfigError, match="witness_quorum"):
        load_config(ControlPlaneConfig, _config(tmp_path, text.replace("{quorum}", "2")))
