"""The import name ``bulkhead`` belongs to this project here, not to the package of that name on the index."""

import itertools
from importlib import metadata
from pathlib import Path

import pytest

import bulkhead

ROOT = Path(__file__).resolve().parents[2]


def test_bulkhead_is_imported_from_this_project() -> None:
    """Somebody else's distribution named `bulkhead` does not shadow the SDK."""
    assert Path(bulkhead.__file__ or "").resolve().is_relative_to(ROOT / "sdk" / "src")
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.distribution("bulkhead")
    assert metadata.distribution("bulkhead-sdk").version


def test_nothing_tells_a_reader_to_install_the_other_package() -> None:
    """No document says `pip install bulkhead`."""
    pages = [ROOT / "README.md", ROOT / "sdk" / "README.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        words = page.read_text().replace("bulkhead-", "bulkhead_").split()
        for verb, name in itertools.pairwise(words):
            assert not (verb == "install" and name.strip("`'\".,") == "bulkhead"), page
