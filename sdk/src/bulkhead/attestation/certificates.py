"""Vendor certificates: paths to pinned roots under explicit algorithms, validity at a given time, revocation lists.

A path ends at a pinned root, compared byte by byte: a root inside the evidence proves nothing. Nothing is fetched
here. Certificates come parsed from :mod:`bulkhead.attestation.inputs`. Signatures that held are remembered
(``forget_signatures`` drops them): machines of one kind share all but their own certificates.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtensionOID, NameOID, SignatureAlgorithmOID

from bulkhead.attestation.inputs import without_warnings
from bulkhead.attestation.obligations import failed
from bulkhead.errors import EvidenceExpiredError

__all__ = [
    "ChainRules",
    "SignatureScheme",
    "extension_values",
    "forget_signatures",
    "verify_chain",
]

_MAX_NAME_CHARS: Final = 120
_REMEMBERED: Final = 256  # signatures of certificates: some 60 in a tray's evidence
_KNOWN_CRITICAL: Final = frozenset({ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE})


class SignatureScheme(Enum):
    """How a vendor signs certificates and lists; every other algorithm, hash or parameter is refused."""

    RSA_PSS_SHA384 = "RSASSA-PSS, SHA-384, MGF1 with SHA-384, salt of 48 bytes"
    ECDSA_P256_SHA256 = "ECDSA on P-256 with SHA-256"
    ECDSA_P384_SHA384 = "ECDSA on P-384 with SHA-384"


_ECDSA: Final = {
    SignatureScheme.ECDSA_P256_SHA256: (SignatureAlgorithmOID.ECDSA_WITH_SHA256, ec.SECP256R1, hashes.SHA256()),
    SignatureScheme.ECDSA_P384_SHA384: (SignatureAlgorithmOID.ECDSA_WITH_SHA384, ec.SECP384R1, hashes.SHA384()),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainRules:
    """What a technology demands of its certificate paths, and which obligation each failure names.

    Attributes:
        scheme: of every signature in the path and of its revocation lists.
        max_length: certificates in a path, leaf and root included.
        chain: obligation of names, constraints, algorithms and signatures up to a pinned root.
        validity: obligation of every certificate being within its validity.
        revocation: obligation of no certificate being revoked.
        crls_required: whether every issuer whose key may sign revocation lists must have one here.
        max_crl_age_s: seconds since ``thisUpdate`` after which a list is too old whatever it says; None for its own
            ``nextUpdate`` alone.
        understood: dotted OIDs of vendors' extensions that the caller reads, and which may therefore be critical.
    """

    scheme: SignatureScheme
    max_length: int
    chain: str
    validity: str
    revocation: str
    crls_required: bool = False
    max_crl_age_s: int | None = None
    understood: frozenset[str] = frozenset()


def extension_values(certificate: x509.Certificate) -> dict[str, bytes]:
    """Return dotted OID -> DER value of the extensions that ``cryptography`` does not know (vendors' own)."""
    return {
        extension.oid.dotted_string: extension.value.value
        for extension in certificate.extensions
        if isinstance(extension.value, x509.UnrecognizedExtension)
    }


def forget_signatures() -> None:
    """Forget which certificates' signatures held: for measuring a cold verification."""
    _check_issued.cache_clear()


def verify_chain(
    leaf: x509.Certificate,
    *,
    intermediates: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    rules: ChainRules,
    now_s: int,
    crls: Sequence[x509.CertificateRevocationList] = (),
) -> tuple[x509.Certificate, ...]:
    """Return the verified path from ``leaf`` to a pinned root, both included.

    Obligations, each failing under the number that ``rules`` gives it:
        chain: every certificate was signed under ``rules.scheme`` by the next, whose subject is its issuer, which is
            a CA that may sign certificates and whose path length suffices; the leaf is no CA; no critical extension
            is unknown; the last is one of ``roots``, byte for byte.
        validity: ``now_s`` is within every certificate's validity.
        revocation: no certificate stands in a current list of its issuer; every issuer that signs lists has one
            here if ``rules.crls_required``.

    The caller checks: what the leaf is for, its own extensions and key. Issuers are found by name and signature among
    ``intermediates``, in any order; certificates that are not needed are ignored.

    Args:
        leaf: untrusted.
        intermediates: untrusted; may hold the leaf, a root, or nothing.
        roots: pinned by the caller, trusted.
        rules: of the technology.
        now_s: Unix seconds.
        crls: untrusted; those of other issuers are ignored.

    Raises:
        EvidenceError: chain or revocation.
        EvidenceExpiredError: a certificate outside its validity, or a list past its own.
    """
    _check_leaf(leaf, rules)
    path = _path(leaf, intermediates, roots, rules)
    for certificate in path:
        _check_extensions(certificate, rules)
        _check_validity(certificate, rules, now_s)
    for below, issuer in enumerate(path[1:]):
        _check_issuer(issuer, below, rules)
    for certificate, issuer in itertools.pairwise(path):
        _check_revocation(certificate, issuer, crls, rules, now_s)
    return path


def _signed_by(key: CertificatePublicKeyTypes, signature: bytes, signed: bytes, *, scheme: SignatureScheme) -> bool:
    try:
        if isinstance(key, rsa.RSAPublicKey) and _fits(key, scheme):
            pss = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=hashes.SHA384.digest_size)
            key.verify(signature, signed, pss, hashes.SHA384())
            return True
        if isinstance(key, ec.EllipticCurvePublicKey) and _fits(key, scheme):
            key.verify(signature, signed, ec.ECDSA(_ECDSA[scheme][2]))
            return True
    except (InvalidSignature, ValueError):
        pass
    return False


