"""What the documents claim exists: the tests and files that they name or link to, obligations, decision records."""

import re
from pathlib import Path

import pytest

from bulkhead.attestation.nvidia import GPU_OBLIGATIONS
from bulkhead.attestation.obligations import Obligations
from bulkhead.attestation.snp import SNP_OBLIGATIONS
from bulkhead.attestation.tdx import TDX_OBLIGATIONS
from bulkhead.client import config

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "sdk" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks" / "results").glob("*.md")),
]


def test_every_test_that_a_page_names_exists() -> None:
    """A claim without its test, or with a renamed one, is found; the threat model makes most of them."""
    named = {page.name: set(re.findall(r"`(test_\w+)`", page.read_text())) for page in PAGES}
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named["threat-model.md"]) > 50
    missing = [name for names in named.values() for name in names if not re.search(rf"def {name}\(", sources)]
    assert sorted(missing) == []


def test_every_file_that_a_page_names_exists() -> None:
    """A path of the repository in a page's text leads to a file or folder, with its wildcards to at least one."""
    folders = "audit|benchmarks|control_plane|data_plane|deploy|docs|policies|proto|scripts|sdk|service|tests"
    broken = [
        f"{page.relative_to(ROOT)}: {path}"
        for page in PAGES
        for path in re.findall(rf"`((?:{folders})/[\w./*-]*)(?:::\w+)?`", page.read_text())
        if not any(ROOT.glob(path.rstrip("/")))
    ]
    assert broken == []


def test_links_between_pages_lead_somewhere() -> None:
    """Every relative link of a page names a file or folder of the repository."""
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == []


def test_every_key_of_a_profile_stands_in_the_page() -> None:
    """What a profile may say is listed whole in docs/sdk.md."""
    keys = set(re.findall(r'table\.\w+\("(\w+)"', Path(config.__file__).read_text()))
    page = (ROOT / "docs" / "sdk.md").read_text()
    assert {"address", "witness_quorum", "trust_policy_file"} < keys
    assert [key for key in sorted(keys) if not re.search(rf"\b{key}\b", page)] == []


@pytest.mark.parametrize("table", [SNP_OBLIGATIONS, TDX_OBLIGATIONS, GPU_OBLIGATIONS], ids=["snp", "tdx", "gpu"])
def test_obligations_stand_in_the_page_as_in_the_code(table: Obligations) -> None:
    """docs/attestation.md has every obligation's number and sentence, and no other."""
    rows = re.findall(
        r"^\| ([A-Z]{3}-[0-9]+) \| (.*?) \| ", (ROOT / "docs" / "attestation.md").read_text(), re.MULTILINE
    )
    prefix = next(iter(table))[:4]
    assert [row for row in rows if row[0].startswith(prefix)] == list(table.items())


def test_adrs_are_numbered_without_gaps_and_indexed() -> None:
    """Decision records are numbered 0001, 0002 and so on, and the index has each under its title."""
    folder = ROOT / "docs" / "adr"
    records = sorted(folder.glob("[0-9]*.md"))
    assert [int(path.name[:4]) for path in records] == list(range(1, len(records) + 1))
    heads = [re.fullmatch(r"# (\d+)\. (.*)", path.read_text().partition("\n")[0]) for path in records]
    rows = [f"| {head[1]} | [{head[2]}]({path.name}) |" for head, path in zip(heads, records, strict=True) if head]
    assert re.findall(r"^\| \d.*$", (folder / "README.md").read_text(), re.MULTILINE) == rows
