"""One OPA server as seen over HTTP: ask an entrypoint, ask for health. Keeps its connections alive between questions.

opa-python-client does the talking. Its update_policy methods are never called: they rewrite Rego text on failure, and
our servers refuse them anyway.
"""

import json
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

import aiohttp
from opa_client.opa_async import AsyncOpaClient

from bulkhead.encoding import Json, JsonObject
from bulkhead.errors import PolicyEngineError
from bulkhead.fields import Fields

__all__ = ["BUNDLE_NAME", "OpaConnection", "OpaReply"]

BUNDLE_NAME: Final = "policy"
"""Name of the bundle in OPA's configuration, hence in ``provenance.bundles``."""
MAX_REPLY_BYTES: Final = 256 * 1024  # 64 reasons of 512 characters are 50 KiB
MAX_REVISION_CHARS: Final = 256
_READ_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class OpaReply:
    """What OPA answered.

    Attributes:
        result: value of the entrypoint (untrusted).
        revision: revision of the bundle that the same evaluation used, as OPA states it.
    """

    result: Json
    revision: str


class _BoundedClient(AsyncOpaClient):  # type: ignore[misc]  # the library ships no types
    """The library's client with replies bounded, read strictly and never redirected."""

    async def query_rule(
        self,
        input_data: Any,
        package_path: str,
        rule_name: str | None = None,
        query_params: dict[str, bool] | None = None,
    ) -> dict[str, Any]:
        path = package_path if rule_name is None else f"{package_path}/{rule_name}"
        url = f"{self.root_url}/data/{path}?{urlencode(query_params or {})}"
        async with self._request("POST", url, json={"input": input_data}, allow_redirects=False) as response:
            if response.status != 200:
                raise PolicyEngineError(f"The policy engine answered with HTTP status {response.status}.")
            body = bytearray()
            async for chunk in response.content.iter_chunked(_READ_BYTES):
                body += chunk
                if len(body) > MAX_REPLY_BYTES:
                    response.close()
                    raise PolicyEngineError(f"The policy engine's reply is longer than {MAX_REPLY_BYTES} bytes.")
        return _parse_object(bytes(body))


class OpaConnection:
    """Keep-alive connections to one OPA server that serves one bundle.

    Args:
        host: address to connect to; loopback for a supervised server.
        port: TCP port.
        token: bearer token that the server's authorisation policy knows.
        revision: digest of the bundle that the server was started with; replies from another are for the caller to
            refuse.
        timeout_s: upper bound of one question, a second fence behind the client's deadline.
    """

    def __init__(self, *, host: str, port: int, token: str, revision: str, timeout_s: float) -> None:
        self.revision = revision
        self._client = _BoundedClient(
            host=host,
            port=port,
            token=token,
            retries=0,  # its pauses of 0.3 s and more would eat the deadline
            timeout=timeout_s,
            headers={"Accept-Encoding": "identity"},
        )

    async def open(self) -> None:
        """Make the connection pool; no traffic yet."""
        await self._client.__aenter__()

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close_connection()

    async def healthy(self) -> bool:
        """Return whether the server answers and has activated its bundle."""
        return bool(await self._client.check_health(query={"bundles": True}))

    async def query(self, entrypoint: str, document: JsonObject) -> OpaReply:
        """Return the value of ``entrypoint`` for the input ``document``.

        Raises:
            PolicyEngineError: the server answered something that is not a reply with a result and a revision; an
                undefined result (`{}`) is one of them.
            ConnectionError: the server could not be reached or hung up.
            TimeoutError: it took longer than ``timeout_s``.
        """
        try:
            body = await self._client.query_rule(
                input_data=document, package_path=entrypoint, query_params={"provenance": True}
            )
        except TimeoutError:
            raise
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as error:
            raise ConnectionError(f"the policy engine cannot be reached: {type(error).__name__}") from error
        except (aiohttp.ClientError, aiohttp.http.HttpProcessingError, ValueError) as error:
            raise PolicyEngineError(
                f"The policy engine does not speak HTTP as agreed: {type(error).__name__}."
            ) from error
        if "result" not in body:
            raise PolicyEngineError("The policy engine has no decision for this action (undefined result).")
        return OpaReply(result=body["result"], revision=_revision(body))


def _parse_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise PolicyEngineError("The policy engine's reply is not JSON.") from error
    if not isinstance(value, dict):
        raise PolicyEngineError("The policy engine's reply is not a JSON object.")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("duplicate key")
    return value


def _revision(body: dict[str, Any]) -> str:
    what = "policy engine's provenance"
    bundles = Fields(body.get("provenance"), what=what, error=PolicyEngineError).nested("bundles")
    return bundles.nested(BUNDLE_NAME).text("revision", max_chars=MAX_REVISION_CHARS)
