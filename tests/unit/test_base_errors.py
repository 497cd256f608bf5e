"""The error tree is closed: every class has its own code, and every code a gRPC status."""

import re

import grpc
import pytest

from bulkhead import errors
from bulkhead.errors import CODE_TO_STATUS, BulkheadError, InternalError, PolicyDeniedError, error_from_code


def _tree(base: type[BulkheadError]) -> list[type[BulkheadError]]:
    return [node for child in base.__subclasses__() for node in (child, *_tree(child))]


def test_every_class_has_its_own_code_and_every_code_a_status() -> None:
    """A class without a code of its own, or a code without a status, is a defect of the table."""
    codes = [cls.code for cls in _tree(BulkheadError)]
    assert len(codes) == len(set(codes))
    assert set(codes) == set(CODE_TO_STATUS)
    assert all(hasattr(grpc.StatusCode, status) for status in CODE_TO_STATUS.values())
    assert "OK" not in CODE_TO_STATUS.values()


def test_docstring_draws_exactly_the_tree() -> None:
    """The drawing that readers rely on names every class once."""
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")
    assert sorted(drawn) == sorted(cls.__name__ for cls in _tree(BulkheadError))
    assert set(errors.__all__) == {*drawn, "BulkheadError", "CODE_TO_STATUS", "error_from_code"}


def test_error_from_code_restores_class_and_details() -> None:
    """What a server raised is what a client catches."""
    error = error_from_code("POLICY_DENIED", "no", {"reasons": "[]"})
    assert type(error) is PolicyDeniedError
    assert error.message == "no"
    assert error.details == {"reasons": "[]"}


@pytest.mark.parametrize("code", ["", "FROM_THE_FUTURE", "policy_denied"])
def test_unknown_code_stays_inside_the_tree(code: str) -> None:
    """A newer server's code never becomes an exception outside the tree."""
    assert type(error_from_code(code, "?")) is InternalError


def test_details_cannot_be_changed_afterwards() -> None:
    """An error's details are fixed when it is raised."""
    details = {"a": "1"}
    error = BulkheadError("x", details=details)
    details["a"] = "2"
    assert error.details["a"] == "1"
    with pytest.raises(TypeError):
        error.details["a"] = "3"  # type: ignore[index]
