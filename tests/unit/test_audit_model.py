"""The commit protocol, model-checked: tests/model/audit_commit.pml, with Spin."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.test_audit_crash import STEPS

MODEL = Path(__file__).parents[1] / "model" / "audit_commit.pml"


def check(directory: Path, *options: str) -> tuple[int, str]:
    """Search every state within the bounds; return the number of errors, and the checker's report."""
    spin, compiler = shutil.which("spin"), shutil.which("gcc")
    assert spin is not None, "Spin is missing: install Debian's package spin (scripts/setup.sh does, as root)"
    assert compiler is not None, "gcc is missing: install Debian's packages gcc and libc6-dev"
    subprocess.run([spin, *options, "-a", MODEL], cwd=directory, check=True, capture_output=True, timeout=60)
    build = [compiler, "-O1", "-DSAFETY", "-DCOLLAPSE", "-DMEMLIM=4096", "-o", "pan", "pan.c"]
    subprocess.run(build, cwd=directory, check=True, timeout=120)
    report = subprocess.run(
        ["./pan", "-m10000", "-w22", "-E"], cwd=directory, check=True, capture_output=True, text=True, timeout=1_200
    ).stdout
    found = re.search(r"errors: (\d+)", report)
    assert found is not None, report
    for cut_short in ("max search depth too small", "Search not completed", "out of memory", "Bit statespace"):
        assert cut_short not in report or int(found[1]), report
    return int(found[1]), report


@pytest.mark.parametrize(
    "bounds",
    [
        pytest.param(["-DCRASHES=2", "-DRESTORES=2"], id="two of each"),
        pytest.param(["-DCRASHES=0", "-DRESTORES=3", "-DCOMMITS=3"], id="three restores"),
        pytest.param(["-DCOMMITS=4", "-DCRASHES=2", "-DRESTORES=2"], id="four commits", marks=pytest.mark.long),
        pytest.param(["-DWRITERS=3"], id="three writers", marks=pytest.mark.long),
    ],
)
def test_crashes_and_fail_over_together(tmp_path, bounds):
    """Crashes, lost answers, restores and fail-overs in one run: no fork, nothing acknowledged is lost unnoticed."""
    assert check(tmp_path, *bounds)[0] == 0


def test_crashes_never_make_a_writer_refuse(tmp_path):
    """Crashes alone: no fork, nothing lost, and a restart needs no help."""
    assert check(tmp_path, "-DNO_RESTORE", "-DCRASHES=3", "-DCOMMITS=3")[0] == 0


@pytest.mark.parametrize("broken", ["ACK_EARLY", "NO_LOCK_CHECK", "NO_RECHECK", "NO_COMPARE", "NUMBER_ONLY"])
def test_broken_variants_are_caught(tmp_path, broken):
    """The checker is able to find what it looks for: each variant without one of the protocol's checks fails."""
    errors, report = check(tmp_path, f"-D{broken}", "-DCRASHES=0")
    assert errors
    assert "assertion violated" in report


def test_every_step_is_reached(tmp_path):
    """One crash and one restore: no error, and no statement of writer or restore is dead: all of it was searched."""
    errors, report = check(tmp_path)
    assert errors == 0
    for process in ("Writer", "Restore"):
        assert re.search(rf"unreached in proctype {process}\n\t\(0 of \d+ states\)", report), report


def test_the_model_has_the_steps_of_the_code():
    """The model's labels are the failpoints that the code passes, in the same order."""
    labels = re.findall(r"^([a-z]+_[a-z]+):", MODEL.read_text(), flags=re.MULTILINE)
    assert [label.replace("_", ".") for label in labels] == STEPS
