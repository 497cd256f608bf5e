"""Session tickets: JWTs (RFC 7519) signed with EdDSA by the control plane (docs/protocol.md section 4).

A ticket is bound to the client's session key (``cnf``, RFC 7800), to one worker and to the evidence and decision
behind it. It is no bearer token: each request needs a signature of the session key.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from bulkhead.attestation import Tier, key_fingerprint
from bulkhead.encoding import Json, b64url_decode, b64url_encode
from bulkhead.errors import (
    ClockSkewError,
    ConfigError,
    MalformedRequestError,
    TicketError,
    TicketExpiredError,
    TicketRevokedError,
)
from bulkhead.fields import Fields
from bulkhead.protocol.context import SessionScope
from bulkhead.sealing.padding import PaddingMode

__all__ = [
    "MAX_TICKET_BYTES",
    "MAX_TICKET_LIFE_S",
    "TICKET_TYPE",
    "TicketClaims",
    "TicketIssuer",
    "TicketLimits",
    "TicketVerifier",
]

TICKET_TYPE: Final = "bulkhead-ticket+jwt"
TICKET_VERSION: Final = 1
MAX_TICKET_BYTES: Final = 4_096  # a ticket has about 1,800
MAX_TICKET_LIFE_S: Final = 900  # three times the usual five minutes
MAX_AUTHENTIC: Final = 512  # tickets remembered by a verifier, about 4 KiB each: the sessions that are busy now
MAX_TOKENS: Final = 2**31 - 1
MAX_CONCURRENT: Final = 65_536
_CLOCK_SKEW_S: Final = 60  # between control plane and worker; only a ticket "from the future" profits
_CNF_BYTES: Final = 32
_ALGORITHM: Final = "EdDSA"


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketLimits:
    """What the decision allows each request, enforced by the worker.

    Attributes:
        max_tokens: completion tokens per request.
        max_concurrent_requests: requests in flight per session.
    """

    max_tokens: int
    max_concurrent_requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketClaims:
    """A ticket's claims; from :class:`TicketVerifier` they are authentic, and otherwise merely said.

    Attributes:
        ticket_id: ``jti``.
        audience: ``aud``, the worker's authority (its name at the ingress).
        tenant: tenant id.
        session: session id.
        cnf: raw Ed25519 public key (32 bytes) of the client's session key.
        partition: partition id.
        tier: tier that the appraised evidence showed.
        simulated: whether any part of the partition is simulated.
        model: model name.
        model_digest: 32 bytes.
        limits: what the worker enforces.
        padding: how both directions are padded, and the response paced.
        keyset_digest: key id of the worker's keyset.
        evidence_digest: SHA-256 of the evidence.
        decision_leaf_hash: RFC 9162 leaf hash of the decision's audit record.
        issued_at_s: ``iat``, Unix seconds.
        expires_at_s: ``exp``, Unix seconds; at most 900 s after ``iat``.
    """

    ticket_id: str
    audience: str
    tenant: str
    session: str
    cnf: bytes
    partition: str
    tier: Tier
    simulated: bool
    model: str
    model_digest: bytes
    limits: TicketLimits
    padding: PaddingMode
    keyset_digest: bytes
    evidence_digest: bytes
    decision_leaf_hash: bytes
    issued_at_s: int
    expires_at_s: int

    @property
    def scope(self) -> SessionScope:
        """What the ticket's requests are bound to."""
        return SessionScope(
            key_id=self.keyset_digest,
            tenant=self.tenant,
            session=self.session,
            model_digest=self.model_digest,
            evidence_digest=self.evidence_digest,
            decision_leaf_hash=self.decision_leaf_hash,
        )


class TicketIssuer:
    """Issues tickets (control plane).

    Args:
        key: the ticket issuer's private key. Its fingerprint stands in partition descriptors.
    """

    def __init__(self, *, key: Ed25519PrivateKey) -> None:
        self._key = key
        self._fingerprint: Final = key_fingerprint(self.public_key)

    @property
    def public_key(self) -> bytes:
        """Raw public key (32 bytes): what clients pin and workers verify with."""
        return self._key.public_key().public_bytes_raw()

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the public key; in hexadecimal the tickets' ``kid``."""
        return self._fingerprint

    def issue(self, claims: TicketClaims) -> str:
        """Return the signed ticket.

        Raises:
            TicketError: the ticket would live longer than 900 s or not at all.
        """
        _check_life(claims)
        headers = {"typ": TICKET_TYPE, "kid": self._fingerprint.hex()}
        return jwt.encode(_payload(claims), self._key, algorithm=_ALGORITHM, headers=headers)


