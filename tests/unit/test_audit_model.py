"""The commit protocol, model-checked: tests/model/audit_commit.pml, with Spin."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.test_audit_crash import STEPS

MODEL = Path(__file__).parents[1] / "model" / "audit_commit.pml"


def check(directory: Path, *options: str) -> tuple[int, str]:
    """Search every state; return the number of errors, and the checker's report."""
    spin, compiler = shutil.which("spin"), shutil.which("gcc")
    assert spin is not None, "Spin is missing: install Debian's package spin (scripts/setup.sh does, as root)"
    assert compiler is not None, "gcc is missing: install Debian's packages gcc and libc6-dev"
    subprocess.run([spin, *options, "-a", MODEL], cwd=directory, check=True, capture_output=True, timeout=60)
    subprocess.run([compiler, "-O2", "-DSAFETY", "-o", "pan", "pan.c"], cwd=directory, check=True, timeout=120)
    report = subprocess.run(
        ["./pan", "-m200000", "-E"], cwd=directory, check=True, capture_output=True, text=True, timeout=900
    ).stdout
    found = re.search(r"errors: (\d+)", report)
    assert found is not None, report
    assert "max search depth too small" not in report
    return int(found[1]), report


def test_fail_over_between_two_writers(tmp_path):
    """Restores and fail-overs under two writers: no fork, and no acknowledged record is lost unnoticed."""
    assert check(tmp_path, "-DCRASHES=0")[0] == 0


def test_crashes_never_make_a_writer_refuse(tmp_path):
    """Crashes alone: no fork, nothing lost, and a restart needs no help."""
    assert check(tmp_path, "-DNO_RESTORE")[0] == 0


@pytest.mark.parametrize("broken", ["ACK_EARLY", "NO_LOCK_CHECK", "NO_RECHECK"])
def test_broken_variants_are_caught(tmp_path, broken):
    """The checker is able to find what it looks for: each variant without one of the protocol's checks fails."""
    errors, report = check(tmp_path, f"-D{broken}", "-DCRASHES=0")
    assert errors
    assert "assertion violated" in report


@pytest.mark.long
@pytest.mark.timeout(1_800)
def test_crashes_and_fail_over_together(tmp_path):
    """The whole space: crashes and restores in one run."""
    assert check(tmp_path)[0] == 0


def test_the_model_has_the_steps_of_the_code():
    """The model's labels are the failpoints that the code passes, in the same order."""
    labels = re.findall(r"^([a-z]+_[a-z]+):", MODEL.read_text(), flags=re.MULTILINE)
    assert [label.replace("_", ".") for label in labels] == STEPS
