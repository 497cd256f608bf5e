"""Errors on the wire: a :class:`~bulkhead.errors.BulkheadError` as a gRPC status with ``google.rpc.ErrorInfo``.

The stable code travels as ``ErrorInfo.reason`` in ``grpc-status-details-bin`` (domain ``bulkhead.dev``); the SDK
restores the class from it. Statuses that gRPC core makes itself carry no ErrorInfo.
"""

import string
from typing import Any, Final, NoReturn
from urllib.parse import quote

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from bulkhead.errors import CODE_TO_STATUS, BulkheadError

__all__ = ["ERROR_DOMAIN", "abort_with", "status_of"]

ERROR_DOMAIN: Final = "bulkhead.dev"
DETAILS_KEY: Final = "grpc-status-details-bin"
# gRPC core drops header lists above 8 KiB; base64 adds a third, and the message travels twice.
MAX_MESSAGE_CHARACTERS: Final = 512
MAX_ENCODED_MESSAGE_BYTES: Final = 1_536  # in grpc-message all but printable ASCII takes three bytes for each of UTF-8
MAX_DETAILS_BYTES: Final = 3_072
_UNQUOTED: Final = (string.punctuation + " ").replace("%", "")


def status_of(error: BulkheadError) -> grpc.StatusCode:
    """Return the gRPC status that carries ``error``; INTERNAL for a code outside the table."""
    return grpc.StatusCode[CODE_TO_STATUS.get(error.code, "INTERNAL")]


async def abort_with(context: grpc.aio.ServicerContext[Any, Any], error: BulkheadError) -> NoReturn:
    """End the call with ``error``'s status, message and details.

    Details that would exceed :data:`MAX_DETAILS_BYTES` are left out, largest first; the key ``details_dropped`` then
    names them, so that a receiver knows.

    Raises:
        grpc.aio.AbortError: always; grpc turns it into the status.
    """
    code = status_of(error)
    message = _bounded_message(error.message)
    info = error_details_pb2.ErrorInfo(reason=error.code, domain=ERROR_DOMAIN, metadata=_bounded(error.details))
    packed = any_pb2.Any()
    packed.Pack(info)
    number = code.value[0]
    status = status_pb2.Status(code=number, message=message, details=[packed])
    await context.abort(code, message, ((DETAILS_KEY, status.SerializeToString()),))


def _bounded_message(message: str) -> str:
    message = message[:MAX_MESSAGE_CHARACTERS]
    while len(quote(message, safe=_UNQUOTED, errors="replace")) > MAX_ENCODED_MESSAGE_BYTES:
        message = message[: len(message) * 3 // 4]
    return message


def _bounded(details: Any) -> dict[str, str]:
    kept = dict(details)
    dropped: list[str] = []
    while kept and sum(len(key.encode()) + len(value.encode()) for key, value in kept.items()) > MAX_DETAILS_BYTES:
        largest = max(kept, key=lambda key: len(kept[key]))
        del kept[largest]
        dropped.append(largest[:64])
    if dropped:
        kept["details_dropped"] = ",".join(dropped)
    return kept