class TicketVerifier:
    """Verifies tickets (worker and SDK). Not thread-safe.

    Every request brings its session's ticket along, so authentic ones are remembered by their exact text, until the
    trusted issuers change. What depends on time, audience and revocation is looked at each time.

    Args:
        issuer_keys: raw Ed25519 public keys (32 bytes) of the trusted ticket issuers, found by fingerprint.

    Raises:
        ConfigError: no key, or one that is no Ed25519 public key.
    """

    def __init__(self, *, issuer_keys: Sequence[bytes]) -> None:
        self._keys: dict[str, Ed25519PublicKey] = {}
        self._retired: set[str] = set()
        self._authentic: OrderedDict[str, TicketClaims] = OrderedDict()
        self.trust(issuer_keys)

    def trust(self, issuer_keys: Sequence[bytes]) -> None:
        """Trust these issuers from now on, and no others; tickets of those that were trusted before have expired.

        Raises:
            ConfigError: no key, or one that is no Ed25519 public key; those of before stay.
        """
        try:
            keys = {key_fingerprint(key).hex(): Ed25519PublicKey.from_public_bytes(key) for key in issuer_keys}
        except ValueError as error:
            raise ConfigError("a ticket issuer's key is a 32-byte Ed25519 public key") from error
        if not keys:
            raise ConfigError("no ticket issuer is trusted")
        self._retired = (self._retired | self._keys.keys()) - keys.keys()
        if keys.keys() != self._keys.keys():
            self._authentic.clear()
        self._keys = keys

    def verify(
        self,
        token: str,
        *,
        now_s: int,
        audience: str,
        is_revoked: Callable[[TicketClaims], bool] | None = None,
    ) -> TicketClaims:
        """Return the claims of a ticket that holds.

        Obligations:
            1. The header has exactly ``alg`` EdDSA, the fixed ``typ`` and the ``kid`` of a trusted issuer.
            2. The issuer signed it (RFC 8037).
            3. Exactly the known claims are there, each within its bounds, for this audience.
            4. ``iat`` <= now < ``exp``, with 60 s of skew for ``iat`` only, and a life of at most 900 s.
            5. It is not revoked.

        The caller checks: that tenant, partition, model and keyset are its own, and the proof of possession.

        Args:
            token: compact JWT (untrusted).
            now_s: Unix seconds.
            audience: the worker's authority.
            is_revoked: the worker's revocation list.

        Raises:
            TicketExpiredError: obligation 4, too late.
            ClockSkewError: obligation 4, too early.
            TicketRevokedError: obligation 5.
            TicketError: any other.
        """
        claims = self.authenticate(token)
        if claims.audience != audience:  # 3
            raise TicketError("the ticket is for another worker")
        _check_life(claims)  # 4
        if claims.issued_at_s > now_s + _CLOCK_SKEW_S:
            raise ClockSkewError("the ticket is from the future: check the clocks of control plane and worker")
        if now_s >= claims.expires_at_s:
            raise TicketExpiredError("the ticket has expired: renew the session")
        if is_revoked is not None and is_revoked(claims):  # 5
            raise TicketRevokedError("the ticket was revoked: open a new session")
        return claims

    def issuer_fingerprint(self, token: str) -> bytes:
        """Return the fingerprint (32 bytes) of the trusted issuer that ``token`` names.

        Raises:
            TicketError: the header is malformed or names no trusted issuer.
        """
        return bytes.fromhex(self._issuer(token))

    def _issuer(self, token: str) -> str:
        if len(token) > MAX_TICKET_BYTES:
            raise TicketError(f"a ticket has at most {MAX_TICKET_BYTES} bytes")
        header = _header(token)
        kid = header.get("kid")
        if header.keys() != {"alg", "typ", "kid"} or header["alg"] != _ALGORITHM or header["typ"] != TICKET_TYPE:
            raise TicketError("the ticket's header is not that of a session ticket")
        if isinstance(kid, str) and kid in self._retired:
            raise TicketExpiredError("the ticket's issuer has been retired: renew the session")
        if not isinstance(kid, str) or kid not in self._keys:
            raise TicketError("the ticket's issuer is not trusted")
        return kid

    def authenticate(self, token: str) -> TicketClaims:
        """Return the claims that a trusted issuer signed: obligations 1 to 3 without the audience.

        Says nothing of whether the ticket holds here and now; for reporting whose ticket was refused.

        Raises:
            TicketError: not a ticket, or not signed by a trusted issuer.
        """
        known = self._authentic.get(token)
        if known is not None:
            self._authentic.move_to_end(token)
            return known
        kid = self._issuer(token)  # 1
        try:
            # 2; time, audience and required claims are checked here, against the injected clock.
            payload: dict[str, Json] = jwt.decode(
                token,
                self._keys[kid],
                algorithms=[_ALGORITHM],
                options={
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                    "verify_aud": False,
                    "verify_iss": False,
                    "verify_sub": False,
                    "verify_jti": False,
                },
            )
        except (jwt.PyJWTError, ValueError) as error:
            raise TicketError("the ticket's signature does not hold") from error
        claims = _read(payload)  # 3
        self._authentic[token] = claims
        if len(self._authentic) > MAX_AUTHENTIC:
            self._authentic.popitem(last=False)
        return claims


