"""A session's total of usage, where the usage of its requests is not told one by one (strict padding).

Under strict padding the operator is told of each receipt's digest and nothing of its counts. When the session has
ended, or the worker does, the worker tells one total, under a number of the session's receipts and with a digest in the
place of a receipt's. The digest is over what whoever holds the receipts can compute: no signature is needed to hold the
two against each other (docs/protocol.md section 7).
"""

import hashlib
from dataclasses import dataclass
from typing import Final

from bulkhead.encoding import Json, canonical_json

__all__ = ["SessionTotal"]

VERSION: Final = 1
_LABEL: Final = b"bulkhead/v1 session usage"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionTotal:
    """Usage of the strict receipts of a session on a partition that have lower numbers and no earlier total.

    Attributes:
        session: session id.
        partition: partition id.
        number: its own, among the session's receipts.
        receipts: how many it sums up.
        prompt_tokens: of all of them.
        completion_tokens: likewise.
    """

    session: str
    partition: str
    number: int
    receipts: int
    prompt_tokens: int
    completion_tokens: int

    @property
    def digest(self) -> bytes:
        """32 bytes, in the place of a receipt's digest."""
        value: dict[str, Json] = {
            "version": VERSION,
            "session": self.session,
            "partition": self.partition,
            "number": self.number,
            "receipts": self.receipts,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }
        return hashlib.sha256(_LABEL + canonical_json(value)).digest()