def _fits(key: CertificatePublicKeyTypes, scheme: SignatureScheme) -> bool:
    if scheme is SignatureScheme.RSA_PSS_SHA384:
        return isinstance(key, rsa.RSAPublicKey)
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _ECDSA[scheme][1])


def _path(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    rules: ChainRules,
) -> tuple[x509.Certificate, ...]:
    path = [leaf]
    while path[-1] not in roots:
        if len(path) == rules.max_length:
            raise failed(rules.chain, f"the certificate path is longer than {rules.max_length}")
        issuer = next(
            (issuer for issuer in (*roots, *intermediates) if issuer not in path and _issued(path[-1], issuer, rules)),
            None,
        )
        if issuer is None:
            raise failed(
                rules.chain,
                f"no pinned root or given certificate signed {_name(path[-1].subject)} as {_name(path[-1].issuer)}",
            )
        path.append(issuer)
    return tuple(path)


def _issued(certificate: x509.Certificate, issuer: x509.Certificate, rules: ChainRules) -> bool:
    if certificate.issuer != issuer.subject:
        return False
    try:
        _check_issued(certificate, issuer, rules.scheme)
    except InvalidSignature:
        return False
    return True


@lru_cache(maxsize=_REMEMBERED)
def _check_issued(certificate: x509.Certificate, issuer: x509.Certificate, scheme: SignatureScheme) -> None:
    """Raise InvalidSignature unless ``issuer`` signed ``certificate`` under ``scheme``.

    A pure function of the bytes of both, so that what held once is remembered; failures are not, as they raise. Dates,
    constraints, revocation and roots are no part of it and are checked each time.
    """
    key = issuer.public_key()
    if not _has_scheme(certificate, scheme) or not _fits(key, scheme):
        raise InvalidSignature
    try:
        # Compares the inner and the outer algorithm and the names, too.
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError) as error:
        raise InvalidSignature from error
    # RSASSA-PSS has parameters, which the library takes from the certificate: here they are the scheme's.
    if scheme is SignatureScheme.RSA_PSS_SHA384 and not _signed_by(
        key, certificate.signature, certificate.tbs_certificate_bytes, scheme=scheme
    ):
        raise InvalidSignature


def _has_scheme(signed: x509.Certificate | x509.CertificateRevocationList, scheme: SignatureScheme) -> bool:
    if scheme is not SignatureScheme.RSA_PSS_SHA384:
        return signed.signature_algorithm_oid == _ECDSA[scheme][0]
    return signed.signature_algorithm_oid == SignatureAlgorithmOID.RSASSA_PSS


