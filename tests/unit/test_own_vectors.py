"""Own vectors as files: each accepted case and each failure, through the command line, for the obligation it names."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkhead.attestation.nvidia import GPU_OBLIGATIONS
from bulkhead.attestation.snp import SNP_OBLIGATIONS
from bulkhead.attestation.tdx import TDX_OBLIGATIONS
from tests.simulator.own_vectors import read_vectors, run_vector, trust_roots_of, write_vectors


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every case as files, under roots that this process trusts for the time being."""
    folder = tmp_path_factory.mktemp("own") / "vectors"
    write_vectors(folder)
    patch = trust_roots_of(folder)
    yield folder
    patch.undo()


@pytest.mark.parametrize("table", [SNP_OBLIGATIONS, TDX_OBLIGATIONS, GPU_OBLIGATIONS], ids=["snp", "tdx", "nvidia"])
def test_every_obligation_has_files_that_fail_it(written: Path, table: dict[str, str]) -> None:
    """The table of each technology is covered, in full, by cases that a person can try; and one is accepted."""
    cases = dict(read_vectors(written))
    technology = {"SNP": "snp", "TDX": "tdx", "GPU": "nvidia"}[next(iter(table))[:3]]
    of_this = {name: obligation for name, obligation in cases.items() if name.startswith(f"{technology}/")}
    assert {obligation for obligation in of_this.values() if obligation} == set(table)
    assert None in of_this.values()


def test_each_case_ends_as_it_says(written: Path) -> None:
    """Accepted cases end with 0, failures with 1 and the number of the one obligation that fails."""
    for case, obligation in read_vectors(written):
        code, output, error = run_vector(written, case)
        facts = json.loads(output)
        expected = (0, True, None) if obligation is None else (1, False, obligation)
        assert (code, facts["verified"], facts.get("obligation")) == expected, (case, error)


def test_installed_program_trusts_none_of_it(written: Path) -> None:
    """Under the vendors' own roots each accepted case is refused for its chain."""
    for case, obligation in read_vectors(written):
        if obligation is None and ("base" in case or "version-4" in case):
            patch = pytest.MonkeyPatch()
            patch.setattr("bulkhead.attestation.snp.verify.amd_roots", _vendors("snp", "amd_roots"))
            patch.setattr("bulkhead.attestation.tdx.verify.intel_roots", _vendors("tdx", "intel_roots"))
            patch.setattr("bulkhead.attestation.nvidia.verify.nvidia_roots", _vendors("nvidia", "nvidia_roots"))
            code, output, _ = run_vector(written, case)
            patch.undo()
            assert (code, json.loads(output)["obligation"]) in {(1, "SNP-4"), (1, "TDX-2"), (1, "GPU-2")}, case


def _vendors(technology: str, name: str) -> object:
    import importlib

    return getattr(importlib.import_module(f"bulkhead.attestation.{technology}.roots"), name)
