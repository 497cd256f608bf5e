"""What a gRPC status means to a caller: the one place where transport errors become ours.

A status made by our servers carries a ``google.rpc.ErrorInfo`` whose reason is a stable code, from which the class is
restored. A status made by gRPC core carries none (too large, unimplemented, refused, cancelled, connection lost); the
table :data:`CORE_STATUS` maps those. Nothing of grpc's own exceptions leaves :mod:`bulkhead.client`.
"""

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from bulkhead.errors import (
    BulkheadError,
    ConflictError,
    ConnectionFailedError,
    DeadlineError,
    ExhaustedError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    SealError,
    UnauthenticatedError,
    UnsupportedError,
    WorkerLostError,
    error_from_code,
)

__all__ = ["CORE_STATUS", "ERROR_DOMAIN", "Peer", "error_from_rpc", "printable"]

ERROR_DOMAIN: Final = "bulkhead.dev"
STATUS_DETAILS_KEY: Final = "grpc-status-details-bin"
MAX_STATUS_BYTES: Final = 64 * 1024  # core caps metadata at 8 to 16 KiB; anything near this is not ours
MAX_MESSAGE_CHARS: Final = 1_000  # a peer's sentence is for a terminal, not for a novel
MAX_DETAIL_CHARS: Final = 16_384  # `reasons` of a denial is a JSON list
MAX_DETAILS: Final = 32


class Peer(enum.Enum):
    """Whom the call went to: a lost worker and a lost control plane are different things to a caller."""

    CONTROL_PLANE = "the control plane"
    WORKER = "the worker"
    KEY_BROKER = "the key broker"


CORE_STATUS: Final[Mapping[grpc.StatusCode, tuple[type[BulkheadError], type[BulkheadError], str]]] = MappingProxyType(
    {
        grpc.StatusCode.CANCELLED: (ConnectionFailedError, WorkerLostError, "the call was ended by the server"),
        grpc.StatusCode.UNKNOWN: (InternalError, InternalError, "the server failed without saying why"),
        grpc.StatusCode.INVALID_ARGUMENT: (InvalidRequestError, InvalidRequestError, "the request was refused"),
        grpc.StatusCode.DEADLINE_EXCEEDED: (DeadlineError, DeadlineError, "no answer within the deadline"),
        grpc.StatusCode.NOT_FOUND: (NotFoundError, NotFoundError, "not found"),
        grpc.StatusCode.ALREADY_EXISTS: (ConflictError, ConflictError, "exists already"),
        grpc.StatusCode.PERMISSION_DENIED: (PermissionDeniedError, PermissionDeniedError, "not allowed"),
        grpc.StatusCode.RESOURCE_EXHAUSTED: (
            ExhaustedError,
            ExhaustedError,
            "the server is at its limit of concurrent calls, or a message is above its size limit",
        ),
        grpc.StatusCode.FAILED_PRECONDITION: (ConflictError, ConflictError, "not possible in this state"),
        grpc.StatusCode.ABORTED: (ConflictError, ConflictError, "aborted"),
        grpc.StatusCode.OUT_OF_RANGE: (InvalidRequestError, InvalidRequestError, "out of range"),
        grpc.StatusCode.UNIMPLEMENTED: (UnsupportedError, UnsupportedError, "the server does not offer this call"),
        grpc.StatusCode.INTERNAL: (InternalError, WorkerLostError, "the connection broke"),
        grpc.StatusCode.UNAVAILABLE: (ConnectionFailedError, WorkerLostError, "cannot be reached"),
        grpc.StatusCode.DATA_LOSS: (SealError, SealError, "data was lost"),
        grpc.StatusCode.UNAUTHENTICATED: (UnauthenticatedError, UnauthenticatedError, "the credential was refused"),
    }
)
"""Status without ErrorInfo -> (class if the control plane answered, class if a worker did, meaning)."""


def printable(text: str, *, max_chars: int = MAX_MESSAGE_CHARS) -> str:
    """Return untrusted ``text`` on one line, cut to ``max_chars``, without control characters (terminal escapes)."""
    return "".join(c if c.isprintable() else " " for c in text[:max_chars]).strip()


def error_from_rpc(error: grpc.RpcError, peer: Peer) -> BulkheadError:
    """Return our error for a failed call; the caller raises it ``from error``.

    Everything read from the peer is untrusted: bounded, and made printable.
    """
    if not isinstance(error, grpc.aio.AioRpcError):
        return InternalError(f"{peer.value}: the call failed in the transport ({type(error).__name__})")
    info = _error_info(error)
    text = printable(error.details() or "")
    if info is not None:
        details = {
            printable(key, max_chars=64): value[:MAX_DETAIL_CHARS]
            for key, value in sorted(info.metadata.items())[:MAX_DETAILS]
        }
        return error_from_code(info.reason, text, details)
    of_control_plane, of_worker, meaning = CORE_STATUS.get(
        error.code(), (InternalError, InternalError, "the call failed with an unknown status")
    )
    wanted = of_worker if peer is Peer.WORKER else of_control_plane
    return wanted(f"{peer.value}: {meaning}" + (f" ({text})" if text else ""))


def _error_info(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo | None:
    """Return the status' ErrorInfo of our domain, None if it has none or it does not parse."""
    for key, value in error.trailing_metadata() or ():
        if key != STATUS_DETAILS_KEY or not isinstance(value, bytes) or len(value) > MAX_STATUS_BYTES:
            continue
        try:
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == ERROR_DOMAIN:
                    return info
        except DecodeError:
            return None
    return None
