"""Numbered obligations: what every verifier of hardware evidence must check, and how a failed one is named.

Each technology states its obligations in one module-level :data:`Obligations` table (``SNP-1``, ``TDX-1``, ``GPU-1``,
…), repeats the numbers at the code that meets them, and raises :func:`failed` with the number where one is not met.
The error's code says what kind of failure it is; ``details["obligation"]`` says which check failed, and is as stable
as the code: command line and tests read it.
"""

from collections.abc import Mapping
from typing import Final, TypeAlias

from bulkhead.errors import BulkheadError, EvidenceError

__all__ = ["OBLIGATION_DETAIL", "Obligations", "failed", "obligation_of"]

Obligations: TypeAlias = Mapping[str, str]
"""Obligation number -> one sentence that says what holds when it is met; in the order of checking."""

OBLIGATION_DETAIL: Final = "obligation"  # name in ``BulkheadError.details``


def failed(
    obligation: str,
    message: str,
    error: type[BulkheadError] = EvidenceError,
    *,
    details: Mapping[str, str] | None = None,
) -> BulkheadError:
    """Return (for raising) the error of an obligation that is not met.

    Args:
        obligation: its number, such as ``SNP-7``.
        message: one sentence for a person; for missing collateral also where it comes from.
        error: ``EvidenceError`` for evidence that is malformed or does not verify, ``EvidenceBindingError`` where it
            speaks of something else, ``EvidenceExpiredError`` where time has passed, ``EvidencePolicyError`` where it
            verifies but the tenant does not accept it.
        details: further facts for programs.
    """
    return error(f"{obligation}: {message}", details={**(details or {}), OBLIGATION_DETAIL: obligation})


def obligation_of(error: BulkheadError) -> str | None:
    """Return the number of the obligation that failed, or None for an error that is not about one."""
    return error.details.get(OBLIGATION_DETAIL)
