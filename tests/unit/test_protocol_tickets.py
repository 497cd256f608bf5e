import base64
import hashlib
import hmac
import json
from dataclasses import replace

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bulkhead.attestation import Tier
from bulkhead.encoding import b64url_encode
from bulkhead.errors import ConfigError, TicketError, TicketExpiredError, TicketRevokedError
from bulkhead.protocol.tickets import MAX_AUTHENTIC, MAX_TICKET_BYTES, TICKET_TYPE, TicketIssuer, TicketVerifier
from tests.simulator.sealed_world import NOW_S, World


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def claims(world):
    return world.claims(evidence_digest=bytes(32), decision_leaf_hash=bytes(32))


def check(world, token, *, now_s=NOW_S, audience=None, is_revoked=None):
    verifier = TicketVerifier(issuer_keys=[world.issuer.public_key])
    return verifier.verify(token, now_s=now_s, audience=audience or world.authority, is_revoked=is_revoked)


def payload(token):
    part = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def resign(world, token, *, headers=None, **changes):
    """Return the ticket with changed claims, honestly signed by the same issuer; None removes a claim."""
    body = payload(token) | changes
    body = {name: value for name, value in body.items() if value is not None}
    headers = {"typ": TICKET_TYPE, "kid": world.issuer.fingerprint.hex()} | (headers or {})
    return jwt.encode(body, world.issuer._key, algorithm="EdDSA", headers=headers)


def test_claims_survive(world, claims):
    """What is issued is what is verified, and the issuer is named by its key's fingerprint."""
    token = world.issuer.issue(claims)
    assert check(world, token) == claims
    verifier = TicketVerifier(issuer_keys=[bytes(32), world.issuer.public_key])
    assert verifier.issuer_fingerprint(token) == hashlib.sha256(world.issuer.public_key).digest()


def test_simulated_and_tier_are_carried(world, claims):
    """Tier and simulated flag are signed into the ticket."""
    token = world.issuer.issue(replace(claims, simulated=True, tier=Tier.MIG))
    assert check(world, token).simulated
    assert check(world, token).tier is Tier.MIG


def test_expired_at_its_second(world, claims):
    """A ticket holds until its last second and not at ``exp``."""
    token = world.issuer.issue(claims)
    assert check(world, token, now_s=NOW_S + 299)
    with pytest.raises(TicketExpiredError):
        check(world, token, now_s=NOW_S + 300)


def test_future_ticket_is_refused(world, claims):
    """A minute of skew is tolerated for ``iat``, more is not."""
    token = world.issuer.issue(claims)
    assert check(world, token, now_s=NOW_S - 60)
    with pytest.raises(TicketError, match="future"):
        check(world, token, now_s=NOW_S - 61)


def test_revoked(world, claims):
    """The caller's revocation list decides, and sees the verified claims."""
    token = world.issuer.issue(claims)
    with pytest.raises(TicketRevokedError):
        check(world, token, is_revoked=lambda seen: seen == claims)


def test_another_audience_is_refused(world, claims):
    """A ticket for one worker is not one for another."""
    with pytest.raises(TicketError, match="another worker"):
        check(world, world.issuer.issue(claims), audience="part-2.example")


def test_untrusted_issuer_is_refused(world, claims):
    """A ticket by another key fails, also if it names the trusted one."""
    other = TicketIssuer(key=World(seed=9).key())
    with pytest.raises(TicketError, match="not trusted"):
        check(world, other.issue(claims))
    other._fingerprint = world.issuer.fingerprint
    with pytest.raises(TicketError, match="signature"):
        check(world, other.issue(claims))


def _segment(value):
    return b64url_encode(json.dumps(value).encode())


def test_other_algorithms_are_refused(world, claims):
    """``none``, and HS256 keyed with the public key (RFC 8725 section 3.1), are not accepted."""
    token = world.issuer.issue(claims)
    body = token.split(".")[1]
    kid = world.issuer.fingerprint.hex()
    none = f"{_segment({'alg': 'none', 'typ': TICKET_TYPE, 'kid': kid})}.{body}."
    head = f"{_segment({'alg': 'HS256', 'typ': TICKET_TYPE, 'kid': kid})}.{body}"
    hs256 = head + "." + b64url_encode(hmac.digest(world.issuer.public_key, head.encode(), "sha256"))
    for forged in (none, hs256):
        with pytest.raises(TicketError, match="header"):
            check(world, forged)


@pytest.mark.parametrize("headers", [{"typ": "JWT"}, {"kid": "00"}, {"jku": "https://example"}, {"crit": ["b64"]}])
def test_other_headers_are_refused(world, claims, headers):
    """A wrong type, an unknown key and any further header parameter are refused, though signed by the issuer."""
    with pytest.raises(TicketError):
        check(world, resign(world, world.issuer.issue(claims), headers=headers))


