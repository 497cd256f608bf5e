import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bulkhead.attestation import model_digest as module
from bulkhead.attestation.model_digest import model_digest, model_manifest
from bulkhead.errors import InvalidRequestError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    (root / "sub").mkdir(parents=True)
    (root / "b.txt").write_bytes(b"bee")
    (root / "a.txt").write_bytes(b"")
    (root / "sub" / ".hidden").write_bytes(b"h")
    return root


def test_the_digest_is_that_of_the_documented_manifest(model: Path) -> None:
    """The digest is SHA-256 over the canonical JSON that the documentation shows, spelled out here by hand."""
    empty, bee, hidden = (hashlib.sha256(data).hexdigest() for data in (b"", b"bee", b"h"))
    manifest = (
        f'{{"files":[{{"path":"a.txt","sha256":"{empty}","size":0}},{{"path":"b.txt","sha256":"{bee}","size":3}},'
        f'{{"path":"sub/.hidden","sha256":"{hidden}","size":1}}],"version":1}}'
    )
    assert model_digest(model) == hashlib.sha256(manifest.encode()).digest()
    assert [file.path for file in model_manifest(model).files] == ["a.txt", "b.txt", "sub/.hidden"]


CHANGES: list[Callable[[Path], object]] = [
    lambda model: (model / "b.txt").write_bytes(b"bEe"),
    lambda model: (model / "b.txt").rename(model / "c.txt"),
    lambda model: (model / "sub" / ".hidden").unlink(),
    lambda model: (model / "new").write_bytes(b""),
    lambda model: (model / "sub" / ".hidden").rename(model / ".hidden"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_content_or_names_changes_the_digest(model: Path, change: Callable[[Path], object]) -> None:
    """An edited, renamed, removed, added or moved file gives another model."""
    before = model_digest(model)
    change(model)
    assert model_digest(model) != before


def test_modes_times_and_the_directorys_name_do_not_count(model: Path) -> None:
    """The same files elsewhere are the same model."""
    before = model_digest(model)
    (model / "b.txt").chmod(0o600)
    os.utime(model / "b.txt", (1, 1))
    assert model_digest(model.rename(model.parent / "other")) == before


def test_a_link_inside_the_directory_counts_as_its_file(model: Path) -> None:
    """Caches keep content under blobs and link names to it: the link's name and the content count."""
    (model / "link.txt").symlink_to("b.txt")
    files = {file.path: file.sha256 for file in model_manifest(model).files}
    assert files["link.txt"] == files["b.txt"]


def _link_out(model: Path) -> None:
    (model.parent / "secret").write_bytes(b"s")
    (model / "x").symlink_to("../secret")


def _directory_link(model: Path) -> None:
    (model / "loop").symlink_to(".")


def _unicode_twins(model: Path) -> None:
    (model / "\u00e9").write_bytes(b"1")
    (model / "e\u0301").write_bytes(b"2")


def _deep(model: Path) -> None:
    (model / "/".join("abcdefghij")).mkdir(parents=True)
    (model / "/".join("abcdefghij") / "f").write_bytes(b"")


def _long_name(model: Path) -> None:
    path = model / ("x" * 200) / ("y" * 200) / ("z" * 200)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")


REFUSED: list[Callable[[Path], object]] = [
    _link_out,
    _directory_link,
    _unicode_twins,
    _deep,
    _long_name,
    lambda model: (model / "dangling").symlink_to("nowhere"),
    lambda model: (model / "loop").symlink_to("loop"),
    lambda model: os.mkfifo(model / "pipe"),
    lambda model: Path(os.fsdecode(os.fsencode(model) + b"/\xff")).write_bytes(b""),
]


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_what_cannot_be_named_once_and_for_all_is_refused(model: Path, change: Callable[[Path], object]) -> None:
    """Links out of the directory, loops, pipes, ambiguous or endless names: a typed error, and no waiting."""
    change(model)
    with pytest.raises(InvalidRequestError):
        model_digest(model)


def test_no_directory_and_an_empty_one_are_refused(tmp_path: Path) -> None:
    """There is no model to name."""
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(InvalidRequestError):
            model_digest(path)


def test_the_number_of_files_is_bounded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory with more entries than any model is refused without reading them all."""
    monkeypatch.setattr(module, "MAX_FILES", 3)
    with pytest.raises(InvalidRequestError, match="more than 3"):
        model_digest(model)
