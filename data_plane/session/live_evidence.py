"""Evidence that tickets may name: known until it ends, at a cost per piece that does not grow with their number."""

import heapq

__all__ = ["LiveEvidence"]


class LiveEvidence:
    """Digests of evidence that holds still; adding one and forgetting one that ended take O(log n)."""

    def __init__(self) -> None:
        self._until_s: dict[bytes, int] = {}
        self._ends: list[tuple[int, bytes]] = []

    def __len__(self) -> int:
        """Return how many are known."""
        return len(self._until_s)

    def add(self, digest: bytes, until_s: int) -> None:
        """Know evidence until ``until_s`` (Unix seconds); of one that is known the later end counts."""
        if until_s > self._until_s.get(digest, 0):
            self._until_s[digest] = until_s
            heapq.heappush(self._ends, (until_s, digest))

    def expire(self, now_s: float) -> None:
        """Forget what has ended."""
        while self._ends and self._ends[0][0] <= now_s:
            until_s, digest = heapq.heappop(self._ends)
            if self._until_s[digest] == until_s:  # else a later end is known, and further down
                del self._until_s[digest]

    def holds(self, digest: bytes, now_s: float) -> bool:
        """Tell whether evidence of this digest (32 bytes) is known and has not ended."""
        return self._until_s.get(digest, 0) > now_s