@pytest.mark.parametrize(
    "change",
    [
        {"ver": 2},
        {"more": 1},
        {"session": None},
        {"session": ""},
        {"session": 5},
        {"aud": ["part-1.tray-1.example"]},
        {"exp": "tomorrow"},
        {"exp": NOW_S},
        {"exp": NOW_S + 901},
        {"iat": NOW_S + 0.5},
        {"tier": "best"},
        {"padding": "none"},
        {"simulated": 0},
        {"model_digest": "00"},
        {"limits": {"max_tokens": 0, "max_concurrent_requests": 1}},
        {"limits": {"max_tokens": 1}},
        {"cnf": {"jwk": {"kty": "EC", "crv": "Ed25519", "x": "A" * 43}}},
        {"cnf": {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}}},
        {"cnf": {"kid": "x"}},
    ],
)
def test_other_claims_are_refused(world, claims, change):
    """Claims are exactly the known ones within bounds, whoever signs them."""
    token = world.issuer.issue(claims)
    assert check(world, resign(world, token)) == claims
    with pytest.raises(TicketError):
        check(world, resign(world, token, **change))


@pytest.mark.parametrize("token", ["", ".", "a.b.c", "x" * (MAX_TICKET_BYTES + 1), "é.é.é", "\x00"])
def test_garbage_is_a_ticket_error(world, token):
    """Text that is no JWT raises TicketError, never anything else."""
    with pytest.raises(TicketError):
        check(world, token)


def test_altered_ticket_is_refused(world, claims):
    """A changed payload under the old signature does not hold."""
    head, body, signature = world.issuer.issue(claims).split(".")
    changed = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))) | {"tier": "confidential"}
    with pytest.raises(TicketError, match="signature"):
        check(world, f"{head}.{_segment(changed)}.{signature}")


def test_issuer_refuses_a_long_life(world, claims):
    """A ticket of more than 15 minutes, or of none, is not issued."""
    for expires_at_s in (NOW_S, NOW_S + 901):
        with pytest.raises(TicketError):
            world.issuer.issue(replace(claims, expires_at_s=expires_at_s))


@pytest.mark.parametrize("keys", [[], [b"short"]])
def test_verifier_needs_keys(keys):
    """No trusted issuer, or a key that is none, is a configuration error."""
    with pytest.raises(ConfigError):
        TicketVerifier(issuer_keys=keys)


def test_issuers_are_replaced_while_the_worker_serves(world, claims):
    """Both count during the overlap; tickets of a retired one have expired, so that clients renew."""
    other = TicketIssuer(key=world.key())
    verifier = TicketVerifier(issuer_keys=[world.issuer.public_key])
    old, new = world.issuer.issue(claims), other.issue(claims)

    def verify(token):
        return verifier.verify(token, now_s=NOW_S, audience=world.authority)

    with pytest.raises(TicketError, match="not trusted"):
        verify(new)
    verifier.trust([other.public_key, world.issuer.public_key])
    assert verify(old) == verify(new) == claims
    verifier.trust([other.public_key])
    assert verify(new) == claims
    with pytest.raises(TicketExpiredError, match="retired"):
        verify(old)
    for bad in ([], [b"short"]):
        with pytest.raises(ConfigError):
            verifier.trust(bad)
    assert verify(new) == claims
    verifier.trust([world.issuer.public_key])  # a change that was taken back
    assert verify(old) == claims


def test_a_ticket_met_before_is_held_to_everything_again(world, claims):
    """That a ticket is remembered as authentic spares no other check, and ends with its issuer's trust."""
    verifier = TicketVerifier(issuer_keys=[world.issuer.public_key])
    token = world.issuer.issue(claims)

    def again(*, now_s=NOW_S, audience=world.authority, is_revoked=None):
        return verifier.verify(token, now_s=now_s, audience=audience, is_revoked=is_revoked)

    assert again() == again() == claims
    with pytest.raises(TicketExpiredError):
        again(now_s=claims.expires_at_s)
    with pytest.raises(TicketError, match="another worker"):
        again(audience="w-other.workers.internal")
    with pytest.raises(TicketRevokedError):
        again(is_revoked=lambda _: True)
    with pytest.raises(TicketError, match="signature"):
        verifier.verify(token[:-2] + ("AA" if token[-2:] != "AA" else "BA"), now_s=NOW_S, audience=world.authority)
    verifier.trust([TicketIssuer(key=Ed25519PrivateKey.generate()).public_key])
    with pytest.raises(TicketExpiredError, match="retired"):
        again()


def test_no_more_than_the_busiest_tickets_are_remembered(world, claims):
    """A verifier that has met many sessions forgets the tickets it met longest ago, and takes them all the same."""
    verifier = TicketVerifier(issuer_keys=[world.issuer.public_key])
    tokens = [world.issuer.issue(replace(claims, ticket_id=f"t{number}")) for number in range(MAX_AUTHENTIC + 1)]
    for token in [*tokens, tokens[0]]:
        verifier.verify(token, now_s=NOW_S, audience=world.authority)
    assert len(verifier._authentic) == MAX_AUTHENTIC
