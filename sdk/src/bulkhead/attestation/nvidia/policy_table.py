"""The table ``[nvidia]`` of a trust policy, read into an :class:`NvidiaPolicy`."""

import re
from collections.abc import Mapping
from typing import Final

from bulkhead.attestation.nvidia.opaque import FWID_BYTES, GpuMode
from bulkhead.attestation.nvidia.policy import NvidiaPolicy
from bulkhead.attestation.policy_fields import read_flag, read_integer, read_named, read_open_binaries, read_texts
from bulkhead.encoding import Json
from bulkhead.errors import ConfigError
from bulkhead.fields import Fields

__all__ = ["parse_nvidia_policy"]

_MODES: Final = {mode.value: mode for mode in GpuMode}
_PRODUCT: Final = re.compile(r"[A-Z]{2}[0-9]{3}")
_DRIVER: Final = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6}){0,5}")
_VBIOS: Final = re.compile(r"[0-9A-Fa-f]{1,6}(?:\.[0-9A-Fa-f]{1,6}){0,5}")
_MAX_OCSP_AGE_S: Final = 30 * 24 * 3600  # an older answer says nothing about today


def parse_nvidia_policy(table: Mapping[str, Json], *, what: str = "nvidia") -> NvidiaPolicy:
    """Return the policy in a parsed TOML table (``[nvidia]`` of a trust policy).

    Every key is optional and named as the attribute; an unknown one is an error.

    Raises:
        ConfigError: unknown key, wrong type, or value out of bounds.
    """
    default = NvidiaPolicy()
    with Fields(dict(table), what=what, error=ConfigError) as fields:
        return NvidiaPolicy(
            products=_versions(fields, "products", _PRODUCT, default.products),
            modes=read_named(fields, "modes", _MODES, default.modes),
            mode_must_be_stated=read_flag(fields, "mode_must_be_stated", default.mode_must_be_stated),
            allow_missing_fwid=read_flag(fields, "allow_missing_fwid", default.allow_missing_fwid),
            fwids=read_open_binaries(fields, "fwids", FWID_BYTES, default.fwids),
            driver_versions=_versions(fields, "driver_versions", _DRIVER, default.driver_versions),
            vbios_versions=frozenset(
                version.upper() for version in _versions(fields, "vbios_versions", _VBIOS, default.vbios_versions)
            ),
            minimum_driver_version=_version(fields, "minimum_driver_version", _DRIVER, default.minimum_driver_version),
            minimum_vbios_version=_version(fields, "minimum_vbios_version", _VBIOS, default.minimum_vbios_version),
            revocation_required=read_flag(fields, "revocation_required", default.revocation_required),
            maximum_ocsp_age_s=read_integer(
                fields, "maximum_ocsp_age_s", default.maximum_ocsp_age_s, _MAX_OCSP_AGE_S, low=1
            ),
        )


def _versions(fields: Fields, name: str, form: re.Pattern[str], default: frozenset[str]) -> frozenset[str]:
    texts = read_texts(fields, name, default)
    if not all(map(form.fullmatch, texts)):
        raise fields.wrong(name, "names such as GH100 or versions such as 580.10.01 and 96.00.5E.00.01")
    return texts


def _version(fields: Fields, name: str, form: re.Pattern[str], default: str | None) -> str | None:
    if name not in fields:
        return default
    text = fields.text(name)
    if not form.fullmatch(text):
        raise fields.wrong(name, "a version such as 580.10.01 or 96.00.5E.00.01")
    return text
