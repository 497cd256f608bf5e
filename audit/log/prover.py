"""Proofs over a store: reads hashes where they are kept and remembers the nodes of complete subtrees.

A complete subtree never changes, so its root may be remembered for ever. Leaf hashes come from the leaves' rows or a
full tile; the nodes between two tile levels are computed. Any thread may prove.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from audit.store import AuditReader
from audit.tiles import TILE_LEVELS, TILE_WIDTH, split_tile
from bulkhead.errors import AuditUnavailableError, ProofError
from bulkhead.transparency.merkle import Frontier, NodeReader, node_hash, tree_root

__all__ = ["Prover"]

_MAX_NODES: Final = 1 << 16  # about 15 MiB


class Prover:
    """Reads nodes for :mod:`bulkhead.transparency.merkle`'s proof builders."""

    def __init__(self, store: AuditReader) -> None:
        self._store = store
        self._nodes: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()
        self._guard = threading.Lock()

    def remember(self, leaves: Iterable[tuple[int, int, bytes]]) -> None:
        """Take leaf hashes that have just been committed, as (log id, index, hash)."""
        with self._guard:
            for log_id, index, leaf_hash in leaves:
                self._nodes[log_id, 0, index] = leaf_hash
            while len(self._nodes) > _MAX_NODES:
                self._nodes.popitem(last=False)

    def nodes(self, log_id: int) -> NodeReader:
        """Return the node reader of a log.

        Its reads raise AuditUnavailableError if the database cannot be read or lacks a hash.
        """
        return lambda level, index: self._node(log_id, level, index)

    def frontier(self, log_id: int, size: int) -> Frontier:
        """Return the frontier of a log's first ``size`` leaves, as stored; it is not proven to be the log's.

        Raises:
            AuditUnavailableError: the database cannot be read or lacks a hash.
        """
        nodes: list[bytes] = []
        low = 0
        for level in reversed(range(size.bit_length())):
            if size >> level & 1:
                nodes.append(self._node(log_id, level, low >> level))
                low += 1 << level
        return Frontier(size, tuple(nodes))

    def _node(self, log_id: int, level: int, index: int) -> bytes:
        with self._guard:
            node = self._nodes.get((log_id, level, index))
            if node is not None:
                self._nodes.move_to_end((log_id, level, index))
                return node
        if level % TILE_LEVELS:
            node = node_hash(self._node(log_id, level - 1, 2 * index), self._node(log_id, level - 1, 2 * index + 1))
        else:
            node = self._from_tile(log_id, level // TILE_LEVELS, index)
        self._put(log_id, level, index, node)
        return node

    def _from_tile(self, log_id: int, tile_level: int, index: int) -> bytes:
        """Return a hash of a tile, and remember its neighbours, which the same proof is likely to need."""
        number, at = divmod(index, TILE_WIDTH)
        data = self._store.tile(log_id, tile_level, number)
        if data is not None:
            hashes = self._split(log_id, data)
        elif tile_level == 0:
            first = number * TILE_WIDTH
            hashes = list(self._store.leaf_hashes(log_id, first, first + TILE_WIDTH))
        else:  # the last tile of its level is not kept: compute the one hash from the tile below
            below = self._store.tile(log_id, tile_level - 1, index)
            if below is None:
                raise AuditUnavailableError(f"the audit database lacks tile {tile_level - 1}/{index} of log {log_id}")
            return tree_root(self._split(log_id, below))
        if at >= len(hashes):
            raise AuditUnavailableError(f"the audit database lacks leaf {index} of log {log_id}")
        for offset, node in enumerate(hashes):
            self._put(log_id, tile_level * TILE_LEVELS, number * TILE_WIDTH + offset, node)
        return hashes[at]

    def _put(self, log_id: int, level: int, index: int, node: bytes) -> None:
        with self._guard:
            self._nodes[log_id, level, index] = node
            if len(self._nodes) > _MAX_NODES:
                self._nodes.popitem(last=False)

    @staticmethod
    def _split(log_id: int, data: bytes) -> list[bytes]:
        try:
            return split_tile(data)
        except ProofError as error:
            raise AuditUnavailableError(f"a tile of log {log_id} is damaged: {error.message}") from error
