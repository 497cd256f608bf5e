"""AMD's endorsement of a report's signing key: its path to the pinned ARK, and what the VCEK or VLEK says.

Formats: VCEK certificate and KDS interface specification (AMD 57230), table of extensions under 1.3.6.1.4.1.3704.1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bulkhead.attestation.certificates import ChainRules, SignatureScheme, extension_values, verify_chain
from bulkhead.attestation.obligations import failed
from bulkhead.attestation.snp.product import SnpProduct
from bulkhead.attestation.snp.report import SigningKey
from bulkhead.attestation.snp.roots import SnpRoots

__all__ = ["Endorsement", "read_endorsement", "verify_endorsement"]

_OID: Final = "1.3.6.1.4.1.3704.1"
_PRODUCT, _HWID, _CSP_ID = f"{_OID}.2", f"{_OID}.4", f"{_OID}.5"
_SPL: Final = f"{_OID}.3"
_LEVELS: Final = {
    # Suffix of the SPL extension for each byte of TCB_VERSION, in the order of the bytes.
    SnpProduct.MILAN: (1, 2, 4, 5, 6, 7, 3, 8),
    SnpProduct.GENOA: (1, 2, 4, 5, 6, 7, 3, 8),
    SnpProduct.TURIN: (9, 1, 2, 3, 5, 6, 7, 8),
}
_RESERVED_LEVELS: Final = frozenset(f"{_SPL}.{suffix}" for suffix in (4, 5, 6, 7))  # zero; may be left out
_COMMON_NAMES: Final = {SigningKey.VCEK: "SEV-VCEK", SigningKey.VLEK: "SEV-VLEK"}
_INTEGER, _OCTET_STRING, _IA5_STRING = 0x02, 0x04, 0x16  # DER tags
_PATH: Final = 3  # leaf, ASK or ASVK, ARK


@dataclass(frozen=True, slots=True, kw_only=True)
class Endorsement:
    """What a leaf certificate says about its key; trusted once its path is verified.

    Attributes:
        certificate: as parsed.
        key: the P-384 key that signs reports.
        levels: 8 bytes, laid out as the product's TCB_VERSION.
        hwid: hardware id, 64 bytes (8 from Turin on), of a VCEK; empty for a VLEK.
        csp_id: the cloud provider's id of a VLEK; empty for a VCEK.
        not_after_s: Unix seconds at which the leaf ends; of a verified path the first end of its certificates and
            revocation list.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePublicKey
    levels: bytes
    hwid: bytes
    csp_id: str
    not_after_s: int


def verify_endorsement(
    certificates: Sequence[x509.Certificate],
    *,
    product: SnpProduct,
    signing_key: SigningKey,
    roots: SnpRoots,
    crls: Sequence[x509.CertificateRevocationList],
    crl_required: bool,
    max_crl_age_s: int | None,
    now_s: int,
) -> Endorsement:
    """Return what the one leaf among ``certificates`` says, its path to ``roots.ark`` verified (SNP-4 to SNP-7).

    Raises:
        EvidenceError: SNP-4, SNP-6 or SNP-7; :class:`EvidenceExpiredError` for SNP-5 and an old list.
    """
    pinned = (roots.ark, roots.ask, roots.asvk)
    others = [certificate for certificate in certificates if certificate not in pinned]
    leaves = [certificate for certificate in others if not _is_authority(certificate)]
    if not leaves:
        raise failed("SNP-4", _missing(signing_key, product))
    if len(leaves) > 1:
        raise failed("SNP-4", "more than one certificate is none of an authority")
    rules = ChainRules(
        scheme=SignatureScheme.RSA_PSS_SHA384,
        max_length=_PATH,
        chain="SNP-4",
        validity="SNP-5",
        revocation="SNP-6",
        crls_required=crl_required,
        max_crl_age_s=max_crl_age_s,
    )
    # The ARK alone is the anchor. Its ASK and ASVK are pinned for convenience: others may come along, as AMD would
    # issue them after a revocation, and count by their name and by the ARK's signature.
    path = verify_chain(
        leaves[0], intermediates=(*pinned[1:], *others), roots=(roots.ark,), rules=rules, now_s=now_s, crls=crls
    )
    if len(path) != _PATH or path[1].subject != roots.intermediate(signing_key).subject:
        raise failed("SNP-4", f"the leaf was not issued by the authority for {signing_key.name} keys")
    if any(certificate not in path for certificate in others):
        raise failed("SNP-4", f"a certificate is not of the path to the authority pinned for {product.value}")
    end_s = min(_ends(path, [crl for crl in crls if crl.issuer == roots.ark.subject], max_crl_age_s))
    return replace(read_endorsement(leaves[0], product=product, signing_key=signing_key), not_after_s=end_s)


