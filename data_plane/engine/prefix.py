"""Names of blocks that hold whole prefixes: who knows scope and tokens can name a block, and nobody else.

The name of a block is HMAC-SHA-256 over the name of the block before it and the block's own tokens, under a key made
from the request's scope (a secret of the tenant and of the sharing that its session chose) and a secret of this
engine. Equal tokens in two scopes have unrelated names, so no lookup can hit across scopes, and a name tells nothing.
"""

import array
import hashlib
import hmac
import secrets
from collections.abc import Sequence

__all__ = ["PrefixNames"]


class PrefixNames:
    """Makes names for one engine.

    Args:
        block_tokens: tokens per block.
    """

    def __init__(self, *, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._secret = secrets.token_bytes(32)

    def extend(self, names: list[bytes], tokens: Sequence[int], *, scope: bytes, count: int) -> None:
        """Append names to ``names`` until there are ``count``: those of the first whole blocks of ``tokens``."""
        if len(names) >= count:
            return
        key = hmac.digest(self._secret, scope, hashlib.sha256)
        size = self._block_tokens
        for index in range(len(names), count):
            own = array.array("Q", tokens[index * size : (index + 1) * size]).tobytes()
            names.append(hmac.digest(key, (names[-1] if names else b"") + own, hashlib.sha256))
