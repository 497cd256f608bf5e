"""The table ``[tdx]`` of a trust policy, read into a :class:`TdxPolicy`."""

import re
from collections.abc import Mapping
from typing import Final

from bulkhead.attestation.policy_fields import (
    ANY,
    read_binaries,
    read_integer,
    read_named,
    read_open_binaries,
    read_texts,
)
from bulkhead.attestation.tdx.documents import TcbStatus
from bulkhead.attestation.tdx.policy import (
    ATTRIBUTE_DEBUG_GROUP,
    ATTRIBUTE_KEY_LOCKER,
    ATTRIBUTE_LASS,
    ATTRIBUTE_MIGRATABLE,
    ATTRIBUTE_PERFMON,
    ATTRIBUTE_PROTECTION_KEYS,
    XFAM_MANDATORY,
    TdImage,
    TdxPolicy,
)
from bulkhead.encoding import Json
from bulkhead.errors import ConfigError
from bulkhead.fields import Fields

__all__ = ["NOT_COMPARED", "OPTIONAL_ATTRIBUTES", "parse_tdx_policy"]

NOT_COMPARED: Final = "not compared"
OPTIONAL_ATTRIBUTES: Final = {
    "lass": ATTRIBUTE_LASS,
    "protection_keys": ATTRIBUTE_PROTECTION_KEYS,
    "key_locker": ATTRIBUTE_KEY_LOCKER,
    "perfmon": ATTRIBUTE_PERFMON,
}
_MEASUREMENT_BYTES: Final = 48
_PPID_BYTES: Final = 16
_MAX_IMAGES: Final = 64  # of a fleet during a rollout
_MAX_COLLATERAL_AGE_S: Final = 400 * 24 * 3600
_MAX_EVALUATION_NUMBER: Final = 2**31 - 1
_ATTRIBUTE_BIT: Final = re.compile(r"bit([1-5]?[0-9]|6[0-3])")
_XFAM: Final = re.compile(r"0x[0-9a-fA-F]{1,16}")
_MEASUREMENT: Final = re.compile(r"[0-9a-fA-F]{96}")
# The host chooses what RTMR0 measures (its virtual firmware's configuration), a running guest what RTMR3 does. RTMR1
# and RTMR2 hold kernel and command line: an image without them is no image.
_MAY_BE_LEFT_OUT: Final = (0, 3)
_STATUSES: Final = {status.value: status for status in TcbStatus if status is not TcbStatus.REVOKED}


def parse_tdx_policy(table: Mapping[str, Json], *, what: str = "tdx") -> TdxPolicy:
    """Return the policy in a parsed TOML table (``[tdx]`` of a trust policy).

    Every key is optional and named as the attribute; an unknown one is an error. Byte strings are hexadecimal. Images
    are ``[[tdx.images]]`` with ``mr_td`` and ``rtmr0`` to ``rtmr3``, all five; ``rtmr0`` and ``rtmr3`` may be
    ``"not compared"``. ``mr_seams = ["any"]`` stands for None, and so for ``ppids``. ``optional_attributes`` has names
    (``lass``, ``protection_keys``, ``key_locker``, ``perfmon``) or ``bit26``; ``allowed_xfam`` is ``"0x…"``. Debug,
    migration and revoked platforms have no key: they are never accepted.

    Raises:
        ConfigError: unknown key, wrong type, or value out of bounds.
    """
    default = TdxPolicy()
    with Fields(dict(table), what=what, error=ConfigError) as fields:
        return TdxPolicy(
            images=_images(fields, what),
            accepted_statuses=read_named(fields, "accepted_statuses", _STATUSES, default.accepted_statuses),
            accepted_advisories=read_texts(fields, "accepted_advisories", default.accepted_advisories),
            minimum_evaluation_number=read_integer(
                fields, "minimum_evaluation_number", default.minimum_evaluation_number, _MAX_EVALUATION_NUMBER
            ),
            maximum_collateral_age_s=read_integer(
                fields, "maximum_collateral_age_s", default.maximum_collateral_age_s, _MAX_COLLATERAL_AGE_S, low=1
            ),
            optional_attributes=_attributes(fields, default.optional_attributes),
            allowed_xfam=_xfam(fields, default.allowed_xfam),
            mr_config_ids=read_binaries(fields, "mr_config_ids", _MEASUREMENT_BYTES, default.mr_config_ids),
            mr_owners=read_binaries(fields, "mr_owners", _MEASUREMENT_BYTES, default.mr_owners),
            mr_owner_configs=read_binaries(fields, "mr_owner_configs", _MEASUREMENT_BYTES, default.mr_owner_configs),
            mr_seams=read_open_binaries(fields, "mr_seams", _MEASUREMENT_BYTES, default.mr_seams),
            ppids=read_open_binaries(fields, "ppids", _PPID_BYTES, default.ppids),
        )


def _images(fields: Fields, what: str) -> tuple[TdImage, ...]:
    if "images" not in fields:
        return ()
    return tuple(
        _image(item, f"{what}: images[{number}]")
        for number, item in enumerate(fields.array("images", max_items=_MAX_IMAGES))
    )


def _image(value: Json, what: str) -> TdImage:
    with Fields(value, what=what, error=ConfigError) as fields:
        mr_td = _measurement(fields, "mr_td", may_be_left_out=False)
        rtmr0, rtmr1, rtmr2, rtmr3 = (
            _measurement(fields, f"rtmr{number}", may_be_left_out=number in _MAY_BE_LEFT_OUT) for number in range(4)
        )
    if mr_td is None:  # never: MRTD may not be left out
        raise fields.wrong("mr_td", "given")
    return TdImage(mr_td=mr_td, rtmrs=(rtmr0, rtmr1, rtmr2, rtmr3))


def _measurement(fields: Fields, name: str, *, may_be_left_out: bool) -> bytes | None:
    text = fields.text(name)
    if text == NOT_COMPARED and may_be_left_out:
        return None
    if not _MEASUREMENT.fullmatch(text):
        other = f', or "{NOT_COMPARED}"' if may_be_left_out else f'; there is no wildcard such as "{ANY}"'
        raise fields.wrong(name, f"96 hexadecimal digits{other}")
    return bytes.fromhex(text)


def _attributes(fields: Fields, default: int) -> int:
    name = "optional_attributes"
    if name not in fields:
        return default
    bits = 0
    for text in fields.texts(name, max_items=64):
        match = _ATTRIBUTE_BIT.fullmatch(text)
        bit = 1 << int(match[1]) if match else OPTIONAL_ATTRIBUTES.get(text, 0)
        if not bit:
            raise fields.wrong(name, f"an array of {', '.join(OPTIONAL_ATTRIBUTES)} or bit0 to bit63")
        bits |= bit
    if bits & (ATTRIBUTE_DEBUG_GROUP | ATTRIBUTE_MIGRATABLE):
        raise fields.wrong(name, "free of debug, profiling and migration, which are never accepted")
    return bits


def _xfam(fields: Fields, default: int) -> int:
    if "allowed_xfam" not in fields:
        return default
    text = fields.text("allowed_xfam")
    if not _XFAM.fullmatch(text):
        raise fields.wrong("allowed_xfam", 'a number such as "0x6dbe7"')
    return int(text, 16) | XFAM_MANDATORY
