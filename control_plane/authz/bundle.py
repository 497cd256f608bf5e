"""Signed policy bundles: built the same bit for bit from the same sources, and verified before anything loads them.

A bundle is OPA's (https://www.openpolicyagent.org/docs/latest/management-bundles/): policies, `data.json`, a
`.manifest` and a `.signatures.json`. Its revision is its digest: SHA-256 over the RFC 8785 object of path -> SHA-256 of
every policy and data file, so that the digest names what decides and nothing else. Number and time of the bundle stand
in the manifest, under the signature.

The signature is ours rather than `opa sign`'s, since ECDSA there is randomised: ES256 (RFC 7518 section 3.4) with the
deterministic nonce of RFC 6979 over a fixed header and a canonical payload.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from bulkhead.encoding import MAX_SAFE_INTEGER, Json, b64url_decode, b64url_encode, canonical_json, parse_canonical
from bulkhead.errors import BundleError, MalformedRequestError
from bulkhead.fields import Fields
from control_plane.authz.archive import pack, unpack
from control_plane.authz.opa_tool import run_opa
from control_plane.authz.sources import DATA_PATH, SCHEMA_PATH, check_sources, is_test, write_sources

__all__ = ["CAPABILITIES", "BundleInfo", "VerifiedBundle", "build_bundle", "load_signing_key", "verify_bundle"]

CAPABILITIES: Final = Path(__file__).with_name("capabilities.json")
"""What policies may call: nothing that reads network, clock, randomness, environment or files."""

ROOT: Final = "bulkhead"  # the one document that a bundle may own; `system.authz` stays the server's own
_MANIFEST: Final = ".manifest"
_SIGNATURES: Final = ".signatures.json"
_HEADER: Final = b64url_encode(b'{"alg":"ES256","typ":"JWT"}')
_MAX_SIGNATURES_BYTES: Final = 256 * 1024  # 512 files of 200 bytes each, in base64


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleInfo:
    """What a bundle says of itself.

    Attributes:
        digest: its revision, 64 lower-case hexadecimal digits.
        number: position in the order of bundles, from 1.
        created_us: Unix time in microseconds at which it was built.
        files: paths of its policies and data.
    """

    digest: str
    number: int
    created_us: int
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedBundle:
    """A bundle whose signature, digest and contents hold; only :func:`verify_bundle` makes one.

    Attributes:
        info: what it says of itself.
        data: its bytes (tar.gz).
    """

    info: BundleInfo
    data: bytes


def load_signing_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Return the P-256 private key of a PEM file.

    Raises:
        BundleError: it is not one.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise BundleError("the signing key is not an unencrypted PEM private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BundleError("the signing key is not an ECDSA key on P-256 (ES256)")
    return key


def build_bundle(
    sources: Mapping[str, bytes], *, number: int, created_us: int, signing_key: ec.EllipticCurvePrivateKey, opa: Path
) -> VerifiedBundle:
    """Return the signed bundle of ``sources`` (path -> content). Blocks for some 0.2 s; call it off the event loop.

    Equal arguments give equal bytes. Checking style, types and tests is the caller's step before
    (:func:`~control_plane.authz.check.check_policies`); what does not compile under :data:`CAPABILITIES` fails here.

    Raises:
        BundleError: the sources are not policies that compile.
        ConfigError: `opa` cannot be started.
        TimeoutError: `opa` takes too long.
    """
    check_sources(sources)
    if not 1 <= number <= MAX_SAFE_INTEGER or created_us < 0:
        raise BundleError("bundles are numbered from 1 and made after 1970")
    bundled = {path: content for path, content in sources.items() if not is_test(path) and path != SCHEMA_PATH}
    bundled[DATA_PATH] = _canonical_data(sources[DATA_PATH])
    with tempfile.TemporaryDirectory(prefix="bulkhead-bundle-") as name:
        directory = Path(name) / "policies"
        directory.mkdir()
        write_sources(bundled, directory)
        (directory / _MANIFEST).write_bytes(_manifest("", number, created_us))
        built = Path(name) / "bundle.tar.gz"
        run = run_opa(
            opa, "build", "--bundle", ".", "--capabilities", str(CAPABILITIES), "--output", str(built), cwd=directory
        )
        if run.code != 0:
            raise BundleError(f"the policies do not compile: {run.said[:2000]}")
        files = unpack(built.read_bytes())
    files = {path: content for path, content in files.items() if path != _MANIFEST}
    files[DATA_PATH] = bundled[DATA_PATH]
    files[_MANIFEST] = _manifest(_digest(files), number, created_us)
    files[_SIGNATURES] = _sign(files, signing_key)
    return verify_bundle(pack(files), signing_key.public_key())


def verify_bundle(data: bytes, public_key: ec.EllipticCurvePublicKey) -> VerifiedBundle:
    """Return the bundle in ``data`` (untrusted) if ``public_key`` (P-256) signed exactly what it holds.

    1. An archive within bounds, of regular files only.
    2. One signature, ES256 by ``public_key``, over a canonical payload.
    3. The payload names every file with its hash, and no other.
    4. The manifest owns the document `bulkhead` alone, and its revision is the digest of the files.
    5. Left to the caller: that the number is not below the active bundle's.

    Raises:
        BundleError: one of them fails.
    """
    files = unpack(data)  # 1
    signatures = files.pop(_SIGNATURES, None)
    manifest = files.get(_MANIFEST)
    if signatures is None or manifest is None or DATA_PATH not in files:
        raise BundleError(f"a bundle holds {_MANIFEST}, {_SIGNATURES} and {DATA_PATH}")
    payload = _verify_signature(signatures, public_key)  # 2
    if payload != _payload(files):  # 3
        raise BundleError("the bundle does not hold the files that were signed")
    info = _read_manifest(manifest, files)  # 4
    return VerifiedBundle(info=info, data=data)


def _canonical_data(data: bytes) -> bytes:
    """Return `data.json` as RFC 8785 bytes; OPA hashes it in a form that equals RFC 8785 for ASCII without floats."""
    try:
        value: Json = json.loads(data.decode("ascii"), parse_float=_refuse_float)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{DATA_PATH}: expected JSON in ASCII without fractions") from error
    if not isinstance(value, dict) or set(value) != {ROOT}:
        raise BundleError(f"{DATA_PATH}: expected one object, `{ROOT}`")
    try:
        return canonical_json(value)
    except MalformedRequestError as error:
        raise BundleError(f"{DATA_PATH}: a number is above 2^53 - 1") from error


def _refuse_float(text: str) -> float:
    raise ValueError(f"fraction: {text[:16]}")


def _digest(files: Mapping[str, bytes]) -> str:
    hashed: dict[str, Json] = {
        path: hashlib.sha256(files[path]).hexdigest() for path in files if path not in (_MANIFEST, _SIGNATURES)
    }
    return hashlib.sha256(canonical_json(hashed)).hexdigest()


def _manifest(revision: str, number: int, created_us: int) -> bytes:
    metadata: Json = {"bulkhead": {"number": number, "created_us": str(created_us)}}
    return canonical_json({"revision": revision, "roots": [ROOT], "rego_version": 1, "metadata": metadata})


def _read_manifest(manifest: bytes, files: Mapping[str, bytes]) -> BundleInfo:
    with Fields.parse(manifest, max_bytes=4096, what="bundle manifest", error=BundleError) as fields:
        revision = fields.digest("revision").hex()
        roots = fields.texts("roots", max_items=1, min_items=1)
        fields.integer("rego_version", low=1, high=1)
        with fields.nested("metadata") as metadata, metadata.nested("bulkhead") as ours:
            number = ours.integer("number", low=1, high=MAX_SAFE_INTEGER)
            created_us = ours.text("created_us", max_chars=20)
    if roots != (ROOT,) or not created_us.isascii() or not created_us.isdigit():
        raise BundleError(f"bundle manifest: expected the root `{ROOT}` and a time in microseconds")
    if revision != _digest(files):
        raise BundleError("the bundle's revision is not the digest of its files")
    paths = tuple(sorted(path for path in files if path != _MANIFEST))
    return BundleInfo(digest=revision, number=number, created_us=int(created_us), files=paths)


def _payload(files: Mapping[str, bytes]) -> bytes:
    """Return what is signed: OPA's claim `files`, each with a hash of its raw (or canonical JSON) bytes."""
    claims: list[Json] = [
        {"name": path, "hash": hashlib.sha256(files[path]).hexdigest(), "algorithm": "SHA-256"}
        for path in sorted(files)
    ]
    return canonical_json({"files": claims})


