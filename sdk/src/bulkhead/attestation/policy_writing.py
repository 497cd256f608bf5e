"""Writing a trust policy as the TOML file that is read back into it, every key with the reason for its default.

The reasons are those of the policies' own docstrings, so that there is one text of each.
"""

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from bulkhead.attestation.collateral.policy import CollateralPolicy
from bulkhead.attestation.nvidia.policy import NvidiaPolicy
from bulkhead.attestation.policy import TrustPolicy
from bulkhead.attestation.snp.policy import SnpPolicy
from bulkhead.attestation.snp.product import COMPONENTS
from bulkhead.attestation.snp.report import PlatformInfo, SigningKey
from bulkhead.attestation.tdx.policy import TdImage, TdxPolicy
from bulkhead.attestation.tdx.policy_table import NOT_COMPARED, OPTIONAL_ATTRIBUTES
from bulkhead.encoding import b64url_encode

__all__ = ["reasons_of", "write_trust_policy"]

_WIDTH: Final = 118
_ATTRIBUTE: Final = re.compile(r"(\w+): (.*)", re.DOTALL)
_SECTIONS: Final = re.compile(r"^(?:Raises|Args|Returns):$", re.MULTILINE)
_WORD_BITS: Final = 64
_WILDCARD: Final = re.compile(
    r"[;.] None accepts any(?: image: for looking at evidence, never for a session)?\. (?=Empty, so|Default none)"
)


def reasons_of(policy: type) -> dict[str, str]:
    """Return attribute -> what a policy's docstring says of it; empty where docstrings are stripped (``-OO``)."""
    text = inspect.getdoc(policy) or ""
    _, _, listed = text.partition("Attributes:\n")
    listed = _SECTIONS.split(listed)[0]
    entries = re.split(r"\n(?=    \w+: )", listed.strip("\n"))
    found = (_ATTRIBUTE.fullmatch(" ".join(entry.split())) for entry in entries)
    return {match[1]: match[2].replace("``", "") for match in found if match}


def write_trust_policy(policy: TrustPolicy, *, remarks: Sequence[str] = ()) -> str:
    """Return the TOML text of ``policy``; :func:`parse_trust_policy` reads it back as the same policy.

    Args:
        policy: the policy.
        remarks: paragraphs for the head of the file.
    """
    lines = [line for remark in remarks for line in (*_comment(remark), "#")]
    lines += _entries(TrustPolicy, _general(policy))
    lines += ["", *_comment("AMD SEV-SNP."), "[snp]", *_entries(SnpPolicy, _snp(policy.snp))]
    lines += _floors(policy.snp)
    lines += ["", *_comment("Intel TDX."), "[tdx]", *_entries(TdxPolicy, _tdx(policy.tdx))]
    lines += _images(policy.tdx)
    lines += ["", *_comment("NVIDIA GPUs."), "[nvidia]", *_entries(NvidiaPolicy, _nvidia(policy.nvidia))]
    lines += ["", *_comment("What may be fetched, and how old it may be."), "[collateral]"]
    lines += [*_entries(CollateralPolicy, _collateral(policy.collateral)), *_by_kind(policy.collateral)]
    return "\n".join(lines) + "\n"


def _general(policy: TrustPolicy) -> Mapping[str, str | None]:
    return {
        "accepted_kinds": _texts(kind.value for kind in policy.accepted_kinds),
        "technologies": _texts(item.value for item in policy.technologies),
        "operator_keys": _array(b64url_encode(key) for key in policy.operator_keys),
        "minimum_tier": _quoted(policy.minimum_tier.value),
        "maximum_age_s": str(policy.maximum_age_s),
        "regions": _open(policy.regions),
        "model_digests": _open_hex(policy.model_digests),
        "tenant_roots": _open_hex(policy.tenant_roots),
    }


def _snp(policy: SnpPolicy) -> Mapping[str, str | None]:
    return {
        "products": _texts(product.value for product in policy.products),
        "measurements": _hex(policy.measurements or ()),
        "signing_keys": _texts(SigningKey(key).name.lower() for key in policy.signing_keys),
        "csp_ids": _open(policy.csp_ids),
        "vmpl": str(policy.vmpl),
        "allow_migration_agent": _flag(policy.allow_migration_agent),
        "allow_smt": _flag(policy.allow_smt),
        "allow_cxl": _flag(policy.allow_cxl),
        "require_single_socket": _flag(policy.require_single_socket),
        "required_platform_info": _bits(policy.required_platform_info),
        "forbidden_platform_info": _bits(policy.forbidden_platform_info),
        "allow_provisional_firmware": _flag(policy.allow_provisional_firmware),
        "host_data": _open_hex(policy.host_data),
        "chip_ids": _open_hex(policy.chip_ids),
        "id_key_digests": _open_hex(policy.id_key_digests),
        "author_key_digests": _open_hex(policy.author_key_digests),
        "minimum_guest_svn": str(policy.minimum_guest_svn),
        "require_crl": _flag(policy.require_crl),
        "max_crl_age_s": _number(policy.max_crl_age_s),
    }


def _tdx(policy: TdxPolicy) -> Mapping[str, str | None]:
    return {
        "accepted_statuses": _texts(status.value for status in policy.accepted_statuses),
        "accepted_advisories": _texts(policy.accepted_advisories),
        "minimum_evaluation_number": str(policy.minimum_evaluation_number),
        "maximum_collateral_age_s": str(policy.maximum_collateral_age_s),
        "optional_attributes": _array(_attribute_names(policy.optional_attributes)),
        "allowed_xfam": _quoted(f"{policy.allowed_xfam:#x}"),
        "mr_config_ids": _hex(policy.mr_config_ids),
        "mr_owners": _hex(policy.mr_owners),
        "mr_owner_configs": _hex(policy.mr_owner_configs),
        "mr_seams": _open_hex(policy.mr_seams),
        "ppids": _open_hex(policy.ppids),
    }


