"""Cosignatures of both kinds, and quorums of witnesses."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bulkhead.errors import CheckpointError
from bulkhead.transparency.checkpoint import Checkpoint, sign_checkpoint
from bulkhead.transparency.cosignature import Algorithm, Cosigner, Witness, open_cosigned
from bulkhead.transparency.note import NoteSigner, make_signer_key, split_note

ORIGIN = "audit.test/platform/1"
SIGNER = NoteSigner.from_seed(ORIGIN, bytes(32))
CHECKPOINT = Checkpoint(ORIGIN, 7, bytes(range(32)))
NOTE = sign_checkpoint(CHECKPOINT, SIGNER)
TEXT = CHECKPOINT.text()
ED = Cosigner.from_seed("witness.test/ed", bytes([1]) * 32)
ML = Cosigner.from_seed("witness.test/ml", bytes([2]) * 32, Algorithm.ML_DSA_44)
NOW_S = 1_790_000_000


def opened(note: str, *witnesses: Cosigner, quorum: int):
    return open_cosigned(
        note, vkey=SIGNER.vkey, origin=ORIGIN, witnesses=[item.witness for item in witnesses], quorum=quorum
    )


@pytest.mark.parametrize("cosigner", [ED, ML], ids=["ed25519", "ml-dsa-44"])
def test_a_cosignature_counts_with_its_time(cosigner):
    """A pinned witness's cosignature counts, and says when it was made."""
    found = opened(NOTE + cosigner.cosign(TEXT, NOW_S), ED, ML, quorum=1)
    assert (found.checkpoint, found.witnesses) == (CHECKPOINT, ((cosigner.witness.name, NOW_S),))


def test_a_quorum_counts_witnesses_not_keys():
    """Two witnesses make two; one with two keys, or twice in a note, makes one; strangers make none."""
    second = Cosigner.from_seed(ED.witness.name, bytes([3]) * 32, Algorithm.ML_DSA_44)
    stranger = Cosigner.from_seed("witness.test/x", bytes([4]) * 32)
    both = NOTE + ED.cosign(TEXT, NOW_S) + ML.cosign(TEXT, NOW_S)
    assert len(opened(both, ED, ML, quorum=2).witnesses) == 2
    for note, witnesses in (
        (NOTE + ED.cosign(TEXT, NOW_S) + second.cosign(TEXT, NOW_S), (ED, second)),
        (NOTE + ED.cosign(TEXT, NOW_S) + ED.cosign(TEXT, NOW_S + 1), (ED, ML)),
        (NOTE + ED.cosign(TEXT, NOW_S) + stranger.cosign(TEXT, NOW_S), (ED, ML)),
        (both, (ED,)),
    ):
        with pytest.raises(CheckpointError, match="1 cosignatures by pinned witnesses, 2 are required"):
            opened(note, *witnesses, quorum=2)


@pytest.mark.parametrize("cosigner", [ED, ML], ids=["ed25519", "ml-dsa-44"])
def test_a_changed_cosignature_is_an_error(cosigner):
    """A pinned witness's line that does not hold is an error even where nothing is required."""
    for text in (
        Checkpoint(ORIGIN, 8, CHECKPOINT.root).text(),
        Checkpoint(ORIGIN, 7, bytes(32)).text(),
        Checkpoint(ORIGIN + "x", 7, CHECKPOINT.root).text(),
    ):
        with pytest.raises(CheckpointError, match="does not hold"):
            opened(NOTE + cosigner.cosign(text, NOW_S), cosigner, quorum=0)
    line = split_note(NOTE + cosigner.cosign(TEXT, NOW_S))[1][-1]
    for at in (0, 7, 8, len(line.data) - 1):
        changed = bytearray(line.data)
        changed[at] ^= 1
        with pytest.raises(CheckpointError):
            cosigner.witness.verify(TEXT, bytes(changed))
    with pytest.raises(CheckpointError, match="length"):
        cosigner.witness.verify(TEXT, line.data[:-1])


def test_ml_dsa_names_the_witness():
    """An ML-DSA-44 cosignature is its witness's alone: under another name the same key's does not hold."""
    seed = bytes([5]) * 32
    mine, theirs = (Cosigner.from_seed(f"witness.test/{n}", seed, Algorithm.ML_DSA_44) for n in "ab")
    data = split_note(NOTE + mine.cosign(TEXT, NOW_S))[1][-1].data
    mine.witness.verify(TEXT, data)
    with pytest.raises(CheckpointError):
        theirs.witness.verify(TEXT, data)


def test_ed25519_signs_the_specified_lines():
    """An Ed25519 cosignature stands on the two header lines and the whole text."""
    key = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
    data = split_note(NOTE + ED.cosign(TEXT, NOW_S))[1][-1].data
    key.public_key().verify(data[8:], f"cosignature/v1\ntime {NOW_S}\n{TEXT}".encode())
    assert int.from_bytes(data[:8], "big") == NOW_S


@pytest.mark.parametrize("cosigner", [ED, ML], ids=["ed25519", "ml-dsa-44"])
def test_keys_read_back(cosigner):
    """Keys as text give the same keys back; another key id, a cut or another kind is refused."""
    seed = bytes([1 if cosigner is ED else 2]) * 32
    assert Witness.from_vkey(cosigner.witness.vkey) == cosigner.witness
    assert Cosigner.from_skey(cosigner.skey(seed)).witness == cosigner.witness
    name, key_id, encoded = cosigner.witness.vkey.split("+", 2)
    for bad in (
        f"{name}+{int(key_id, 16) ^ 1:08x}+{encoded}",
        f"{name}+{key_id}+{encoded[:-4]}",
        f"{name}+{key_id}",
        "",
    ):
        with pytest.raises(CheckpointError):
            Witness.from_vkey(bad)
        with pytest.raises(CheckpointError):
            Cosigner.from_skey(f"PRIVATE+KEY+{bad}")
    with pytest.raises(CheckpointError):
        Cosigner.from_skey(cosigner.witness.vkey)


def test_plain_ed25519_keys_are_taken():
    """A witness's key in the form of plain notes, as some tools print it, is taken for its cosigning key."""
    plain = NoteSigner.from_seed(ED.witness.name, bytes([1]) * 32)
    assert Witness.from_vkey(plain.vkey) == ED.witness
    assert Cosigner.from_skey(make_signer_key(ED.witness.name, bytes([1]) * 32)).witness == ED.witness


def test_the_log_s_own_signature_is_needed():
    """Witnesses do not stand in for the log."""
    foreign = sign_checkpoint(CHECKPOINT, NoteSigner.from_seed(ORIGIN, bytes([9]) * 32))
    with pytest.raises(CheckpointError):
        opened(foreign + ED.cosign(TEXT, NOW_S), ED, quorum=1)
