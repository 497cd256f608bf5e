"""RFC 6962 Merkle trees: hashes, compact ranges, inclusion and consistency proofs.

Nothing here does I/O. A prover hands in a :data:`NodeReader`; a verifier needs only the functions ``verify_*`` and
:class:`Frontier`. Hashes are 32-byte SHA-256 values throughout. References: RFC 6962 section 2.1 (the tree),
RFC 9162 section 2.1 (the same tree, proofs as algorithms).
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self, TypeAlias

from bulkhead.errors import ConsistencyError, InclusionError, ProofError

__all__ = [
    "EMPTY_ROOT",
    "HASH_BYTES",
    "MAX_PROOF_HASHES",
    "MAX_TREE_SIZE",
    "Frontier",
    "NodeReader",
    "consistency_proof",
    "inclusion_proof",
    "leaf_hash",
    "node_hash",
    "root_at",
    "tree_root",
    "verify_consistency",
    "verify_inclusion",
]

HASH_BYTES: Final = 32
MAX_TREE_SIZE: Final = 2**63 - 1  # C2SP tlog-checkpoint: sizes fit a signed 64-bit integer
MAX_PROOF_HASHES: Final = 2 * 63  # a consistency proof of the largest tree is shorter
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()  # RFC 6962 section 2.1

NodeReader: TypeAlias = Callable[[int, int], bytes]
"""``(level, index) -> hash`` of the complete subtree over leaves ``[index << level, (index + 1) << level)``."""

_sha256 = hashlib.sha256


def leaf_hash(leaf: bytes) -> bytes:
    """Return SHA-256(0x00 ‖ leaf), RFC 6962 section 2.1."""
    return _sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return SHA-256(0x01 ‖ left ‖ right), RFC 6962 section 2.1."""
    return _sha256(b"\x01" + left + right).digest()


@dataclass(frozen=True, slots=True)
class Frontier:
    """The compact range of a whole tree: its size and the roots of its complete subtrees, largest (leftmost) first.

    It is all that an append or a root needs: one hash per bit set in ``size``.
    """

    size: int = 0
    nodes: tuple[bytes, ...] = ()

    def append(self, *hashes: bytes) -> Self:
        """Return the frontier after the leaves with these leaf hashes."""
        return self.extend(hashes)

    def extend(self, hashes: Iterable[bytes]) -> Self:
        """Return the frontier after the leaves with these leaf hashes, in order."""
        nodes, size = list(self.nodes), self.size
        for leaf in hashes:
            node, carry = leaf, size
            while carry & 1:
                node = _sha256(b"\x01" + nodes.pop() + node).digest()
                carry >>= 1
            nodes.append(node)
            size += 1
        return type(self)(size, tuple(nodes))

    def root(self) -> bytes:
        """Return the root hash of the tree of ``size`` leaves."""
        return _fold(self.nodes)

    def encode(self) -> bytes:
        """Return the nodes' concatenation; with ``size`` it restores the frontier."""
        return b"".join(self.nodes)

    @classmethod
    def decode(cls, size: int, data: bytes) -> Self:
        """Restore a frontier from :meth:`encode`.

        Raises:
            ProofError: ``size`` is out of range or ``data`` does not hold one hash per bit set in it.
        """
        if not 0 <= size <= MAX_TREE_SIZE or len(data) != HASH_BYTES * size.bit_count():
            raise ProofError("a frontier holds one 32-byte hash for each bit set in its size")
        return cls(size, tuple(data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)))


def tree_root(leaf_hashes: Iterable[bytes]) -> bytes:
    """Return the root over leaf hashes in order; the empty tree's root is :data:`EMPTY_ROOT`."""
    return Frontier().extend(leaf_hashes).root()


def root_at(size: int, node: NodeReader) -> bytes:
    """Return the root of the first ``size`` leaves.

    Raises:
        ProofError: ``size`` is out of range. Whatever ``node`` raises passes through.
    """
    _check_size(size)
    return _range_root(0, size, node)


def inclusion_proof(index: int, size: int, node: NodeReader) -> tuple[bytes, ...]:
    """Return PATH(index, D[size]) of RFC 6962 section 2.1.1, leaf's sibling first.

    Raises:
        ProofError: not ``0 <= index < size``. Whatever ``node`` raises passes through.
    """
    _check_size(size)
    if not 0 <= index < size:
        raise ProofError(f"no leaf {index} in a tree of {size}")
    path: list[bytes] = []
    low, high = 0, size
    while high - low > 1:
        split = low + _split(high - low)
        if index < split:
            path.append(_range_root(split, high, node))
            high = split
        else:
            path.append(_range_root(low, split, node))
            low = split
    return tuple(reversed(path))


