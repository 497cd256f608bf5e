"""Paths of vendors' certificates: what is remembered of them, and what is checked each time."""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from bulkhead.attestation import certificates
from bulkhead.attestation.certificates import ChainRules, SignatureScheme, forget_signatures, verify_chain
from bulkhead.attestation.inputs import load_certificates
from bulkhead.attestation.obligations import obligation_of
from bulkhead.attestation.snp import SnpProduct
from bulkhead.errors import BulkheadError
from tests.simulator.nvidia_world import NOW_S, certify, world
from tests.simulator.snp_machine import Machine, snp_roots

RULES = ChainRules(
    scheme=SignatureScheme.ECDSA_P384_SHA384, max_length=5, chain="GPU-2", validity="GPU-3", revocation="GPU-7"
)
PATH = tuple(signer.certificate for signer in world().device)


def verdict(leaf, *, intermediates=PATH, roots=PATH[-1:], now_s=NOW_S, rules=RULES, crls=()):
    """Return the obligation that fails, or None."""
    try:
        path = verify_chain(leaf, intermediates=intermediates, roots=roots, rules=rules, now_s=now_s, crls=crls)
    except BulkheadError as error:
        return obligation_of(error)
    assert path[0] == leaf
    return None


def test_dates_and_roots_are_checked_after_signatures_are_remembered():
    """A path that held is refused later for its dates, under other roots, and under another scheme."""
    forget_signatures()
    year_s = 365 * 86_400
    for _ in range(2):
        assert verdict(PATH[0]) is None
        assert verdict(PATH[0], now_s=NOW_S + 9 * year_s) == "GPU-3"
        assert verdict(PATH[0], now_s=NOW_S - year_s) == "GPU-3"
        assert verdict(PATH[0], roots=(world().rim[3].certificate,)) == "GPU-2"
        assert verdict(PATH[0], intermediates=PATH[2:]) == "GPU-2"
        other = ChainRules(
            scheme=SignatureScheme.ECDSA_P256_SHA256, max_length=5, chain="GPU-2", validity="GPU-3", revocation="GPU-7"
        )
        assert verdict(PATH[0], rules=other) == "GPU-2"


def test_changed_certificate_is_not_the_remembered_one():
    """After a path held, one changed bit of its leaf's signature is refused."""
    assert verdict(PATH[0]) is None
    der = bytearray(PATH[0].public_bytes(Encoding.DER))
    der[-1] ^= 1
    assert verdict(load_certificates(bytes(der), what="leaf")[0]) == "GPU-2"


def test_failures_are_not_remembered():
    """Only what held is remembered: a refused certificate is verified again, and takes no place."""
    forget_signatures()
    impostor = certify(
        "GH100 A01 GSP BROM", issuer=None, authority=False
    ).certificate  # signed by itself, in the name of a boot ROM
    assert verdict(impostor) == "GPU-2"
    assert certificates._check_issued.cache_info().currsize == 0


def test_algorithm_is_the_schemes_own():
    """A genuine RSA path is no ECDSA path, whatever the leaf's key is."""
    machine = Machine()
    roots = snp_roots()[SnpProduct.TURIN]
    assert verdict(machine.leaf(), intermediates=(roots.ask,), roots=(roots.ark,)) == "GPU-2"


def test_only_invalid_signature_means_not_issued():
    """The check of one signature raises or returns, and is a pure function of bytes."""
    certificates._check_issued(PATH[0], PATH[1], SignatureScheme.ECDSA_P384_SHA384)
    for issuer in PATH[2:]:
        try:
            certificates._check_issued(PATH[0], issuer, SignatureScheme.ECDSA_P384_SHA384)
        except InvalidSignature:
            continue
        raise AssertionError
