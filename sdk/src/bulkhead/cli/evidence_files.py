"""Evidence from files: what every technology's command line shares, and where each registers its own.

A technology is a function from :class:`EvidenceFiles` to facts (JSON types or what :func:`to_json` turns into them),
which raises an :class:`EvidenceError` with the obligation that failed. It is named in :data:`TECHNOLOGIES` and imported
when chosen.
"""

import datetime as dt
import importlib
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from bulkhead.encoding import Json
from bulkhead.errors import BulkheadError, ConfigError, EvidenceError, InvalidRequestError

__all__ = [
    "TECHNOLOGIES",
    "EvidenceFiles",
    "FileVerifier",
    "parse_time",
    "policy_table",
    "read_bounded",
    "under",
    "verifier_of",
]

MAX_FILE_BYTES: Final = 4 * 1024 * 1024  # Intel's largest revocation list is well below
TECHNOLOGIES: Final[Mapping[str, str]] = MappingProxyType({"snp": "bulkhead.cli.evidence_snp"})
"""Name on the command line -> module with ``verify_files``; also the name of the policy's table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceFiles:
    """One run of `bulkhead evidence verify`.

    Attributes:
        evidence: files that hold the evidence; at least one.
        certificates: further files with certificates.
        collateral: files with TCB info, QE identity and the like.
        crls: files with revocation lists.
        rims: files with reference manifests.
        product: product name, or empty.
        policy: the technology's own table of the trust policy, empty where there is none.
        nonce: what the evidence must answer.
        now_s: Unix seconds.
    """

    evidence: tuple[Path, ...]
    certificates: tuple[Path, ...]
    collateral: tuple[Path, ...]
    crls: tuple[Path, ...]
    rims: tuple[Path, ...]
    product: str
    policy: Mapping[str, Json]
    nonce: bytes
    now_s: int


FileVerifier: TypeAlias = Callable[[EvidenceFiles], Mapping[str, Any]]


def verifier_of(technology: str) -> FileVerifier:
    """Return the verifier of a name in :data:`TECHNOLOGIES`."""
    verify: FileVerifier = importlib.import_module(TECHNOLOGIES[technology]).verify_files
    return verify


def read_bounded(path: Path, *, error: type[BulkheadError] = EvidenceError) -> bytes:
    """Return a file of at most 4 MiB.

    Raises:
        BulkheadError: of class ``error``, unreadable or longer.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as cause:
        raise error(f"{path}: cannot be read") from cause
    if len(data) > MAX_FILE_BYTES:
        raise error(f"{path}: longer than {MAX_FILE_BYTES} bytes")
    return data


@contextmanager
def under(obligation: str) -> Iterator[None]:
    """Name ``obligation`` in an evidence error from reading a file, which by itself names none."""
    from bulkhead.attestation.obligations import failed, obligation_of  # cryptography: not for --help

    try:
        yield
    except EvidenceError as error:
        if obligation_of(error) is not None:
            raise
        raise failed(obligation, error.message, type(error)) from error


def policy_table(path: Path | None, technology: str) -> Mapping[str, Json]:
    """Return ``technology``'s table of a trust policy; the rest of the file must be a trust policy, too.

    Raises:
        ConfigError: unreadable, not TOML, or an unknown key.
    """
    if path is None:
        return {}
    from bulkhead.attestation.policy import MAX_POLICY_BYTES, parse_trust_policy  # cryptography: not for --help

    data = read_bounded(path, error=ConfigError)
    if len(data) > MAX_POLICY_BYTES:
        raise ConfigError(f"{path}: longer than {MAX_POLICY_BYTES} bytes")
    try:
        table = tomllib.loads(data.decode("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read as TOML") from error
    own = {name: table.pop(name, {}) for name in ("snp", "tdx", "nvidia")}[technology]
    parse_trust_policy(table, what=str(path))
    if not isinstance(own, dict):
        raise ConfigError(f"{path}: {technology} must be a table")
    return own


def parse_time(text: str | None) -> int:
    """Return Unix seconds of ``2026-03-01``, ``2026-03-01T12:00:00Z`` (UTC without offset) or ``@1772323200``, or now.

    Raises:
        InvalidRequestError: anything else.
    """
    if text is None:
        return int(dt.datetime.now(dt.UTC).timestamp())
    try:
        if text.startswith("@"):
            return int(text[1:])
        moment = dt.datetime.fromisoformat(text)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp())
    except (ValueError, OverflowError) as error:
        raise InvalidRequestError(f"{text}: not a time such as 2026-03-01T12:00:00Z or @1772323200") from error
