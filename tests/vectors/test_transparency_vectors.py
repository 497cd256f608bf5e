"""Recorded vectors of the transparency formats: RFC 6962 proofs and tree, signed notes, C2SP examples."""

import base64
import json
import os
import re
from pathlib import Path

import pytest

from bulkhead.errors import CheckpointError, ProofError
from bulkhead.transparency.checkpoint import Checkpoint, open_checkpoint
from bulkhead.transparency.cosignature import cosigned_at
from bulkhead.transparency.merkle import Frontier, leaf_hash, verify_consistency, verify_inclusion
from bulkhead.transparency.note import NoteSigner, NoteVerifier, open_note, sign_note, split_note
from bulkhead.transparency.tlog_proof import TlogProof

_ROOT = os.environ.get("BULKHEAD_TEST_VECTORS")
_VECTORS = Path(_ROOT or "/nonexistent") / "transparency"
pytestmark = pytest.mark.skipif(
    not _VECTORS.is_dir(), reason="BULKHEAD_TEST_VECTORS does not name the recorded vectors"
)


def _cases(kind: str) -> list[object]:
    base = _VECTORS / "merkle-rfc6962" / "testdata" / kind
    return [pytest.param(path, id=str(path.relative_to(base))) for path in sorted(base.rglob("*.json"))]


def _note_vectors() -> dict:
    return json.loads((_VECTORS / "sumdb-note" / "note_vectors.json").read_text())


def _hashes(values: list[str] | None) -> list[bytes]:
    return [base64.b64decode(value) for value in values or []]


@pytest.mark.parametrize("path", _cases("inclusion"))
def test_inclusion_vector(path):
    """Every recorded inclusion proof is accepted or refused as recorded."""
    case = json.loads(path.read_text())
    root, leaf = _hashes([case["root"] or "", case["leafHash"] or ""])
    args = {
        "index": case["leafIdx"],
        "size": case["treeSize"],
        "leaf": leaf,
        "proof": _hashes(case["proof"]),
        "root": root,
    }
    if case["wantErr"]:
        with pytest.raises(ProofError):
            verify_inclusion(**args)
    else:
        verify_inclusion(**args)


@pytest.mark.parametrize("path", _cases("consistency"))
def test_consistency_vector(path):
    """Every recorded consistency proof is accepted or refused as recorded."""
    case = json.loads(path.read_text())
    root1, root2 = _hashes([case["root1"] or "", case["root2"] or ""])
    args = {
        "old_size": case["size1"],
        "old_root": root1,
        "new_size": case["size2"],
        "new_root": root2,
        "proof": _hashes(case["proof"]),
    }
    if case["wantErr"]:
        with pytest.raises(ProofError):
            verify_consistency(**args)
    else:
        verify_consistency(**args)


def test_reference_tree():
    """The frontier's root equals the reference tree's at every size."""
    tree = json.loads((_VECTORS / "merkle-rfc6962" / "rfc6962_reference_tree.json").read_text())
    frontier = Frontier()
    roots = [frontier.root().hex()]
    for text in tree["leaf_inputs_hex"]:
        frontier = frontier.append(leaf_hash(bytes.fromhex(text)))
        roots.append(frontier.root().hex())
    assert roots == tree["root_hashes_hex_by_size"]


def test_record_hash():
    """The leaf hash is the one of the Go checksum database."""
    for case in json.loads((_VECTORS / "sumdb-tlog" / "tlog_vectors.json").read_text())["record_hash"]:
        assert base64.b64encode(leaf_hash(case["data"].encode())).decode() == case["hash_b64"]


def test_notes_are_signed_as_recorded():
    """Signing is deterministic and writes the recorded bytes."""
    vectors = _note_vectors()
    signer = NoteSigner.from_skey(vectors["skey"])
    assert signer.vkey == vectors["vkeys"]["peter"]
    for case in vectors["sign"]:
        assert sign_note(case["text"], [signer]) == case["want"]
    for text in vectors["sign_malformed"]:
        with pytest.raises(CheckpointError):
            sign_note(text, [signer])


