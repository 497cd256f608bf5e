import hashlib

import pytest

from bulkhead.attestation.statement import (
    MAX_BATCH,
    MAX_PATH,
    batch_leaf,
    batch_path,
    batch_root,
    gpu_nonce,
    root_from_path,
    statement,
)
from bulkhead.encoding import lp
from bulkhead.errors import EvidenceBindingError, EvidenceError
from bulkhead.transparency.merkle import tree_root

LEAVES = [hashlib.sha256(bytes([number])).digest() for number in range(33)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33])
def test_every_leaf_proves_itself(size):
    """The path of each leaf leads to the root, and the root is RFC 9162's."""
    leaves = LEAVES[:size]
    root = batch_root(leaves)
    assert root == tree_root(leaves)
    for index, leaf in enumerate(leaves):
        path = batch_path(leaves, index)
        assert root_from_path(leaf, index=index, size=size, path=path) == root


def test_another_place_leads_elsewhere():
    """A path used for another index or another size fails or gives another root."""
    root, path = batch_root(LEAVES[:8]), batch_path(LEAVES[:8], 3)
    assert root_from_path(LEAVES[3], index=2, size=8, path=path) != root
    for index, size in ((3, 9), (3, 4), (8, 8), (-1, 8), (0, 0), (0, MAX_BATCH + 1)):
        try:
            assert root_from_path(LEAVES[3], index=index, size=size, path=path) != root
        except EvidenceBindingError:
            continue


@pytest.mark.parametrize("cut", [slice(0, 2), slice(0, 0)])
def test_short_path_is_refused(cut):
    """A path that stops below the root is refused, so that an inner node passes for no root."""
    with pytest.raises(EvidenceBindingError, match="too short"):
        root_from_path(LEAVES[3], index=3, size=8, path=batch_path(LEAVES[:8], 3)[cut])


def test_long_path_is_refused():
    """A path longer than the tree is high, or than 16, is refused."""
    path = batch_path(LEAVES[:8], 3)
    with pytest.raises(EvidenceBindingError, match="too long"):
        root_from_path(LEAVES[3], index=3, size=8, path=(*path, LEAVES[0]))
    with pytest.raises(EvidenceBindingError, match="malformed"):
        root_from_path(LEAVES[3], index=3, size=8, path=(LEAVES[0],) * (MAX_PATH + 1))


def test_empty_batch_has_no_root():
    """A batch has at least one caller, and no leaf beyond its end."""
    with pytest.raises(EvidenceError):
        batch_root([])
    with pytest.raises(EvidenceError):
        batch_path(LEAVES[:2], 2)


def test_leaf_needs_a_whole_nonce():
    """A nonce of another size than 32 bytes is refused."""
    with pytest.raises(EvidenceBindingError):
        batch_leaf(b"short", b"context")


def test_leaf_binds_nonce_and_context_apart():
    """Leaf bytes are 0x00, then both behind their lengths: moving a byte between them changes the leaf."""
    nonce = bytes(32)
    assert batch_leaf(nonce, b"ab") == hashlib.sha256(b"\0" + lp(nonce) + lp(b"ab")).digest()
    assert batch_leaf(nonce, b"ab") != batch_leaf(nonce, b"a")


def test_statement_fills_64_bytes_from_its_layout():
    """The statement is SHA-512 over label and length-prefixed fields; the GPU nonce is SHA-256 over its own."""
    root, keyset, device = LEAVES[:3]
    expected = hashlib.sha512(
        b"bulkhead/v1 evidence" + lp(root) + lp(keyset) + lp(device) + lp(b"{}") + lp((77).to_bytes(8, "big"))
    ).digest()
    assert (
        statement(batch_root=root, keyset_digest=keyset, device_digest=device, descriptor=b"{}", not_after_s=77)
        == expected
    )
    assert gpu_nonce(batch_root=root, keyset_digest=keyset) == (
        hashlib.sha256(b"bulkhead/v1 gpu" + lp(root) + lp(keyset)).digest()
    )