def _check_extensions(certificate: x509.Certificate, rules: ChainRules) -> None:
    for extension in certificate.extensions:
        known = extension.oid in _KNOWN_CRITICAL or extension.oid.dotted_string in rules.understood
        if extension.critical and not known:
            raise failed(
                rules.chain,
                f"{_name(certificate.subject)} has an unknown critical extension {extension.oid.dotted_string}",
            )


def _check_validity(certificate: x509.Certificate, rules: ChainRules, now_s: int) -> None:
    not_before, not_after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not not_before.timestamp() <= now_s <= not_after.timestamp():
        raise failed(
            rules.validity,
            f"{_name(certificate.subject)} is valid from {not_before:%Y-%m-%d %H:%M} to {not_after:%Y-%m-%d %H:%M} UTC",
            EvidenceExpiredError,
        )


def _check_issuer(issuer: x509.Certificate, intermediates_below: int, rules: ChainRules) -> None:
    constraints, usage = _basic_constraints(issuer), _key_usage(issuer)
    if constraints is None or not constraints.ca or (usage is not None and not usage.key_cert_sign):
        raise failed(rules.chain, f"{_name(issuer.subject)} may not sign certificates")
    if constraints.path_length is not None and constraints.path_length < intermediates_below:
        raise failed(rules.chain, f"{_name(issuer.subject)} has more certificates below it than it allows")


def _check_revocation(
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    crls: Sequence[x509.CertificateRevocationList],
    rules: ChainRules,
    now_s: int,
) -> None:
    usage = _key_usage(issuer)
    signs_crls = usage is not None and usage.crl_sign
    own = [crl for crl in crls if crl.issuer == issuer.subject] if signs_crls else []
    if not own and rules.crls_required and signs_crls:
        raise failed(
            rules.revocation,
            f"the revocation list of {_name(issuer.subject)} is missing: {_distribution_point(certificate)}",
        )
    for crl in own:
        _check_crl(crl, issuer, rules, now_s)
        with without_warnings():
            revoked = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
        if revoked is not None:
            raise failed(rules.revocation, f"{_name(certificate.subject)} was revoked by {_name(issuer.subject)}")


def _check_crl(crl: x509.CertificateRevocationList, issuer: x509.Certificate, rules: ChainRules, now_s: int) -> None:
    name = f"the revocation list of {_name(issuer.subject)}"
    key = issuer.public_key()
    if not _has_scheme(crl, rules.scheme) or not _signed_by(
        key, crl.signature, crl.tbs_certlist_bytes, scheme=rules.scheme
    ):
        raise failed(rules.revocation, f"{name} is not signed by it")
    if any(extension.critical for extension in crl.extensions):
        raise failed(rules.revocation, f"{name} covers a part only (a critical extension), which is not supported")
    this_update, next_update = crl.last_update_utc, crl.next_update_utc
    current = next_update is not None and this_update.timestamp() <= now_s <= next_update.timestamp()
    fresh = rules.max_crl_age_s is None or now_s - this_update.timestamp() <= rules.max_crl_age_s
    if not current or not fresh:
        raise failed(rules.revocation, f"{name} of {this_update:%Y-%m-%d} is out of date", EvidenceExpiredError)


def _check_leaf(leaf: x509.Certificate, rules: ChainRules) -> None:
    constraints = _basic_constraints(leaf)
    if constraints is not None and constraints.ca:
        raise failed(rules.chain, f"{_name(leaf.subject)} is a certificate authority, not a leaf")


def _basic_constraints(certificate: x509.Certificate) -> x509.BasicConstraints | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return None


def _key_usage(certificate: x509.Certificate) -> x509.KeyUsage | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None


def _distribution_point(certificate: x509.Certificate) -> str:
    try:
        points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    except x509.ExtensionNotFound:
        return "the vendor publishes it"
    locations = [name.value for point in points for name in point.full_name or () if isinstance(name.value, str)]
    return f"published at {_printable(', '.join(locations))}"


def _name(name: x509.Name) -> str:
    common = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return _printable(str(common[0].value) if common else name.rfc4514_string())


def _printable(text: str) -> str:
    # Names are the certificate's own words: kept short and free of what a terminal would interpret.
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_MAX_NAME_CHARS])
