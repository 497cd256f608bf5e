import os

import pytest

from audit.keys import LogKeys
from bulkhead.errors import ConfigError


def counting(size: int) -> bytes:
    return bytes(range(size))


def test_keys_survive_a_restart(tmp_path):
    """The same directory gives the same keys; another secret gives others."""
    first = LogKeys.load_or_create(tmp_path / "keys", random_bytes=counting)
    again = LogKeys.load_or_create(tmp_path / "keys", random_bytes=os.urandom)
    other = LogKeys.load_or_create(tmp_path / "other", random_bytes=os.urandom)
    assert first.signer("a/1").vkey == again.signer("a/1").vkey == LogKeys.load(tmp_path / "keys").signer("a/1").vkey
    assert first.salt(1, 2) == again.salt(1, 2)
    assert first.signer("a/1").vkey != other.signer("a/1").vkey


def test_each_log_and_slot_has_its_own(tmp_path):
    """Keys differ by origin, salts by round and by slot."""
    keys = LogKeys.load_or_create(tmp_path, random_bytes=counting)
    assert len({keys.signer(f"a/{n}").verifier.public_key for n in range(10)}) == 10
    assert len({keys.salt(r, s) for r in range(5) for s in range(5)}) == 25


def test_the_secret_is_private(tmp_path):
    """The file is made with mode 0600 and refused when others may read it; the vkey does not hold it."""
    keys = LogKeys.load_or_create(tmp_path / "keys", random_bytes=counting)
    path = next((tmp_path / "keys").iterdir())
    assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    assert "AAECAwQFBgc" in path.read_text()
    assert "AAECAwQFBgc" not in keys.signer("a/1").vkey
    path.chmod(0o640)
    with pytest.raises(ConfigError):
        LogKeys.load(tmp_path / "keys")


@pytest.mark.parametrize("content", ["", "x", "AAAA\n", "é"])
def test_a_malformed_file_is_refused(tmp_path, content):
    """A damaged secret is a configuration error, never a new secret."""
    (tmp_path / "log-root.key").write_text(content)
    (tmp_path / "log-root.key").chmod(0o600)
    with pytest.raises(ConfigError):
        LogKeys.load_or_create(tmp_path, random_bytes=counting)


def test_a_link_is_not_followed(tmp_path):
    """A symbolic link in place of the file is refused."""
    (tmp_path / "elsewhere").write_text("x")
    (tmp_path / "log-root.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError):
        LogKeys.load_or_create(tmp_path, random_bytes=counting)