def _nvidia(policy: NvidiaPolicy) -> Mapping[str, str | None]:
    driver, vbios = policy.minimum_driver_version, policy.minimum_vbios_version
    return {
        "products": _texts(policy.products),
        "modes": _texts(mode.value for mode in policy.modes),
        "mode_must_be_stated": _flag(policy.mode_must_be_stated),
        "allow_missing_fwid": _flag(policy.allow_missing_fwid),
        "fwids": _open_hex(policy.fwids),
        "driver_versions": _texts(policy.driver_versions),
        "vbios_versions": _texts(policy.vbios_versions),
        "minimum_driver_version": None if driver is None else _quoted(driver),
        "minimum_vbios_version": None if vbios is None else _quoted(vbios),
        "revocation_required": _flag(policy.revocation_required),
        "maximum_ocsp_age_s": str(policy.maximum_ocsp_age_s),
    }


def _collateral(policy: CollateralPolicy) -> Mapping[str, str | None]:
    return {"fetch": _texts(kind.value for kind in policy.fetch)}


def _entries(policy: type, values: Mapping[str, str | None]) -> Iterator[str]:
    """Yield each key under its reason; one without a value is left out, and said to be."""
    reasons = reasons_of(policy)
    for name, value in values.items():
        yield ""
        yield from _comment(_in_toml(reasons.get(name, ""), open_list=value is not None))
        yield f"# {name} is left out" if value is None else f"{name} = {value}"


def _in_toml(reason: str, *, open_list: bool) -> str:
    """Return a docstring's words as they hold for the file: it has no ``None``, and measurements no wildcard."""
    text = _WILDCARD.sub(". There is no wildcard. ", reason)
    for word, written in (("None", '["any"]' if open_list else "left out"), ("True", "true"), ("False", "false")):
        text = re.sub(rf"\b{word}\b", written, text)
    return text[:1].upper() + text[1:]


def _floors(policy: SnpPolicy) -> Iterator[str]:
    reason = reasons_of(SnpPolicy).get("tcb_floors", "")
    yield ""
    yield from _comment(_in_toml(reason, open_list=True))
    yield from _comment(
        f"tcb_floors is a table by product, such as [snp.tcb_floors.turin], with {', '.join(COMPONENTS)}."
    )
    for product, floor in policy.tcb_floors.items():
        yield f"[snp.tcb_floors.{product.value}]"
        yield from (f"{name} = {getattr(floor, name)}" for name in COMPONENTS if name != "fmc" or floor.fmc)


def _images(policy: TdxPolicy) -> Iterator[str]:
    yield ""
    yield from _comment(_in_toml(reasons_of(TdxPolicy).get("images", ""), open_list=True))
    yield from _comment("images is a table for each, [[tdx.images]], with mr_td and rtmr0 to rtmr3.")
    for image in policy.images or ():
        yield from _image(image)


def _image(image: TdImage) -> Iterator[str]:
    yield "[[tdx.images]]"
    yield f"mr_td = {_quoted(image.mr_td.hex())}"
    for number, value in enumerate(image.rtmrs):
        yield f"rtmr{number} = {_quoted(NOT_COMPARED if value is None else value.hex())}"


def _by_kind(policy: CollateralPolicy) -> Iterator[str]:
    reasons = reasons_of(CollateralPolicy)
    yield ""
    yield from _comment(reasons.get("maximum_age_s", ""))
    yield "[collateral.maximum_age_s]"
    yield from (f"{kind.value} = {age_s}" for kind, age_s in policy.maximum_age_s.items())
    yield ""
    yield from _comment(reasons.get("mirrors", ""))
    yield "[collateral.mirrors]"
    yield from (f"{kind.value} = {_quoted(url)}" for kind, url in policy.mirrors.items())


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, width=_WIDTH - 2)]


def _quoted(text: str) -> str:
    # TOML's basic strings; JSON's escapes are among theirs.
    return '"' + "".join(_escaped(char) for char in text) + '"'


def _escaped(char: str) -> str:
    if char in {'"', "\\"}:
        return f"\\{char}"
    return char if char.isprintable() else f"\\U{ord(char):08x}"


def _array(texts: "Iterator[str] | Sequence[str]") -> str:
    return f"[{', '.join(_quoted(text) for text in texts)}]"


def _texts(texts: "Iterator[str] | frozenset[str]") -> str:
    return _array(sorted(texts))


def _hex(values: "frozenset[bytes] | tuple[bytes, ...]") -> str:
    return _array(sorted(value.hex() for value in values))


def _open(texts: frozenset[str] | None) -> str:
    return _array(("any",)) if texts is None else _texts(texts)


def _open_hex(values: frozenset[bytes] | None) -> str:
    return _array(("any",)) if values is None else _hex(values)


def _flag(value: bool) -> str:  # noqa: FBT001  # a value, not a switch
    return "true" if value else "false"


def _number(value: int | None) -> str | None:
    return None if value is None else str(value)


def _bits(bits: PlatformInfo) -> str:
    return _texts(bit.name.lower() for bit in PlatformInfo if bit & bits and bit.name)


def _attribute_names(bits: int) -> list[str]:
    named = {value: name for name, value in OPTIONAL_ATTRIBUTES.items()}
    return [named.get(1 << bit, f"bit{bit}") for bit in range(_WORD_BITS) if bits >> bit & 1]