def test_notes_open_as_recorded():
    """Every recorded note opens with the recorded signers, or is refused."""
    vectors = _note_vectors()
    for case in vectors["open"]:
        verifiers = [NoteVerifier.from_vkey(vectors["vkeys"][name]) for name in case["known"]]
        if "want_error" in case:
            with pytest.raises(CheckpointError):
                open_note(case["msg"], verifiers)
            continue
        opened = open_note(case["msg"], verifiers)
        assert [verifier.name for verifier in opened.verified] == case["want_verified"], case["name"]
        assert list(opened.unverified) == case["want_unverified"], case["name"]


def test_bad_keys_are_refused():
    """Recorded bad keys, every proper prefix, and every one-byte change of a good key are refused."""
    vectors = _note_vectors()
    good = vectors["vkeys"]["peter"]
    bad = [
        *vectors["bad_vkeys"],
        *(good[:end] for end in range(len(good))),
        *(good[start:] for start in range(1, len(good))),
        *(good[:at] + chr(ord(good[at]) + 1) + good[at + 1 :] for at in range(len(good))),
    ]
    for vkey in bad:
        with pytest.raises(CheckpointError):
            NoteVerifier.from_vkey(vkey)
    secret = vectors["skey"]
    for at in range(len(secret)):
        with pytest.raises(CheckpointError):
            NoteSigner.from_skey(secret[:at] + chr(ord(secret[at]) + 1) + secret[at + 1 :])


def test_c2sp_example_note():
    """The specification's own example opens under its key."""
    note = (_VECTORS / "c2sp" / "signed-note-ed25519.txt").read_text()
    vkey = (_VECTORS / "c2sp" / "signed-note-ed25519.vkey").read_text().strip()
    assert open_note(note, [NoteVerifier.from_vkey(vkey)]).text == "This is an example message.\n"


def test_c2sp_example_cosignature():
    """The specification's example of a cosigned checkpoint parses: its log, and a witness's line with its time."""
    text, signatures = split_note((_VECTORS / "c2sp" / "tlog-cosignature-checkpoint.txt").read_text())
    assert Checkpoint.parse(text).size == 20852163
    assert [signature.name for signature in signatures] == ["example.com/behind-the-sofa", "witness.example.com/w1"]
    assert cosigned_at(signatures[1].data) == 1679315147
    assert len(signatures[1].data) == 8 + 64


def test_c2sp_example_proof():
    """The specification's example of a proof, in which signatures are elided, is refused for that; its rest parses."""
    text = (_VECTORS / "c2sp" / "tlog-proof-elided-example.txt").read_text()
    with pytest.raises(CheckpointError, match="base64"):
        TlogProof.parse(text)
    whole = re.sub(r"^— .*\n", "", text, flags=re.MULTILINE)
    whole += (_VECTORS / "c2sp" / "signed-note-ed25519.txt").read_text().rpartition("\n\n")[2]
    proof = TlogProof.parse(whole)
    assert (proof.index, len(proof.proof), len(proof.extra)) == (73894, 5, 39)
    assert proof.encode() == whole


def test_tree_notes():
    """The checksum database's tree text parses; its recorded malformations are refused."""
    vectors = json.loads((_VECTORS / "sumdb-tlog" / "tlog_vectors.json").read_text())
    parsed = Checkpoint.parse(vectors["tree_note"]["text"])
    assert (parsed.origin, parsed.size) == ("go.sum database tree", vectors["tree_note"]["n"])
    for text in vectors["bad_tree_notes"][1:]:  # the first is another origin, which open_checkpoint refuses
        with pytest.raises(CheckpointError):
            Checkpoint.parse(text)


def test_checkpoint_of_another_log_is_refused():
    """A validly signed checkpoint of another origin is not taken for ours."""
    signer = NoteSigner.from_skey(_note_vectors()["skey"])
    note = sign_note("another\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n", [signer])
    with pytest.raises(CheckpointError):
        open_checkpoint(note, vkey=signer.vkey, origin=signer.verifier.name)