def _sign(files: Mapping[str, bytes], key: ec.EllipticCurvePrivateKey) -> bytes:
    signed = f"{_HEADER}.{b64url_encode(_payload(files))}"
    der = key.sign(signed.encode("ascii"), ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    r, s = decode_dss_signature(der)
    raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")  # RFC 7518 section 3.4
    return canonical_json({"signatures": [f"{signed}.{b64url_encode(raw)}"]})


def _verify_signature(signatures: bytes, public_key: ec.EllipticCurvePublicKey) -> bytes:
    with Fields.parse(signatures, max_bytes=_MAX_SIGNATURES_BYTES, what=_SIGNATURES, error=BundleError) as fields:
        (token,) = fields.texts("signatures", max_items=1, min_items=1, max_chars=_MAX_SIGNATURES_BYTES)
    parts = token.split(".")
    if len(parts) != 3 or parts[0] != _HEADER:
        raise BundleError("the bundle's signature is not an ES256 JWS with our header")
    try:
        raw = b64url_decode(parts[2], what="bundle signature")
        payload = b64url_decode(parts[1], what="bundle signature")
        parse_canonical(payload, max_bytes=_MAX_SIGNATURES_BYTES, what="bundle signature")
        if len(raw) != 64:
            raise BundleError("the bundle's signature is not 64 bytes")
        der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
        public_key.verify(der, f"{parts[0]}.{parts[1]}".encode("ascii"), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, MalformedRequestError) as error:
        raise BundleError("the bundle's signature does not hold") from error
    return payload
