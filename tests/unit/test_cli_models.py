"""`bulkhead model` and `bulkhead-admin model`: sealing, looking, checking."""

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from bulkhead.attestation.model_digest import model_digest
from bulkhead.cli.program import program as bulkhead
from control_plane.admin_cli.program import program as bulkhead_admin
from tests.simulator.tiny_model import make_tiny_model


def run(program: click.Command, *arguments: str) -> Result:
    return CliRunner().invoke(program, list(arguments))


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, str, str]:
    """Return the URI of a key encryption key, the file of a signer, and its public key."""
    kek, signer = f"file:{tmp_path / 'kek'}", str(tmp_path / "signer.pem")
    assert run(bulkhead, "model", "create-key", "--kek", kek).exit_code == 0
    made = run(bulkhead, "model", "create-key", "--signer", signer, "--json")
    return kek, signer, json.loads(made.stdout)["signer"]


@pytest.mark.parametrize("program", [bulkhead, bulkhead_admin], ids=["bulkhead", "bulkhead-admin"])
def test_sealed_inspected_and_verified(tmp_path: Path, keys: tuple[str, str, str], program: click.Command) -> None:
    """Both commands seal, show and check a model; its digest is that of the plain one."""
    kek, signer, public = keys
    plain, out = make_tiny_model(tmp_path / "tiny"), tmp_path / "sealed"
    sealed = run(
        program,
        "model",
        "seal",
        str(plain),
        "--out",
        str(out),
        "--version",
        "3",
        "--kek",
        kek,
        "--signer",
        signer,
        "--json",
    )
    assert sealed.exit_code == 0, sealed.output
    view = json.loads(sealed.stdout)
    assert (view["model"], view["version"]) == ("tiny", 3)
    assert view["model_digest"] == model_digest(plain).hex()
    assert json.loads(run(program, "model", "inspect", str(out), "--json").stdout) == view
    light = run(program, "model", "verify", str(out), "--signer", public, "--json")
    assert json.loads(light.stdout) == {"verified": True, "content": False, "manifest": view}
    whole = run(program, "model", "verify", str(out), "--signer", public, "--kek", kek)
    assert (whole.exit_code, whole.stdout.strip()) == (0, "every byte holds")


def test_what_does_not_hold_is_one_line_and_exit_1(tmp_path: Path, keys: tuple[str, str, str]) -> None:
    """A changed byte is found with the key, a stranger's signature without."""
    kek, signer, public = keys
    plain, out = make_tiny_model(tmp_path / "tiny"), tmp_path / "sealed"
    seal = ("model", "seal", str(plain), "--out", str(out), "--version", "1", "--kek", kek, "--signer", signer)
    assert run(bulkhead, *seal).exit_code == 0
    assert "ALREADY_EXISTS" in run(bulkhead, *seal).stderr
    stored = out / "00002.sealed"
    stored.write_bytes(bytes((stored.read_bytes()[0] ^ 1,)) + stored.read_bytes()[1:])
    assert run(bulkhead, "model", "verify", str(out), "--signer", public).exit_code == 0
    found = run(bulkhead, "model", "verify", str(out), "--signer", public, "--kek", kek)
    assert found.exit_code == 1
    assert found.stderr.startswith("error MODEL_ALTERED: chunk 0 of ")
    stranger = run(bulkhead, "model", "verify", str(out), "--signer", "A" * 43)
    assert (stranger.exit_code, stranger.stderr.startswith("error MODEL_SIGNATURE")) == (1, True)


def test_an_interrupted_run_leaves_no_model(
    tmp_path: Path, keys: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OUT appears at the end only; the next run succeeds."""
    from bulkhead.models import seal as module

    kek, signer, _ = keys
    plain, out = make_tiny_model(tmp_path / "tiny"), tmp_path / "out" / "sealed"
    seal = ("model", "seal", str(plain), "--out", str(out), "--version", "1", "--kek", kek, "--signer", signer)

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_durably", full)
        failed = run(bulkhead, *seal)
    assert (failed.exit_code, "No space left" in failed.stderr) == (2, True)
    assert list(out.parent.iterdir()) == []
    assert run(bulkhead, *seal).exit_code == 0


@pytest.mark.parametrize("program", [bulkhead, bulkhead_admin], ids=["bulkhead", "bulkhead-admin"])
def test_a_key_encryption_key_is_replaced(tmp_path: Path, keys: tuple[str, str, str], program: click.Command) -> None:
    """`model rewrap` prints the manifest that it wrote; the new key opens every byte, the old one is MODEL_KEY."""
    kek, signer, public = keys
    new = f"file:{tmp_path / 'new'}"
    out = str(tmp_path / "sealed")
    assert run(program, "model", "create-key", "--kek", new).exit_code == 0
    plain = str(make_tiny_model(tmp_path / "tiny"))
    seal = ("--out", out, "--version", "3", "--kek", kek, "--signer", signer, "--json")
    sealed = json.loads(run(program, "model", "seal", plain, *seal).stdout)
    done = run(program, "model", "rewrap", out, "--kek", kek, "--new-kek", new, "--signer", signer, "--json")
    assert done.exit_code == 0, done.output
    view = json.loads(done.stdout)
    assert (view["version"], view["model_digest"]) == (3, sealed["model_digest"])
    assert view["keks"] != sealed["keks"]
    whole = run(program, "model", "verify", out, "--signer", public, "--kek", new)
    assert (whole.exit_code, whole.stdout.strip()) == (0, "every byte holds")
    assert "error MODEL_KEY" in run(program, "model", "verify", out, "--signer", public, "--kek", kek).stderr
