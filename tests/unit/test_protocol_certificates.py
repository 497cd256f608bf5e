import base64
from dataclasses import replace

import pytest

from bulkhead.errors import (
    CertificateError,
    CertificateExpiredError,
    CertificateKeyError,
    CertificateMissingError,
    CertificateNotYetValidError,
    CertificateRootError,
    CertificateSignatureError,
    CertificateTenantError,
)
from bulkhead.protocol.certificates import (
    MAX_CERTIFICATE_BYTES,
    MAX_CERTIFICATE_LIFE_S,
    SessionCertificate,
    issue_certificate,
    read_certificate,
    verify_certificate,
)
from tests.simulator.sealed_world import NOW_S, World


@pytest.fixture(scope="module")
def world():
    return World(rooted=True)


def check(world, data, *, now_s=NOW_S):
    return verify_certificate(data, root_fingerprint=world.tenant_root, tenant=world.tenant, cnf=world.cnf, now_s=now_s)


def test_honest_certificate_is_verified(world):
    """What the root says of the session key comes back, to the last second of its life."""
    data = world.certificate()
    found = check(world, data)
    assert (found.tenant, found.cnf) == (world.tenant, world.cnf)
    assert found == read_certificate(data)
    assert check(world, data, now_s=found.not_after_s - 1) == check(world, data, now_s=found.not_before_s - 60) == found


def test_layout():
    """The bytes are those of docs/protocol.md; the longest certificate fits the limit."""
    root = World(rooted=True).root
    said = SessionCertificate(
        tenant="t" * 256,
        root=root.public_key().public_bytes_raw(),
        cnf=bytes(32),
        not_before_s=2**53 - 1 - MAX_CERTIFICATE_LIFE_S,
        not_after_s=2**53 - 1,
    )
    signed = []
    data = issue_certificate(said, sign=lambda message: signed.append(message) or root.sign(message))
    assert signed == [b"bulkhead/v1 session key" + len(said.encoded).to_bytes(4, "big") + said.encoded]
    assert said.encoded.startswith(b'{"cnf":"AAAA')
    assert data == b'{"certificate":' + said.encoded + b',"signature":"' + data[-88:]
    assert len(data) <= MAX_CERTIFICATE_BYTES
    assert read_certificate(data) == said


@pytest.mark.parametrize(
    ("changes", "now_s", "error"),
    [
        ({"tenant": "tenant_01h455vb4pex5vsknk084sn02q"}, NOW_S, CertificateTenantError),
        ({"cnf": bytes(32)}, NOW_S, CertificateKeyError),
        ({}, NOW_S + 3_600, CertificateExpiredError),
        ({}, NOW_S - 121, CertificateNotYetValidError),
    ],
    ids=["tenant", "key", "expired", "not yet"],
)
def test_each_failure_has_its_own_error(world, changes, now_s, error):
    """Another tenant, another session key, too late and too early are told apart."""
    with pytest.raises(CertificateError) as caught:
        check(world, world.certificate(**changes), now_s=now_s)
    assert type(caught.value) is error


def test_no_certificate(world):
    """Nothing is a failure of its own."""
    with pytest.raises(CertificateMissingError):
        check(world, b"")


def test_another_root(world):
    """A certificate that another root signed names that root, and is refused for it."""
    with pytest.raises(CertificateRootError):
        check(world, world.certificate(root=World(seed=9).root))


def test_named_root_that_did_not_sign(world):
    """Whoever has not the root's private key can name it and cannot sign."""
    honest, forged = world.certificate(), World(seed=9).root
    said = read_certificate(honest)
    signature = forged.sign(b"bulkhead/v1 session key" + len(said.encoded).to_bytes(4, "big") + said.encoded)
    other = honest[:-88] + base64.urlsafe_b64encode(signature).rstrip(b"=") + b'"}'
    with pytest.raises(CertificateSignatureError):
        check(world, other)
    with pytest.raises(CertificateSignatureError):
        issue_certificate(said, sign=forged.sign)


@pytest.mark.parametrize("life_s", [0, -1, MAX_CERTIFICATE_LIFE_S + 1])
def test_life_is_bounded(world, life_s):
    """A root issues no certificate of more than a day, and nobody takes one."""
    said = replace(read_certificate(world.certificate()), not_before_s=NOW_S, not_after_s=NOW_S + life_s)
    with pytest.raises(CertificateError, match="lives"):
        issue_certificate(said, sign=world.root.sign)


def test_every_changed_byte_is_refused(world):
    """No byte of a certificate can be changed, dropped or added."""
    data = world.certificate()
    for place in range(len(data)):
        with pytest.raises(CertificateError):
            check(world, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    for other in (data[:-1], data + b" ", b"[]", data * 3):
        with pytest.raises(CertificateError):
            check(world, other)


def test_what_held_once_is_asked_again(world):
    """A certificate that was verified before is still held against root, tenant, key and time of this request."""
    data, other = world.certificate(), World(seed=9, rooted=True)
    check(world, data)
    for asked, error in (
        ({"root_fingerprint": other.tenant_root}, CertificateRootError),
        ({"tenant": other.tenant}, CertificateTenantError),
        ({"cnf": other.cnf}, CertificateKeyError),
        ({"now_s": NOW_S + 3_600}, CertificateExpiredError),
    ):
        own = {"root_fingerprint": world.tenant_root, "tenant": world.tenant, "cnf": world.cnf, "now_s": NOW_S}
        with pytest.raises(error):
            verify_certificate(data, **(own | asked))
