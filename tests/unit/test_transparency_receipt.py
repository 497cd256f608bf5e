import dataclasses

import pytest

from bulkhead.errors import CheckpointError, InclusionError, RecordError
from bulkhead.transparency.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from bulkhead.transparency.merkle import EMPTY_ROOT, inclusion_proof, leaf_hash, tree_root
from bulkhead.transparency.note import NoteSigner, NoteVerifier, make_signer_key
from bulkhead.transparency.receipt import AuditReceipt, verify_receipt
from tests.simulator.audit_world import decision

ORIGIN = "audit.test/t/a/1"
SIGNER = NoteSigner.from_seed(ORIGIN, bytes(range(32)))
OTHER = NoteSigner.from_seed(ORIGIN, bytes(32))
RECORDS = [decision(number=n) for n in range(5)]
LEAVES = [record.leaf for record in RECORDS]


def receipt(leaves: list[bytes], index: int, signer: NoteSigner = SIGNER, origin: str = ORIGIN) -> AuditReceipt:
    hashes = [leaf_hash(leaf) for leaf in leaves]
    proof = inclusion_proof(index, len(hashes), lambda level, at: tree_root(hashes[at << level : (at + 1) << level]))
    checkpoint = Checkpoint(origin, len(hashes), tree_root(hashes))
    return AuditReceipt(leaves[index], index, proof, sign_checkpoint(checkpoint, signer))


def test_a_receipt_verifies_to_its_record():
    """What is returned is the record, its hash and place, and the tree it was proven in."""
    verified = verify_receipt(receipt(LEAVES, 3), vkey=SIGNER.vkey, origin=ORIGIN)
    assert verified.fields == RECORDS[3].fields
    assert (verified.index, verified.leaf_hash, verified.size) == (3, leaf_hash(LEAVES[3]), 5)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"leaf": LEAVES[2]}, InclusionError),
        ({"index": 2}, InclusionError),
        ({"index": 5}, InclusionError),
        ({"proof": ()}, InclusionError),
        ({"proof": (bytes(32),) * 200}, InclusionError),
        ({"checkpoint": receipt(LEAVES, 3, OTHER).checkpoint}, CheckpointError),
        ({"checkpoint": receipt(LEAVES[:4], 3).checkpoint}, InclusionError),
        ({"checkpoint": "nonsense"}, CheckpointError),
        ({"checkpoint": ""}, CheckpointError),
    ],
    ids=range(9),
)
def test_a_changed_receipt_is_refused(change, error):
    """Another leaf, place, proof, signer or tree is refused with its own error."""
    with pytest.raises(error):
        verify_receipt(dataclasses.replace(receipt(LEAVES, 3), **change), vkey=SIGNER.vkey, origin=ORIGIN)


def test_every_byte_of_the_leaf_counts():
    """A change of any one byte of the record is refused."""
    good = receipt(LEAVES, 1)
    for at in range(len(good.leaf)):
        leaf = good.leaf[:at] + bytes([good.leaf[at] ^ 1]) + good.leaf[at + 1 :]
        with pytest.raises(InclusionError):
            verify_receipt(dataclasses.replace(good, leaf=leaf), vkey=SIGNER.vkey, origin=ORIGIN)


def test_a_leaf_that_is_no_record_is_refused():
    """A log may commit to anything; only a record verifies as one."""
    with pytest.raises(RecordError):
        verify_receipt(receipt([b"{}", b"x"], 0), vkey=SIGNER.vkey, origin=ORIGIN)


def test_another_logs_checkpoint_is_refused():
    """A checkpoint of another origin, even by a key that is pinned for it, does not serve this log."""
    other = NoteSigner.from_seed("audit.test/t/b/1", bytes(range(32)))
    moved = receipt(LEAVES, 0, other, "audit.test/t/b/1")
    with pytest.raises(CheckpointError):
        verify_receipt(moved, vkey=other.vkey, origin=ORIGIN)
    with pytest.raises(CheckpointError):
        verify_receipt(moved, vkey=SIGNER.vkey, origin="audit.test/t/b/1")


def test_cosignatures_by_others_do_not_matter():
    """Signature lines by keys that are not pinned neither help nor harm."""
    note = receipt(LEAVES, 0).checkpoint + "— witness.example AAAAAAAA\n"
    assert open_checkpoint(note, vkey=SIGNER.vkey, origin=ORIGIN).size == 5


@pytest.mark.parametrize(
    "text",
    [
        f"{ORIGIN}\n05\n{'A' * 43}=\n",
        f"{ORIGIN}\n-1\n{'A' * 43}=\n",
        f"{ORIGIN}\n9223372036854775808\n{'A' * 43}=\n",
        f"{ORIGIN}\n5\nAAAA\n",
        f"{ORIGIN}\n5\n{'A' * 42}B=\n",
        f"{ORIGIN}\n0\n{'A' * 43}=\n",
        f"{ORIGIN}\n5\n",
        f"{ORIGIN}\n\n{'A' * 43}=\n",
        f"{ORIGIN}\n५\n{'A' * 43}=\n",
        f"{ORIGIN}\n5\n{'A' * 43}=",
    ],
    ids=range(10),
)
def test_malformed_checkpoints_are_refused(text):
    """Sizes and roots have one spelling, and an empty tree one root."""
    with pytest.raises(CheckpointError):
        Checkpoint.parse(text)


def test_extension_lines_are_carried():
    """Further lines of a checkpoint are kept and signed over."""
    checkpoint = Checkpoint(ORIGIN, 0, EMPTY_ROOT, ("extra line",))
    assert Checkpoint.parse(checkpoint.text()) == checkpoint
    assert open_checkpoint(sign_checkpoint(checkpoint, SIGNER), vkey=SIGNER.vkey, origin=ORIGIN) == checkpoint


def test_keys_survive_their_text_forms():
    """A vkey and a signer key restore the same key; names that cannot be key names are refused."""
    assert NoteVerifier.from_vkey(SIGNER.vkey) == SIGNER.verifier
    assert NoteSigner.from_skey(make_signer_key(ORIGIN, bytes(range(32)))).vkey == SIGNER.vkey
    for name in ("", "a b", "a+b", "x" * 256, "a\n"):
        with pytest.raises(CheckpointError):
            NoteSigner.from_seed(name, bytes(32))
