"""TCB info and QE identity: Intel's signed statements of which versions are up to date.

Source: Intel PCS API 4, /tdx/certification/v4/tcb and /tdx/certification/v4/qe/identity. The signature covers the raw
bytes of the document; the caller verifies it before anything read here is believed. Members that are unknown are
ignored, as Intel adds some; a member that is missing, twice there or out of bounds is an error.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Final, Self

from bulkhead.attestation.obligations import failed, obligation_of
from bulkhead.encoding import Json
from bulkhead.errors import EvidenceError
from bulkhead.fields import Fields

__all__ = [
    "ModuleIdentity",
    "QeIdentity",
    "SvnLevel",
    "TcbInfo",
    "TcbLevel",
    "TcbStatus",
    "parse_qe_identity",
    "parse_tcb_info",
]

MAX_DOCUMENT_BYTES: Final = 262_144  # TCB infos have 2 to 6 kB
_MAX_LEVELS: Final = 256  # Intel publishes one per TCB recovery: fewer than 20
_MAX_ADVISORIES: Final = 256
_MAX_ADVISORY_CHARS: Final = 64
_MAX_MODULES: Final = 256  # the module's major version is one byte
_COMPONENTS: Final = 16
_TCB_INFO_VERSION: Final = 3
_QE_IDENTITY_VERSION: Final = 2
_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2})*")
_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


class TcbStatus(Enum):
    """Intel's judgement of a TCB level, from best to worst; compares by that order."""

    UP_TO_DATE = "UpToDate"
    SW_HARDENING_NEEDED = "SWHardeningNeeded"
    CONFIGURATION_NEEDED = "ConfigurationNeeded"
    CONFIGURATION_AND_SW_HARDENING_NEEDED = "ConfigurationAndSWHardeningNeeded"
    OUT_OF_DATE = "OutOfDate"
    OUT_OF_DATE_CONFIGURATION_NEEDED = "OutOfDateConfigurationNeeded"
    REVOKED = "Revoked"

    def __lt__(self, other: Self) -> bool:
        return self._rank < other._rank

    @property
    def _rank(self) -> int:
        return list(type(self)).index(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SvnLevel:
    """A TCB level of an enclave or of the TDX module: from ``isv_svn`` on, down to the next level."""

    isv_svn: int
    status: TcbStatus
    advisories: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbLevel:
    """A TCB level of a platform: 16 SGX and 16 TDX components and the PCE, each at least so much."""

    sgx_svns: tuple[int, ...]
    tdx_svns: tuple[int, ...]
    pce_svn: int
    status: TcbStatus
    advisories: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleIdentity:
    """Who signed a TDX module (48 bytes) and with which attributes (8 bytes) under a mask; its levels, best first."""

    mr_signer: bytes
    attributes: bytes
    attributes_mask: bytes
    levels: tuple[SvnLevel, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbInfo:
    """TCB levels of the platforms of one FMSPC.

    Attributes:
        issued_s: Unix seconds.
        next_update_s: Unix seconds.
        fmspc: 6 bytes.
        pce_id: 2 bytes.
        evaluation_number: counts TCB recoveries; the same in every document of one recovery.
        module: identity of TDX modules of major version 0.
        modules: major version -> identity, for later modules.
        levels: best first.
    """

    issued_s: int
    next_update_s: int
    fmspc: bytes
    pce_id: bytes
    evaluation_number: int
    module: ModuleIdentity
    modules: dict[int, ModuleIdentity]
    levels: tuple[TcbLevel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QeIdentity:
    """Which quoting enclaves are Intel's; masks say which bits of MISCSELECT and ATTRIBUTES count."""

    issued_s: int
    next_update_s: int
    evaluation_number: int
    misc_select: bytes
    misc_select_mask: bytes
    attributes: bytes
    attributes_mask: bytes
    mr_signer: bytes
    isv_prod_id: int
    levels: tuple[SvnLevel, ...]


def parse_tcb_info(document: bytes) -> TcbInfo:
    """Return what a TCB info says.

    Raises:
        EvidenceError: TDX-11, not a version 3 TCB info for TDX, or malformed.
    """
    with _reading():
        fields = _parse(document, "TCB info")
        _expect_kind(fields, "TDX", _TCB_INFO_VERSION)
        fields.integer("tcbType", low=0, high=0)  # the only type that version 3 defines
        module = _module(fields.nested("tdxModule"))
        modules: dict[int, ModuleIdentity] = {}
        if "tdxModuleIdentities" in fields:
            for item in fields.array("tdxModuleIdentities", max_items=_MAX_MODULES):
                version, identity = _versioned_module(item)
                if version in modules:
                    raise EvidenceError("TCB info: two identities of one TDX module version")
                modules[version] = identity
        return TcbInfo(
            issued_s=_time(fields, "issueDate"),
            next_update_s=_time(fields, "nextUpdate"),
            fmspc=_hex(fields, "fmspc", 6),
            pce_id=_hex(fields, "pceId", 2),
            evaluation_number=fields.integer("tcbEvaluationDataNumber"),
            module=module,
            modules=modules,
            levels=tuple(_tcb_level(item) for item in _levels(fields)),
        )


def parse_qe_identity(document: bytes) -> QeIdentity:
    """Return what a QE identity says.

    Raises:
        EvidenceError: TDX-11, not a version 2 identity of the TD quoting enclave, or malformed.
    """
    with _reading():
        fields = _parse(document, "QE identity")
        _expect_kind(fields, "TD_QE", _QE_IDENTITY_VERSION)
        return QeIdentity(
            issued_s=_time(fields, "issueDate"),
            next_update_s=_time(fields, "nextUpdate"),
            evaluation_number=fields.integer("tcbEvaluationDataNumber"),
            misc_select=_hex(fields, "miscselect", 4),  # in the byte order of the report
            misc_select_mask=_hex(fields, "miscselectMask", 4),
            attributes=_hex(fields, "attributes", 16),
            attributes_mask=_hex(fields, "attributesMask", 16),
            mr_signer=_hex(fields, "mrsigner", 32),
            isv_prod_id=fields.integer("isvprodid", high=0xFFFF),
            levels=tuple(_svn_level(item, high=0xFFFF) for item in _levels(fields)),
        )


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except EvidenceError as error:
        if obligation_of(error) is not None:
            raise
        raise failed("TDX-11", error.message) from error


def _parse(document: bytes, what: str) -> Fields:
    if len(document) > MAX_DOCUMENT_BYTES:
        raise EvidenceError(f"{what}: longer than {MAX_DOCUMENT_BYTES} bytes")
    try:
        value: Json = json.loads(document.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise EvidenceError(f"{what}: not JSON, or a member twice") from error
    return Fields(value, what=what, error=EvidenceError)


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError
    return members


def _no_constant(name: str) -> Json:
    raise ValueError(name)  # NaN and infinities are not JSON


def _expect_kind(fields: Fields, kind: str, version: int) -> None:
    if fields.text("id") != kind:
        raise fields.wrong("id", f'"{kind}"')
    fields.integer("version", low=version, high=version)


def _levels(fields: Fields) -> list[Json]:
    return fields.array("tcbLevels", max_items=_MAX_LEVELS, min_items=1)


def _tcb_level(item: Json) -> TcbLevel:
    level = Fields(item, what="TCB level", error=EvidenceError)
    tcb = level.nested("tcb")
    return TcbLevel(
        sgx_svns=_components(tcb, "sgxtcbcomponents"),
        tdx_svns=_components(tcb, "tdxtcbcomponents"),
        pce_svn=tcb.integer("pcesvn", high=0xFFFF),
        status=_status(level),
        advisories=_advisories(level),
    )


def _components(tcb: Fields, name: str) -> tuple[int, ...]:
    items = tcb.array(name, min_items=_COMPONENTS, max_items=_COMPONENTS)
    return tuple(Fields(item, what=name, error=EvidenceError).integer("svn", high=0xFF) for item in items)


def _svn_level(item: Json, *, high: int) -> SvnLevel:
    level = Fields(item, what="TCB level", error=EvidenceError)
    return SvnLevel(
        isv_svn=level.nested("tcb").integer("isvsvn", high=high), status=_status(level), advisories=_advisories(level)
    )


def _module(fields: Fields, levels: tuple[SvnLevel, ...] = ()) -> ModuleIdentity:
    return ModuleIdentity(
        mr_signer=_hex(fields, "mrsigner", 48),
        attributes=_hex(fields, "attributes", 8),
        attributes_mask=_hex(fields, "attributesMask", 8),
        levels=levels,
    )


def _versioned_module(item: Json) -> tuple[int, ModuleIdentity]:
    fields = Fields(item, what="TDX module identity", error=EvidenceError)
    match = re.fullmatch(r"TDX_([0-9a-fA-F]{2})", fields.text("id"))
    if match is None:
        raise fields.wrong("id", '"TDX_" and two hexadecimal digits')
    levels = tuple(_svn_level(level, high=0xFF) for level in _levels(fields))
    return int(match[1], 16), _module(fields, levels)


def _status(level: Fields) -> TcbStatus:
    try:
        return TcbStatus(level.text("tcbStatus"))
    except ValueError as error:
        raise level.wrong("tcbStatus", "one of Intel's seven statuses") from error


def _advisories(level: Fields) -> tuple[str, ...]:
    if "advisoryIDs" not in level:
        return ()
    return level.texts("advisoryIDs", max_items=_MAX_ADVISORIES, max_chars=_MAX_ADVISORY_CHARS)


def _hex(fields: Fields, name: str, size: int) -> bytes:
    text = fields.text(name, max_chars=2 * size)
    if len(text) != 2 * size or not _HEX.fullmatch(text):
        raise fields.wrong(name, f"{size} bytes in hexadecimal")
    return bytes.fromhex(text)


def _time(fields: Fields, name: str) -> int:
    text = fields.text(name)
    wrong = fields.wrong(name, "a time such as 2026-03-16T22:06:09Z")
    if not _TIME.fullmatch(text):
        raise wrong
    try:
        return int(datetime.fromisoformat(text).timestamp())
    except ValueError as error:
        raise wrong from error
