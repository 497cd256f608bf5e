"""The fuzzer itself: what it must find, it finds."""

import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("name", "seconds", "said"),
    [
        ("crash", 20, "IndexError: planted"),
        ("growth", 20, "MemoryGrowthError"),
        pytest.param("hang", 40, "libFuzzer: timeout", marks=pytest.mark.long),
    ],
)
def test_a_planted_fault_is_found(name: str, seconds: int, said: str, tmp_path: Path) -> None:
    """A parser that raises something else than our errors, keeps what it reads or does not end, is status 1."""
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.fuzz", "--module", "tests.fuzz.planted", "--only", f"planted-{name}",
            "--seconds", str(seconds), "--work", str(tmp_path),
        ],
        cwd=_ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert said in done.stdout
    assert f"planted-{name}: FOUND" in done.stdout
