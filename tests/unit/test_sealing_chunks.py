import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bulkhead.errors import SealError
from bulkhead.sealing import chunks
from bulkhead.sealing.chunks import ChunkOpener, ChunkSealer, Direction
from bulkhead.sealing.padding import BUCKETS, MAX_CHUNK_BYTES, MAX_RECORD_BYTES, PaddingMode, pad, unpad

MATERIAL = bytes(range(44))
UP, DOWN = Direction


def pair(direction=DOWN):
    return ChunkSealer(MATERIAL, direction), ChunkOpener(MATERIAL, direction)


def test_stream_opens_in_order():
    """Chunks open in order, and the final one closes both ends."""
    sealer, opener = pair()
    sealed = [sealer.seal(b"one"), sealer.seal(b""), sealer.seal(b"three", final=True)]
    assert [opener.open(chunk) for chunk in sealed] == [(b"one", False), (b"", False), (b"three", True)]
    assert sealer.closed
    assert opener.closed
    assert sealer.count == opener.count == 3


def test_nothing_follows_the_final_chunk():
    """A closed stream seals and opens nothing more."""
    sealer, opener = pair()
    final = sealer.seal(b"", final=True)
    opener.open(final)
    with pytest.raises(SealError):
        sealer.seal(b"more")
    with pytest.raises(SealError, match="after the end"):
        opener.open(final)


def _attacks():
    sealer, _ = pair()
    first, second = sealer.seal(b"first"), sealer.seal(b"second")
    reflected = ChunkSealer(MATERIAL, Direction.CLIENT_TO_SERVER).seal(b"first")
    foreign = ChunkSealer(bytes(44), DOWN).seal(b"first")
    flipped = bytearray(first)
    flipped[5] ^= 1
    return {
        "reordered": [second],
        "repeated": [first, first],
        "reflected": [reflected],
        "of another stream": [foreign],
        "altered": [bytes(flipped)],
        "cut": [first[:-1]],
        "made final": [b"\1" + first[1:]],
        "flag out of range": [b"\2" + first[1:]],
        "empty": [b""],
        "too short": [first[:16]],
        "too long": [first + bytes(MAX_CHUNK_BYTES)],
    }


@pytest.mark.parametrize("attack", _attacks())
def test_attack_closes_the_stream_for_good(attack):
    """The first chunk that does not open ends it: even the right one is refused afterwards."""
    sealer, opener = pair()
    *before, bad = _attacks()[attack]
    for chunk in before:
        opener.open(chunk)
    good = [sealer.seal(b"first"), sealer.seal(b"second")]
    with pytest.raises(SealError):
        opener.open(bad)
    with pytest.raises(SealError, match="after the end"):
        opener.open(good[len(before)])


def test_layout_is_aes_gcm_with_counter_nonce_and_bound_place():
    """A chunk is flag and AES-256-GCM under base XOR counter, with direction, counter and flag as AAD."""
    sealer, _ = pair()
    sealer.seal(b"first")
    chunk = sealer.seal(b"second", final=True)
    nonce = MATERIAL[32:43] + bytes([MATERIAL[43] ^ 1])
    aad = b"\x02" + b"\x00\x00\x00\x01" + b"\x01"
    assert chunk[:1] == b"\x01"
    assert AESGCM(MATERIAL[:32]).decrypt(nonce, chunk[1:], aad) == b"second"


def test_stream_has_at_most_the_limit_of_chunks(monkeypatch):
    """The last possible chunk must be final, on both sides."""
    monkeypatch.setattr(chunks, "MAX_CHUNKS", 3)
    sealer, opener = pair()
    opener.open(sealer.seal(b"1"))
    opener.open(sealer.seal(b"2"))
    with pytest.raises(SealError):
        sealer.seal(b"3")
    assert opener.open(sealer.seal(b"3", final=True)) == (b"3", True)


def test_oversized_plaintext_is_refused():
    """A chunk holds at most 64 KiB."""
    sealer, opener = pair()
    assert opener.open(sealer.seal(bytes(MAX_CHUNK_BYTES)))[0] == bytes(MAX_CHUNK_BYTES)
    with pytest.raises(SealError):
        sealer.seal(bytes(MAX_CHUNK_BYTES + 1))


def test_key_material_has_44_bytes():
    """Key material of another size is refused."""
    with pytest.raises(SealError):
        ChunkSealer(MATERIAL[:-1], DOWN)


SIZES = {  # direction and mode: what an observer may see
    (UP, PaddingMode.DEFAULT): BUCKETS,
    (DOWN, PaddingMode.DEFAULT): BUCKETS,
    (UP, PaddingMode.STRICT): (16_384, 65_536),
    (DOWN, PaddingMode.STRICT): (1_536, 4_096, 16_384, 65_536),
}


@pytest.mark.parametrize("size", [0, 1, 252, 253, 1_532, 1_533, 16_380, 16_381, MAX_RECORD_BYTES])
@pytest.mark.parametrize(("direction", "mode"), SIZES)
def test_padding_shows_only_the_bucket(direction, mode, size):
    """Every padded record has the least bucket of its mode and direction, and comes back unchanged."""
    padded = pad(b"\0" * size, mode, direction)
    assert len(padded) == min(bucket for bucket in SIZES[direction, mode] if bucket >= size + 4)
    assert unpad(padded, mode, direction) == b"\0" * size


def test_padding_off_adds_the_length_only():
    """Mode off costs four bytes."""
    assert pad(b"abc", PaddingMode.OFF, UP) == b"\0\0\0\3abc"
    assert unpad(b"\0\0\0\3abc", PaddingMode.OFF, UP) == b"abc"


def test_record_too_long_for_a_chunk_is_refused():
    """A record of more than 65,532 bytes does not fit."""
    for mode in PaddingMode:
        with pytest.raises(SealError):
            pad(bytes(MAX_RECORD_BYTES + 1), mode, UP)


@pytest.mark.parametrize("plaintext", [b"", b"\0\0\0", b"\0\0\0\4abc", b"\0\0\0\1ab", b"\0\0\0\0\0\1", b"\xff" * 8])
@pytest.mark.parametrize("mode", PaddingMode)
def test_malformed_padding_is_refused(plaintext, mode):
    """A length beyond the chunk, and filling that is not zero, are refused."""
    with pytest.raises(SealError):
        unpad(plaintext, mode, DOWN)


@pytest.mark.parametrize("mode", PaddingMode)
@pytest.mark.parametrize("other", PaddingMode)
def test_padding_of_another_mode_is_refused(mode, other):
    """A record padded less, or more, than its session pads does not pass."""
    plaintext = pad(b"text", mode, DOWN)
    if other is mode:
        assert unpad(plaintext, other, DOWN) == b"text"
    else:
        with pytest.raises(SealError):
            unpad(plaintext, other, DOWN)


def test_modes_are_ordered():
    """Each mode covers itself and those before it."""
    assert [[mode.covers(other) for other in PaddingMode] for mode in PaddingMode] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]
