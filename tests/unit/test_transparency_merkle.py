import hashlib

import pytest

from bulkhead.errors import ConsistencyError, InclusionError, ProofError
from bulkhead.transparency.batches import receipt_path, receipts_root, verify_receipt_path
from bulkhead.transparency.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_at,
    tree_root,
    verify_consistency,
    verify_inclusion,
)

LEAVES = [leaf_hash(bytes([n])) for n in range(70)]
SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 33, 64, 70]


def definition(hashes: list[bytes]) -> bytes:
    """MTH of RFC 6962 section 2.1, word for word."""
    if not hashes:
        return hashlib.sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    split = 1
    while 2 * split < len(hashes):
        split *= 2
    return node_hash(definition(hashes[:split]), definition(hashes[split:]))


def nodes(level: int, index: int) -> bytes:
    return definition(LEAVES[index << level : (index + 1) << level])


def test_roots_are_those_of_the_definition():
    """Frontier, root_at and tree_root give RFC 6962's root at every size."""
    frontier = Frontier()
    for size in range(len(LEAVES) + 1):
        expected = definition(LEAVES[:size])
        assert frontier.root() == root_at(size, nodes) == tree_root(LEAVES[:size]) == expected
        frontier = frontier.append(*LEAVES[size : size + 1])
    assert Frontier().root() == EMPTY_ROOT


def test_a_frontier_survives_encoding():
    """A decoded frontier grows into the same tree; a wrong number of hashes is refused."""
    for size in SIZES:
        frontier = Frontier().extend(LEAVES[:size])
        again = Frontier.decode(size, frontier.encode())
        assert again.extend(LEAVES[size:]).root() == definition(LEAVES)
        for bad in (frontier.encode()[:-1], frontier.encode() + bytes(32)):
            with pytest.raises(ProofError):
                Frontier.decode(size, bad)
    with pytest.raises(ProofError):
        Frontier.decode(-1, b"")


@pytest.mark.parametrize("size", SIZES)
def test_every_leaf_proves_its_place_and_no_other(size):
    """A proof holds for its own leaf, index and size, and for no neighbour's."""
    root = definition(LEAVES[:size])
    for index in range(size):
        proof = inclusion_proof(index, size, nodes)
        good = {"index": index, "size": size, "leaf": LEAVES[index], "proof": proof, "root": root}
        verify_inclusion(**good)
        bad = [
            {"index": (index + 1) % size} if size > 1 else {"index": 1},
            {"leaf": leaf_hash(b"other")},
            {"root": EMPTY_ROOT},
            {"proof": (*proof, bytes(32))},
            {"proof": proof[:-1]} if proof else {"size": size + 1},
            {"index": -1},
            {"index": size},
            {"leaf": LEAVES[index][:-1]},
        ]
        bad += [{"proof": (*proof[:at], bytes(32), *proof[at + 1 :])} for at in range(len(proof))]
        for change in bad:
            with pytest.raises(InclusionError):
                verify_inclusion(**(good | change))


@pytest.mark.parametrize("new", SIZES)
def test_every_prefix_is_consistent_and_no_fork_is(new):
    """Each earlier tree proves to be a prefix; a forked or rewound one does not."""
    new_root = definition(LEAVES[:new])
    for old in range(1, new + 1):
        old_root = definition(LEAVES[:old])
        proof = consistency_proof(old, new, nodes)
        good = {"old_size": old, "old_root": old_root, "new_size": new, "new_root": new_root, "proof": proof}
        verify_consistency(**good)
        fork = definition([*LEAVES[: old - 1], leaf_hash(b"forked")])
        for change in (
            {"old_root": fork},
            {"new_root": fork},
            {"proof": (*proof, bytes(32))},
            {"old_size": new + 1},
            {"old_size": 0},
        ):
            with pytest.raises(ConsistencyError):
                verify_consistency(**(good | change))


def test_impossible_places_are_refused():
    """Builders refuse an index outside the tree, a shrinking tree and an absurd size."""
    for call in (
        lambda: inclusion_proof(5, 5, nodes),
        lambda: inclusion_proof(-1, 5, nodes),
        lambda: consistency_proof(6, 5, nodes),
        lambda: consistency_proof(1, 2**63, nodes),
        lambda: root_at(-1, nodes),
    ):
        with pytest.raises(ProofError):
            call()


def test_a_receipt_proves_to_be_in_its_batch():
    """Every receipt of a batch has a path to the batch's root; another receipt, place or count has none."""
    digests = [hashlib.sha256(bytes([n])).digest() for n in range(11)]
    root = receipts_root(digests)
    for index, digest in enumerate(digests):
        path = receipt_path(digests, index)
        good = {"digest": digest, "index": index, "count": 11, "path": path, "root": root}
        verify_receipt_path(**good)
        for change in ({"digest": bytes(32)}, {"index": (index + 1) % 11}, {"count": 3}, {"digest": b"short"}):
            with pytest.raises(InclusionError):
                verify_receipt_path(**(good | change))
    with pytest.raises(InclusionError):
        receipts_root([b"short"])
