"""Asks a witness of the tenant's own for its cosignature on the tenant's log (C2SP tlog-witness over HTTP).

Whoever asks the same witness, from whatever client, is held to one history of the log: the witness refuses another.
"""

import http.client
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from bulkhead.errors import ConfigError, UnavailableError
from bulkhead.transparency.cosignature import Witness
from bulkhead.transparency.witnessing import MAX_REQUEST_BYTES, AddCheckpoint, WitnessSize, read_answer

__all__ = ["OwnWitness"]

_TIMEOUT_S: Final = 10.0  # connect and each read; a witness synchronises one small file


@dataclass(frozen=True, slots=True)
class OwnWitness:
    """A witness by its submission URL and pinned keys.

    Attributes:
        url: ``https://…`` or ``http://…``: its answers are signed.
        keys: its pinned keys.
    """

    url: str
    keys: tuple[Witness, ...]

    @classmethod
    def of(cls, url: str, vkeys: tuple[str, ...]) -> "OwnWitness":
        """Return the witness.

        Raises:
            ConfigError: not an HTTP URL, or no key.
            CheckpointError: a key is none.
        """
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or not vkeys:
            raise ConfigError("a witness of one's own needs an HTTP URL and its verifier key")
        return cls(url.rstrip("/"), tuple(map(Witness.from_vkey, vkeys)))

    def ask(self, request: AddCheckpoint) -> tuple[str, ...] | WitnessSize:
        """Return its cosignature lines, verified, or the size that it knows. Blocks.

        Raises:
            ConsistencyError: it has cosigned another history.
            CheckpointError: its answer does not hold.
            UnavailableError: it cannot be reached, or refused for another reason.
        """
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
        try:
            connection.request("POST", f"{parts.path}/add-checkpoint", body=request.encode())
            reply = connection.getresponse()
            body = reply.read(MAX_REQUEST_BYTES)
            content_type = (reply.getheader("Content-Type") or "").partition(";")[0].strip()
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(f"the own witness cannot be reached: {type(error).__name__}") from error
        finally:
            connection.close()
        return read_answer(reply.status, content_type, body, request=request, witnesses=self.keys)
