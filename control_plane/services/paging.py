"""Bounds of a page: keyset paging, whose token is the last key of the page before."""

from typing import Final

from bulkhead.errors import InvalidRequestError

__all__ = ["page_size", "page_token"]

MAX_PAGE: Final = 1_000
DEFAULT_PAGE: Final = 100
MAX_TOKEN_CHARACTERS: Final = 64  # the longest key, an identifier


def page_size(asked: int) -> int:
    """Return the page size to use; 0 asks for the default.

    Raises:
        InvalidRequestError: above the largest.
    """
    if not 0 <= asked <= MAX_PAGE:
        raise InvalidRequestError(f"page size: at most {MAX_PAGE}")
    return asked or DEFAULT_PAGE


def page_token(text: str) -> str:
    """Return the key that a page begins behind; empty is the beginning.

    Raises:
        InvalidRequestError: it is no token of ours.
    """
    if len(text) > MAX_TOKEN_CHARACTERS or not text.isascii() or not text.isprintable():
        raise InvalidRequestError("page token: not one that a page before returned")
    return text
