import pytest

from bulkhead.errors import MalformedRequestError, SealError, StaleKeyError
from bulkhead.sealing import hpke
from bulkhead.sealing.hpke import ENC_BYTES, PUBLIC_KEY_BYTES, KemPrivateKey, KemPublicKey


def key(value=1):
    return KemPrivateKey(bytes([value]) * 32)


def test_sealed_opens_under_key_and_info():
    """What is sealed to a decoded public key opens with the private key under the same info."""
    public = KemPublicKey(key().public_key.encoded)
    sealed = public.seal(b"secret", info=b"context")
    assert len(sealed) == ENC_BYTES + 6 + 16
    assert key().open(sealed, info=b"context") == b"secret"


def test_sealing_is_randomised():
    """The same secret sealed twice gives different bytes."""
    public = key().public_key
    assert public.seal(b"secret", info=b"") != public.seal(b"secret", info=b"")


@pytest.mark.parametrize("change", ["key", "info", "enc", "ct", "tag", "cut", "empty"])
def test_any_change_fails(change):
    """Another key, another info, a changed byte anywhere or a cut give SealError."""
    private, info = key(), b"context"
    sealed = bytearray(private.public_key.seal(b"s" * 32, info=info))
    match change:
        case "key":
            private = key(2)
        case "info":
            info = b"contexu"
        case "enc":
            sealed[7] ^= 1
        case "ct":
            sealed[ENC_BYTES] ^= 1
        case "tag":
            sealed[-1] ^= 1
        case "cut":
            sealed = sealed[:-1]
        case "empty":
            sealed = bytearray()
    with pytest.raises(SealError):
        private.open(bytes(sealed), info=info)


@pytest.mark.parametrize("encoded", [b"", b"\0" * (PUBLIC_KEY_BYTES - 1), b"\xff" * PUBLIC_KEY_BYTES])
def test_malformed_public_key_is_refused(encoded):
    """Wrong sizes, and coefficients that are not reduced (FIPS 203 section 7.2), are no key."""
    with pytest.raises(MalformedRequestError):
        KemPublicKey(encoded)


def test_low_order_x25519_part_is_refused_when_sealing():
    """A public key whose X25519 part is of low order gets nothing sealed to it."""
    encoded = key().public_key.encoded[:-32] + bytes(32)
    with pytest.raises(SealError):
        KemPublicKey(encoded).seal(b"secret", info=b"")


def test_seed_has_32_bytes():
    """A seed of another size is refused."""
    with pytest.raises(MalformedRequestError):
        KemPrivateKey(b"short")


def test_destroyed_key_opens_nothing():
    """After destroy the key is stale, not merely wrong."""
    private = key()
    sealed = private.public_key.seal(b"secret", info=b"")
    private.destroy()
    with pytest.raises(StaleKeyError):
        private.open(sealed, info=b"")


def test_fresh_key_passes_through_no_python_memory(monkeypatch):
    """A key without a seed is OpenSSL's alone: nothing is drawn, expanded or loaded in Python; two of them differ."""
    monkeypatch.setattr(hpke, "_expand", None)
    keys = [KemPrivateKey.generate() for _ in range(2)]
    assert keys[0].public_key.encoded != keys[1].public_key.encoded
    assert keys[0].open(keys[0].public_key.seal(b"secret", info=b"i"), info=b"i") == b"secret"
