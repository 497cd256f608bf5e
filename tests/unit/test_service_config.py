from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from bulkhead.errors import ConfigError
from service.config import load_config, require_between
from service.files import PUBLIC, make_private_directory, read_private, write_file


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limits:
    timeout_s: float = 1.0

    def __post_init__(self) -> None:
        require_between(self.timeout_s, 0.1, 5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Config:
    name: str
    count: int = 1
    mode: Literal["a", "b"] = "a"
    file: Path | None = None
    words: tuple[str, ...] = ()
    limits: _Limits = field(default_factory=_Limits)
    peers: tuple[_Limits, ...] = ()


def _load(tmp_path: Path, text: str) -> _Config:
    path = tmp_path / "process.toml"
    path.write_text(text)
    return load_config(_Config, path)


def test_defaults_tables_and_relative_paths(tmp_path: Path) -> None:
    """Absent keys take defaults, tables become their dataclass, and a path is relative to the file."""
    config = _load(tmp_path, 'name = "x"\nfile = "key.pem"\nwords = ["u", "v"]\n[limits]\ntimeout_s = 2')
    assert config == _Config(name="x", file=tmp_path / "key.pem", words=("u", "v"), limits=_Limits(timeout_s=2.0))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "x"\ncuont = 1', "top level: unknown key cuont"),
        ('name = "x"\n[limits]\ntimeout = 1', "limits: unknown key timeout"),
        ('name = "x"\n[[peers]]\nother = 1', "peers: unknown key other"),
        ("count = 1", "name: required and missing"),
        ('name = "x"\ncount = "1"', "count: expected int, found str"),
        ('name = "x"\ncount = true', "count: expected int, found bool"),
        ("name = 4", "name: expected str, found int"),
        ('name = "x"\nwords = "uv"', "words: expected an array, found str"),
        ('name = "x"\nmode = "c"', "mode: c not in literal"),
        ('name = "x"\nlimits = 1', "limits: expected a table"),
        ('name = "x"\n[limits]\ntimeout_s = 9', "limits: 9.0 is not between 0.1 and 5.0"),
        ('name = "x"\nfile = ""', "file: expected a path"),
        ("name = [", "not TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    """An unknown key, a missing one and a value of another type or range are errors naming file, table and key."""
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, text)
    assert caught.value.message.startswith(str(tmp_path / "process.toml"))
    assert said in caught.value.message


def test_every_wrong_key_is_told_at_once(tmp_path: Path) -> None:
    """Two mistakes are two statements in one error, so that a file is not corrected by trial."""
    with pytest.raises(ConfigError, match=r"count: expected int.*unknown key other"):
        _load(tmp_path, 'name = "x"\ncount = "1"\nother = 2')


def test_a_missing_or_huge_file_is_refused(tmp_path: Path) -> None:
    """A configuration that cannot be read, or is no configuration by size, is a ConfigError."""
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(_Config, tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="longer than"):
        _load(tmp_path, "#" * (1024 * 1024 + 1))


def test_private_files_are_born_private_and_whole(tmp_path: Path) -> None:
    """A secret's file has mode 0600 from its first moment, and a failed replacement leaves the old content."""
    path = make_private_directory(tmp_path / "keys") / "token"
    assert path.parent.stat().st_mode & 0o777 == 0o700
    write_file(path, b"one")
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="exists already"):
        write_file(path, b"two", replace=False)
    assert read_private(path, what="token") == b"one"
    assert [entry.name for entry in path.parent.iterdir()] == ["token"]


def test_a_secret_open_to_others_is_refused(tmp_path: Path) -> None:
    """A key that group or others can read is refused, with the command that closes it, and so is an empty one."""
    path = tmp_path / "token"
    write_file(path, b"hunter2", mode=PUBLIC)
    with pytest.raises(ConfigError, match=r"chmod 600") as caught:
        read_private(path, what="token")
    assert "hunter2" not in caught.value.message
    write_file(path, b"")
    with pytest.raises(ConfigError, match="empty"):
        read_private(path, what="token")
    with pytest.raises(ConfigError, match="not a regular file"):
        read_private(Path("/dev/null"), what="token")
