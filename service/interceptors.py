"""What happens around every call of a grpc.aio server, in this order.

1. **Admission**: the server's ``admit`` coroutine authenticates, or raises. Until it returns nothing else happens, and
   a caller without a credential learns nothing about its message.
2. **Decoding**: a message that cannot be decoded is INVALID_ARGUMENT with ``MALFORMED_REQUEST`` (grpc would answer
   UNKNOWN, after all interceptors).
3. **Deadline**: the caller's, capped at the server's maximum; a call without one gets the maximum. What runs past it
   is cancelled and ends as DEADLINE_EXCEEDED.
4. **The handler**: a :class:`~bulkhead.errors.BulkheadError`, wherever it was raised above or here, becomes its status
   with ErrorInfo. Anything else is a defect: INTERNAL, with a request id to quote, and no word of the stack.
5. **Refusals** are told to the server's ``on_refusal`` before the status goes out, so that a record can be made. It
   must not raise: the refusal stands whether or not it could be recorded.

Handlers are coroutine functions or async generators; those that take a stream of requests read it by iteration.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc
import structlog

from bulkhead.errors import (
    BulkheadError,
    DeadlineError,
    InternalError,
    InvalidRequestError,
    MalformedRequestError,
)
from bulkhead.ids import REQUEST, REQUEST_ID_METADATA, check_id, new_id
from service.errors_rpc import abort_with
from service.logging import bind_call

__all__ = ["Admit", "CallInterceptor", "Context", "OnRefusal", "current_request_id"]

if TYPE_CHECKING:  # the classes are generic in the stubs only
    Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
    Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]
else:
    Context = grpc.aio.ServicerContext
    Handler = grpc.RpcMethodHandler

Admit: TypeAlias = Callable[[str, Context], Awaitable[None]]
"""Authenticates a call: takes the full method name (``/package.Service/Method``) and the context, raises a
BulkheadError to refuse. It runs in the handler's task, so context variables that it sets are the handler's."""

OnRefusal: TypeAlias = Callable[[str, BulkheadError], Awaitable[None]]
"""Told of each refused call: full method name and the error. Runs in the handler's task."""

_REQUEST_ID: Final[ContextVar[str]] = ContextVar("request_id", default="")

log = structlog.get_logger(__name__)


class _Malformed:
    """Stands in for a message that could not be decoded, so that admission comes first."""


_MALFORMED: Final = _Malformed()


def current_request_id() -> str:
    """Return the request id of the current call: the caller's where the message has one, else made here."""
    return _REQUEST_ID.get()


async def _admit_all(_method: str, _context: Context) -> None:
    """Admit every call: for ports whose peers are identified elsewhere."""


async def _tell_nobody(_method: str, _error: BulkheadError) -> None:
    """Record nothing."""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler of a server as the module docstring says.

    Args:
        max_call_s: longest a call may take, in seconds.
        unlimited: full method names without a maximum (streams that live as long as their connection).
        admit: see :data:`Admit`; absent, every call is admitted.
        on_refusal: see :data:`OnRefusal`.
    """

    def __init__(
        self,
        *,
        max_call_s: float,
        unlimited: frozenset[str] = frozenset(),
        admit: Admit = _admit_all,
        on_refusal: OnRefusal = _tell_nobody,
    ) -> None:
        self._max_call_s = max_call_s
        self._unlimited = unlimited
        self._admit = admit
        self._on_refusal = on_refusal

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the wrapped handler; None (UNIMPLEMENTED, said by core) when there is no such method."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        deserialize = _guarded(handler.request_deserializer)
        if handler.response_streaming:
            behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
            make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else _unary_stream
            return make(self._streaming(method, behaviour), deserialize, handler.response_serializer)
        behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
        make = grpc.stream_unary_rpc_method_handler if handler.request_streaming else _unary_unary
        return make(self._single(method, behaviour), deserialize, handler.response_serializer)

    def _single(self, method: str, behaviour: Any) -> Any:
        async def call(request: Any, context: Context) -> Any:
            async with self._boundary(method, request, context):
                await self._admit(method, context)
                async with self._deadline(method, context):
                    return await behaviour(_decoded(request), context)

        return call

    def _streaming(self, method: str, behaviour: Any) -> Any:
        async def call(request: Any, context: Context) -> None:
            async with self._boundary(method, request, context):
                await self._admit(method, context)
                async with self._deadline(method, context):
                    produced = behaviour(_decoded(request), context)
                    if not hasattr(produced, "__aiter__"):
                        await produced  # a coroutine that writes to the context itself
                        return
                    # Written here, not yielded, so that the deadline also covers a reader who does not read.
                    async with contextlib.aclosing(produced):
                        async for message in produced:
                            await context.write(message)

        return call

    @contextlib.asynccontextmanager
    async def _boundary(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        request_id = _request_id(request, context)
        _REQUEST_ID.set(request_id)
        bind_call(request_id=request_id, method=method)
        try:
            yield
        except BulkheadError as error:
            log.info("rpc.refused", code=error.code)
            await self._on_refusal(method, error)
            await abort_with(context, error)
        except (grpc.aio.AbortError, grpc.RpcError):
            raise
        except Exception as error:  # the process boundary: a defect must not carry its stack to the peer
            log.exception("rpc.failed", exc_info=error)
            message = f"internal error; the operator finds it under the request id {request_id}"
            await abort_with(context, InternalError(message, details={"request_id": request_id}))

    @contextlib.asynccontextmanager
    async def _deadline(self, method: str, context: Context) -> AsyncIterator[None]:
        remaining = context.time_remaining()
        if method in self._unlimited:
            yield
            return
        limit_s = self._max_call_s if remaining is None else min(remaining, self._max_call_s)
        scope = asyncio.timeout(limit_s)
        try:
            async with scope:
                yield
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise DeadlineError(f"not finished within {limit_s:.1f} s") from error


def _guarded(deserialize: Any) -> Any:
    if deserialize is None:
        return None

    def decode(data: bytes) -> Any:
        try:
            return deserialize(data)
        except Exception:  # noqa: BLE001  protobuf raises DecodeError, and other types for bad UTF-8
            return _MALFORMED

    return decode


def _decoded(request: Any) -> Any:
    if request is _MALFORMED:
        raise MalformedRequestError("the message could not be decoded as this method's request")
    return _decoded_stream(request) if hasattr(request, "__aiter__") else request


async def _decoded_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _decoded(request)


def _request_id(request: Any, context: Context) -> str:
    """Return the caller's request id, else a fresh one for this call's log lines.

    The caller's stands in the request, or, for methods whose request has none, in the metadata; another form than that
    of an id is ignored.
    """
    given = getattr(request, "request_id", None)
    if not isinstance(given, str) or not given:
        metadata = context.invocation_metadata() or ()
        given = next((value for key, value in metadata if key == REQUEST_ID_METADATA), None)
    if isinstance(given, str) and given:
        with contextlib.suppress(InvalidRequestError):
            return check_id(given, REQUEST)
    return new_id(REQUEST)


def _unary_unary(behaviour: Any, deserialize: Any, serialize: Any) -> Handler:
    return grpc.unary_unary_rpc_method_handler(behaviour, deserialize, serialize)


def _unary_stream(behaviour: Any, deserialize: Any, serialize: Any) -> Handler:
    return grpc.unary_stream_rpc_method_handler(behaviour, deserialize, serialize)
