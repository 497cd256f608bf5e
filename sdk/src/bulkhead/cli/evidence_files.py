"""Evidence from files: what every technology's command line shares, and where each registers its own.

A technology is a module with ``verify_files``, from :class:`EvidenceFiles` to facts (JSON types or what :func:`to_json`
turns into them), which raises an error with the obligation that failed; ``OBLIGATIONS``, its numbered table;
``is_evidence``, which knows its evidence from other files; and ``read_claims``. It is imported when it is needed.
"""

import datetime as dt
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from bulkhead.errors import BulkheadError, EvidenceError, InvalidRequestError

if TYPE_CHECKING:
    from bulkhead.attestation.collateral.cache import CollateralCache
    from bulkhead.attestation.policy import TrustPolicy

__all__ = [
    "TECHNOLOGIES",
    "EvidenceFiles",
    "NamedBytes",
    "TechnologyModule",
    "detect_technology",
    "parse_time",
    "read_bounded",
    "technology_module",
    "under",
]

MAX_FILE_BYTES: Final = 4 * 1024 * 1024  # Intel's largest revocation list is well below
TECHNOLOGIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "snp": "bulkhead.cli.evidence_snp",
        "tdx": "bulkhead.cli.evidence_tdx",
        "nvidia": "bulkhead.cli.evidence_nvidia",
    }
)
"""Name on the command line -> module; also the name of the policy's table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedBytes:
    """A file's content with its name for errors."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceFiles:
    """One run of `bulkhead evidence verify`.

    Attributes:
        evidence: files given without an option: the evidence and, in any order, what belongs to it; at least one.
        certificates: further files with certificates.
        collateral: files with TCB info, QE identity and the like.
        crls: files with revocation lists.
        rims: files with reference manifests.
        ocsp: files with OCSP answers.
        product: product name, or empty.
        policy: the tenant's.
        nonce: what the evidence must answer.
        now_s: Unix seconds.
        cache: collateral at hand, and the only way to fetch any.
    """

    evidence: tuple[Path, ...]
    certificates: tuple[Path, ...] = ()
    collateral: tuple[Path, ...] = ()
    crls: tuple[Path, ...] = ()
    rims: tuple[Path, ...] = ()
    ocsp: tuple[Path, ...] = ()
    product: str = ""
    policy: "TrustPolicy"
    nonce: bytes
    now_s: int
    cache: "CollateralCache"

    def split(self, is_evidence: Callable[[bytes], bool], obligation: str) -> tuple[NamedBytes, list[NamedBytes]]:
        """Return the one file that is evidence, and the others given without an option.

        Where none looks like evidence the first is taken, so that the verifier says what is wrong with it.

        Raises:
            EvidenceError: unreadable.
            InvalidRequestError: two files are evidence: one run verifies one.
        """
        with under(obligation):
            files = [NamedBytes(name=str(path), data=read_bounded(path)) for path in self.evidence]
        found = [file for file in files if is_evidence(file.data)]
        if len(found) > 1:
            raise InvalidRequestError(f"{found[0].name} and {found[1].name} are evidence both: verify one at a time")
        chosen = found[0] if found else files[0]
        return chosen, [file for file in files if file is not chosen]

    def refuse(self, technology: str, **options: tuple[Path, ...] | str) -> None:
        """Refuse options that mean nothing for a technology, rather than to ignore what somebody relied on.

        Raises:
            InvalidRequestError: one was given.
        """
        for name, value in options.items():
            if value:
                raise InvalidRequestError(f"--{name} means nothing for --type {technology}")


class TechnologyModule(Protocol):
    """What a technology's module offers."""

    OBLIGATIONS: Mapping[str, str]

    def verify_files(self, files: EvidenceFiles) -> Mapping[str, Any]:
        """Return what the evidence proves, or raise."""
        ...

    def is_evidence(self, data: bytes) -> bool:
        """Whether a file looks like the technology's evidence."""
        ...

    def read_claims(self, data: bytes) -> Mapping[str, Any]:
        """Return what evidence says, verified by nobody, or raise."""
        ...


def technology_module(technology: str) -> TechnologyModule:
    """Return the module of a name in :data:`TECHNOLOGIES`."""
    return cast("TechnologyModule", importlib.import_module(TECHNOLOGIES[technology]))


def detect_technology(paths: tuple[Path, ...]) -> str:
    """Return the technology of the first file that is evidence of one.

    Raises:
        InvalidRequestError: none is.
    """
    for path in paths:
        data = read_bounded(path)
        for technology in TECHNOLOGIES:
            if technology_module(technology).is_evidence(data):
                return technology
    raise InvalidRequestError(f"no file looks like evidence; say which it is: --type {' | '.join(TECHNOLOGIES)}")


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