def _header(token: str) -> dict[str, Json]:
    """Return the header of a compact JWT; the library would check every segment for it, character by character.

    Raises:
        TicketError: there is none.
    """
    try:
        header = json.loads(b64url_decode(token.partition(".")[0], what="ticket header"))
    except (MalformedRequestError, ValueError, RecursionError) as error:
        raise TicketError("the ticket is not a JWT") from error
    if not isinstance(header, dict):
        raise TicketError("the ticket is not a JWT")
    return header


def _check_life(claims: TicketClaims) -> None:
    if not 0 < claims.expires_at_s - claims.issued_at_s <= MAX_TICKET_LIFE_S:
        raise TicketError(f"a ticket lives 1 to {MAX_TICKET_LIFE_S} seconds")


def _payload(claims: TicketClaims) -> dict[str, Json]:
    return {
        "ver": TICKET_VERSION,
        "jti": claims.ticket_id,
        "aud": claims.audience,
        "iat": claims.issued_at_s,
        "exp": claims.expires_at_s,
        "tenant": claims.tenant,
        "session": claims.session,
        "cnf": {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": b64url_encode(claims.cnf)}},
        "partition": claims.partition,
        "tier": claims.tier.value,
        "simulated": claims.simulated,
        "model": claims.model,
        "model_digest": claims.model_digest.hex(),
        "limits": {
            "max_tokens": claims.limits.max_tokens,
            "max_concurrent_requests": claims.limits.max_concurrent_requests,
        },
        "padding": claims.padding.value,
        "keyset_digest": claims.keyset_digest.hex(),
        "evidence_digest": claims.evidence_digest.hex(),
        "decision_leaf_hash": claims.decision_leaf_hash.hex(),
    }


def _read(payload: dict[str, Json]) -> TicketClaims:
    with Fields(payload, what="ticket", error=TicketError) as fields:
        fields.integer("ver", low=TICKET_VERSION, high=TICKET_VERSION)
        try:
            tier, padding = Tier(fields.text("tier")), PaddingMode(fields.text("padding"))
        except ValueError as error:
            raise TicketError("ticket: unknown tier or padding") from error
        return TicketClaims(
            ticket_id=fields.text("jti"),
            audience=fields.text("aud"),
            issued_at_s=fields.integer("iat"),
            expires_at_s=fields.integer("exp"),
            tenant=fields.text("tenant"),
            session=fields.text("session"),
            cnf=_read_cnf(fields),
            partition=fields.text("partition"),
            tier=tier,
            simulated=fields.boolean("simulated"),
            model=fields.text("model"),
            model_digest=fields.digest("model_digest"),
            limits=_read_limits(fields),
            padding=padding,
            keyset_digest=fields.digest("keyset_digest"),
            evidence_digest=fields.digest("evidence_digest"),
            decision_leaf_hash=fields.digest("decision_leaf_hash"),
        )


def _read_cnf(fields: Fields) -> bytes:
    """Return the session key of an RFC 7800 ``cnf`` with an RFC 8037 key."""
    with fields.nested("cnf") as cnf, cnf.nested("jwk") as jwk:
        if jwk.text("kty") != "OKP" or jwk.text("crv") != "Ed25519":
            raise jwk.wrong("kty and crv", "OKP and Ed25519")
        return jwk.binary("x", max_bytes=_CNF_BYTES, size=_CNF_BYTES)


def _read_limits(fields: Fields) -> TicketLimits:
    with fields.nested("limits") as limits:
        return TicketLimits(
            max_tokens=limits.integer("max_tokens", low=1, high=MAX_TOKENS),
            max_concurrent_requests=limits.integer("max_concurrent_requests", low=1, high=MAX_CONCURRENT),
        )