def _ends(
    path: Sequence[x509.Certificate], crls: Sequence[x509.CertificateRevocationList], max_crl_age_s: int | None
) -> Iterator[int]:
    for certificate in path:
        yield int(certificate.not_valid_after_utc.timestamp())
    for crl in crls:
        if crl.next_update_utc is not None:
            yield int(crl.next_update_utc.timestamp())
        if max_crl_age_s is not None:
            yield int(crl.last_update_utc.timestamp()) + max_crl_age_s


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def read_endorsement(leaf: x509.Certificate, *, product: SnpProduct, signing_key: SigningKey) -> Endorsement:
    """Return what a leaf certificate says; the caller verifies its path.

    Raises:
        EvidenceError: SNP-7, it is not a certificate of ``product``'s ``signing_key``.
    """
    names = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1 or names[0].value != _COMMON_NAMES[signing_key]:
        raise failed("SNP-7", f"the leaf's common name is not {_COMMON_NAMES[signing_key]}")
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise failed("SNP-7", "the leaf's key is not on P-384")
    values = extension_values(leaf)
    name = _ia5(values, _PRODUCT).split("-")[0]
    if name not in product.certificate_names:
        raise failed("SNP-7", f"the leaf is not for {product.value}")
    vcek = signing_key is SigningKey.VCEK
    if (_HWID in values) != vcek or (_CSP_ID in values) == vcek:
        raise failed("SNP-7", "a VCEK has a hardware id and no CSP id, a VLEK a CSP id and no hardware id")
    return Endorsement(
        certificate=leaf,
        key=key,
        levels=_read_levels(values, product),
        hwid=_hwid(values[_HWID], product) if vcek else b"",
        csp_id="" if vcek else _ia5(values, _CSP_ID),
        not_after_s=int(leaf.not_valid_after_utc.timestamp()),
    )


def _read_levels(values: Mapping[str, bytes], product: SnpProduct) -> bytes:
    levels = {oid: _level(values, oid) for oid in values if oid.startswith(f"{_SPL}.")}
    order = [f"{_SPL}.{suffix}" for suffix in _LEVELS[product]]
    if any(level for oid, level in levels.items() if oid not in order):
        raise failed("SNP-7", f"the leaf has a security patch level that {product.value} does not have")
    missing = [oid for oid in order if oid not in levels and oid not in _RESERVED_LEVELS]
    if missing:
        raise failed("SNP-7", f"the leaf lacks the extension {missing[0]}")
    return bytes(levels.get(oid, 0) for oid in order)


def _level(values: Mapping[str, bytes], oid: str) -> int:
    content = _content(values, oid, _INTEGER)
    level = int.from_bytes(content, "big", signed=True)
    if not content or len(content) > 2 or not 0 <= level <= 255 or (len(content) == 2 and level < 128):
        raise failed("SNP-7", f"the leaf's extension {oid} is not a level from 0 to 255")
    return level


def _ia5(values: Mapping[str, bytes], oid: str) -> str:
    text = _content(values, oid, _IA5_STRING).decode("ascii", errors="replace")
    if not text or not text.isascii() or not text.isprintable():
        raise failed("SNP-7", f"the leaf's extension {oid} is not printable text")
    return text


def _hwid(value: bytes, product: SnpProduct) -> bytes:
    # KDS writes the bare bytes; certificates that wrap them in an OCTET STRING have been seen, too.
    size = product.hwid_bytes
    if len(value) == size + 2 and value[0] == _OCTET_STRING and value[1] == size:
        value = value[2:]
    if len(value) != size:
        raise failed("SNP-7", f"the leaf's hardware id is not {size} bytes")
    return value


def _content(values: Mapping[str, bytes], oid: str, tag: int) -> bytes:
    value = values.get(oid)
    if value is None:
        raise failed("SNP-7", f"the leaf lacks the extension {oid}")
    # Short form only: the longest of these values is a host name of far below 128 bytes.
    if len(value) < 2 or value[0] != tag or value[1] != len(value) - 2 or value[1] > 127:
        raise failed("SNP-7", f"the leaf's extension {oid} is malformed")
    return value[2:]


def _missing(signing_key: SigningKey, product: SnpProduct) -> str:
    if signing_key is SigningKey.VLEK:
        return "the VLEK's certificate is missing: the cloud provider hands it out, with the report or its metadata"
    return f"the VCEK's certificate is missing: published at https://kdsintf.amd.com/vcek/v1/{product.value.title()}"
