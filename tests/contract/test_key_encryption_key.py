"""One contract for both key encryption keys: a file, and a PKCS#11 token (SoftHSM)."""

import secrets
from pathlib import Path

import pytest

from bulkhead.errors import AlreadyExistsError, ConfigError, KeyBrokerError, ModelKeyError
from bulkhead.models import FileKek, KeyEncryptionKey, open_kek, wrapping_context
from bulkhead.models.kek_pkcs11 import TokenKek
from tests.simulator.softhsm import TOKEN, SoftHsm, softhsm_token

KEY = bytes(range(32))
CONTEXT = wrapping_context(model="tiny", version=3, model_digest=bytes(32))


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> SoftHsm:
    with softhsm_token(tmp_path_factory.mktemp("softhsm")) as made:
        return made


def make(kind: str, label: str, directory: Path, token: SoftHsm) -> str:
    if kind == "file":
        FileKek.create(directory / label)
        return f"file:{directory / label}"
    TokenKek.create(module=token.module, token=TOKEN, label=label, pin_file=token.pin_file)
    return token.uri(label)


@pytest.fixture(params=["file", "pkcs11"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, token: SoftHsm) -> str:
    return make(request.param, f"kek-{secrets.token_hex(4)}", tmp_path, token)


@pytest.fixture
def kek(uri: str) -> KeyEncryptionKey:
    return open_kek(uri)


def test_what_was_wrapped_unwraps(kek: KeyEncryptionKey, uri: str) -> None:
    """Also through the key opened anew; wrapping twice gives different bytes, and the id tells nothing of the key."""
    first, second = (kek.wrap(KEY, context=CONTEXT) for _ in range(2))
    assert first != second
    assert len(first) == len(second) == 60
    again = open_kek(uri)
    assert again.kek_id == kek.kek_id
    assert again.unwrap(first, context=CONTEXT) == KEY == again.unwrap(second, context=CONTEXT)


@pytest.mark.parametrize(
    "context",
    [
        wrapping_context(model="other", version=3, model_digest=bytes(32)),
        wrapping_context(model="tiny", version=4, model_digest=bytes(32)),
        wrapping_context(model="tiny", version=3, model_digest=bytes(31) + b"\1"),
        b"",
    ],
    ids=["model", "version", "digest", "empty"],
)
def test_a_wrapped_key_is_of_one_model_and_version(kek: KeyEncryptionKey, context: bytes) -> None:
    """Under another model, version or digest it does not unwrap."""
    wrapped = kek.wrap(KEY, context=CONTEXT)
    with pytest.raises(ModelKeyError):
        kek.unwrap(wrapped, context=context)


def test_altered_and_malformed_keys_are_refused(kek: KeyEncryptionKey) -> None:
    """Every byte counts, and so does the length."""
    wrapped = kek.wrap(KEY, context=CONTEXT)
    broken = [wrapped[:at] + bytes((wrapped[at] ^ 1,)) + wrapped[at + 1 :] for at in (0, 11, 12, 43, 44, 59)]
    for data in (*broken, wrapped[:-1], wrapped + b"\0", b"", wrapped[:12], bytes(60)):
        with pytest.raises(ModelKeyError):
            kek.unwrap(data, context=CONTEXT)


@pytest.mark.parametrize("kind", ["file", "pkcs11"])
def test_keys_of_two_stores_do_not_open_each_others(kind: str, tmp_path: Path, token: SoftHsm) -> None:
    """Another key encryption key of the same kind unwraps nothing, and has another id."""
    mine, other = (open_kek(make(kind, f"{name}-{kind}", tmp_path, token)) for name in ("mine", "other"))
    assert mine.kek_id != other.kek_id
    with pytest.raises(ModelKeyError):
        other.unwrap(mine.wrap(KEY, context=CONTEXT), context=CONTEXT)


@pytest.mark.parametrize("kind", ["file", "pkcs11"])
def test_a_key_is_never_overwritten(kind: str, tmp_path: Path, token: SoftHsm) -> None:
    """Making a key where one is would take the models under it with it."""
    make(kind, f"twice-{kind}", tmp_path, token)
    with pytest.raises(AlreadyExistsError):
        make(kind, f"twice-{kind}", tmp_path, token)


def test_a_tokens_key_stays_in_it(tmp_path: Path, token: SoftHsm) -> None:
    """The token refuses to give the key's value; one that it would give is refused by us."""
    import pkcs11

    make("pkcs11", "inside", tmp_path, token)
    with pkcs11.lib(str(token.module)).get_token(token_label=TOKEN).open(user_pin="271828", rw=True) as session:
        key = session.get_key(label="inside")
        with pytest.raises(pkcs11.exceptions.AttributeSensitive):
            key[pkcs11.Attribute.VALUE]
        loose = {pkcs11.Attribute.SENSITIVE: False, pkcs11.Attribute.EXTRACTABLE: True}
        session.generate_key(pkcs11.KeyType.AES, 256, label="loose", store=True, template=loose)
    with pytest.raises(ConfigError, match="can leave"):
        open_kek(token.uri("loose"))


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """So are a short file and a missing one."""
    FileKek.create(tmp_path / "kek")
    (tmp_path / "kek").chmod(0o640)
    (tmp_path / "short").write_bytes(b"x" * 31)
    (tmp_path / "short").chmod(0o600)
    for name, words in (("kek", "others"), ("short", "32 bytes"), ("none", "cannot be read")):
        with pytest.raises(ConfigError, match=words):
            open_kek(f"file:{tmp_path / name}")


def test_what_a_token_does_not_have_is_said(tmp_path: Path, token: SoftHsm) -> None:
    """No such key, token, PIN or library: a typed error each, never a hang."""
    make("pkcs11", "there", tmp_path, token)
    (tmp_path / "pin").write_text("000000")
    cases = [
        (token.uri("absent"), ConfigError, "has not one AES key"),
        (token.uri("there").replace(TOKEN, "nowhere"), ConfigError, "has not one token"),
        (token.uri("there").replace(str(token.pin_file), str(tmp_path / "pin")), ConfigError, "refuses the PIN"),
        (token.uri("there").replace(str(token.pin_file), "/nowhere"), ConfigError, "cannot be read"),
        (token.uri("there").replace(str(token.module), "/nowhere.so"), KeyBrokerError, "out of reach"),
        (token.uri("there").split("?")[0], ConfigError, "RFC 7512|module-path"),
        ("pkcs11:token=a?module-path=b&pin-source=c", ConfigError, "token and object"),
        ("vault:x", ConfigError, "PKCS#11 URI"),
        ("file:", ConfigError, "PKCS#11 URI"),
    ]
    for uri, error, words in cases:
        with pytest.raises(error, match=words):
            open_kek(uri)