def consistency_proof(old_size: int, new_size: int, node: NodeReader) -> tuple[bytes, ...]:
    """Return PROOF(old_size, D[new_size]) of RFC 6962 section 2.1.2; empty when the sizes are equal or the old is 0.

    Raises:
        ProofError: not ``0 <= old_size <= new_size``. Whatever ``node`` raises passes through.
    """
    _check_size(new_size)
    if not 0 <= old_size <= new_size:
        raise ProofError(f"no consistency proof from size {old_size} to {new_size}")
    if old_size in (0, new_size):
        return ()
    path: list[bytes] = []
    low, high, whole = 0, new_size, True
    while high != old_size:
        split = low + _split(high - low)
        if old_size <= split:
            path.append(_range_root(split, high, node))
            high = split
        else:
            path.append(_range_root(low, split, node))
            low, whole = split, False
    if not whole:  # SUBPROOF(m, D[m], false): the verifier does not know this subtree
        path.append(_range_root(low, high, node))
    return tuple(reversed(path))


def verify_inclusion(*, index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """Check that the leaf hash ``leaf`` stands at ``index`` of the tree (``size``, ``root``).

    The root's authenticity stays with the caller (a verified checkpoint).

    Raises:
        InclusionError: it does not, or the proof is malformed.
    """
    if not 0 <= index < size <= MAX_TREE_SIZE:
        raise InclusionError(f"no leaf {index} in a tree of {size}")
    if any(len(item) != HASH_BYTES for item in (leaf, root, *proof)):
        raise InclusionError("a hash is 32 bytes")
    inner = (index ^ (size - 1)).bit_length()
    border = (index >> inner).bit_count()
    if len(proof) != inner + border:
        raise InclusionError(f"the proof holds {len(proof)} hashes, this place in the tree needs {inner + border}")
    node = _border(_inner(leaf, proof[:inner], index), proof[inner:])
    if node != root:
        raise InclusionError("the leaf does not lead to the checkpoint's root")


def verify_consistency(
    *, old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Check that the tree (``old_size``, ``old_root``) is a prefix of (``new_size``, ``new_root``).

    An empty old tree is refused: everything is consistent with it, so the check would show nothing.

    Raises:
        ConsistencyError: it is not a prefix (a fork or a rewind), or the proof is malformed.
    """
    if not 0 < old_size <= new_size <= MAX_TREE_SIZE:
        raise ConsistencyError(f"sizes {old_size} and {new_size} cannot be compared")
    if old_size == new_size:
        if proof or old_root != new_root:
            raise ConsistencyError(f"two roots for size {old_size}: the log has forked")
        return
    if any(len(item) != HASH_BYTES for item in (old_root, new_root, *proof)):
        raise ConsistencyError("a hash is 32 bytes")
    shift = (old_size & -old_size).bit_length() - 1
    inner = ((old_size - 1) ^ (new_size - 1)).bit_length() - shift
    border = ((old_size - 1) >> (inner + shift)).bit_count()
    start = 0 if old_size == 1 << shift else 1  # a complete old tree is its own seed
    if len(proof) != start + inner + border:
        raise ConsistencyError(f"the proof holds {len(proof)} hashes, these sizes need {start + inner + border}")
    seed = proof[0] if start else old_root
    inner_proof, border_proof = proof[start : start + inner], proof[start + inner :]
    mask = (old_size - 1) >> shift
    if _border(_inner_right(seed, inner_proof, mask), border_proof) != old_root:
        raise ConsistencyError(f"the proof does not lead to the root of size {old_size}: a fork or a rewind")
    if _border(_inner(seed, inner_proof, mask), border_proof) != new_root:
        raise ConsistencyError(f"the proof does not lead to the root of size {new_size}: a fork or a rewind")


def _inner(seed: bytes, proof: Sequence[bytes], index: int) -> bytes:
    for level, sibling in enumerate(proof):
        seed = node_hash(sibling, seed) if index >> level & 1 else node_hash(seed, sibling)
    return seed


def _inner_right(seed: bytes, proof: Sequence[bytes], index: int) -> bytes:
    for level, sibling in enumerate(proof):
        if index >> level & 1:
            seed = node_hash(sibling, seed)
    return seed


def _border(seed: bytes, proof: Sequence[bytes]) -> bytes:
    for sibling in proof:
        seed = node_hash(sibling, seed)
    return seed


def _split(count: int) -> int:
    """Return the largest power of two smaller than ``count`` (RFC 6962 section 2.1)."""
    return 1 << ((count - 1).bit_length() - 1)


def _fold(nodes: Sequence[bytes]) -> bytes:
    if not nodes:
        return EMPTY_ROOT
    root = nodes[-1]
    for node in reversed(nodes[:-1]):
        root = node_hash(node, root)
    return root


def _range_root(low: int, high: int, node: NodeReader) -> bytes:
    """Return the root over leaves [low, high); ``low`` is a multiple of the largest power of two in the range."""
    nodes: list[bytes] = []
    while low < high:
        level = (high - low).bit_length() - 1
        nodes.append(node(level, low >> level))
        low += 1 << level
    return _fold(nodes)


def _check_size(size: int) -> None:
    if not 0 <= size <= MAX_TREE_SIZE:
        raise ProofError(f"{size} is not a tree size")
