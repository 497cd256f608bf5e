"""Keyset paging, once for every list call."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Final, TypeVar

from bulkhead.errors import InternalError
from bulkhead.v1 import common_pb2

__all__ = ["pages"]

PAGE_SIZE: Final = 100
MAX_PAGES: Final = 100_000  # ten million items: a server that never ends its list is a defect, not a list

Item = TypeVar("Item")


async def pages(
    fetch: Callable[[common_pb2.PageRequest], Awaitable[tuple[Iterable[Item], str]]], *, page_size: int = PAGE_SIZE
) -> AsyncGenerator[Item, None]:
    """Yield every item of a list call.

    Args:
        fetch: calls the server for one page; returns its items and the next page's token, empty at the end.
        page_size: items per page, at most 1,000.

    Raises:
        BulkheadError: of ``fetch``.
        InternalError: the server repeats a page token.
    """
    token = ""
    for _ in range(MAX_PAGES):
        items, following = await fetch(common_pb2.PageRequest(size=page_size, token=token))
        for item in items:
            yield item
        if not following:
            return
        if following == token:
            break
        token = following
    raise InternalError("the control plane's list does not end")
