import hashlib
import json
import socket
import ssl
import threading
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bulkhead.encoding import canonical_json
from bulkhead.errors import ConfigError, EvidenceError, StaleKeyError
from bulkhead.sealing import Keyset, WorkerKeys
from bulkhead.sealing.keyset import MAX_KEYSET_BYTES

NOW_S = 1_900_000_000


@pytest.fixture(scope="module")
def keys():
    return WorkerKeys.generate(authority="worker.example", now_s=NOW_S, life_s=3600)


def changed(keyset, change):
    value = json.loads(keyset.encoded)
    change(value)
    return canonical_json(value)


def test_keyset_survives_encoding(keys):
    """Parsing gives back the same keys, end of life and key id."""
    parsed = Keyset.parse(keys.keyset.encoded)
    assert parsed == keys.keyset
    assert parsed.not_after_s == NOW_S + 3600
    assert parsed.key_id == hashlib.sha256(keys.keyset.encoded).digest() == keys.key_id


def test_keyset_ends_with_its_first_key(keys):
    """The earliest end among the keys is the keyset's."""
    encoded = changed(keys.keyset, lambda value: value["keys"]["receipt"].update(not_after=NOW_S + 1))
    assert Keyset.parse(encoded).not_after_s == NOW_S + 1


CHANGES = {
    "version": lambda value: value.update(version=2),
    "suite": lambda value: value.update(suite="X25519"),
    "unknown field": lambda value: value.update(more=1),
    "unknown key": lambda value: value["keys"].update(more={}),
    "missing key": lambda value: value["keys"].pop("weights_kem"),
    "missing end": lambda value: value["keys"]["tls"].pop("not_after"),
    "short KEM key": lambda value: value["keys"]["request_kem"].update(public="AAAA"),
    "invalid KEM key": lambda value: value["keys"]["request_kem"].update(public="_" * 1621 + "w"),
    "one KEM key for two uses": lambda value: value["keys"].update(weights_kem=value["keys"]["request_kem"]),
    "short receipt key": lambda value: value["keys"]["receipt"].update(public="AAAA"),
    "large TLS key": lambda value: value["keys"]["tls"].update(public="A" * 2000),
}


@pytest.mark.parametrize("change", CHANGES)
def test_malformed_keyset_is_refused(keys, change):
    """Anything but the one shape of version 1 with sound keys is an evidence error."""
    with pytest.raises(EvidenceError):
        Keyset.parse(changed(keys.keyset, CHANGES[change]))


@pytest.mark.parametrize("encoded", [b"", b"[]", b"{}", b" {}", b"\xff", b"{" * 5000, b" " * (MAX_KEYSET_BYTES + 1)])
def test_bytes_that_are_no_keyset_are_refused(encoded):
    """Garbage of any kind is an evidence error."""
    with pytest.raises(EvidenceError):
        Keyset.parse(encoded)


def test_each_use_has_its_own_key(keys):
    """No two generations and no two uses share a key."""
    other = WorkerKeys.generate(authority="worker.example", now_s=NOW_S)
    publics = [
        getattr(held.keyset.keys, use)
        for held in (keys, other)
        for use in ("request_kem", "weights_kem", "receipt", "tls_spki")
    ]
    assert len(set(publics)) == 8


def test_certificate_carries_the_keysets_tls_key(keys):
    """The certificate's SPKI stands in the keyset, and its name is the worker's authority."""
    certificate = x509.load_pem_x509_certificate(keys.tls_certificate)
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert spki == keys.keyset.keys.tls_spki
    assert names.get_values_for_type(x509.DNSName) == ["worker.example"]
    assert certificate.not_valid_after_utc.timestamp() == NOW_S + 3600


@pytest.mark.parametrize("life_s", [0, -1, 24 * 3600 + 1])
def test_keys_live_at_most_a_day(life_s):
    """A life of nothing or of more than 24 hours is refused."""
    with pytest.raises(ConfigError):
        WorkerKeys.generate(authority="worker.example", now_s=NOW_S, life_s=life_s)


def test_destroyed_keys_do_nothing():
    """After destroy nothing opens, signs or is exported."""
    keys = WorkerKeys.generate(authority="worker.example", now_s=NOW_S)
    sealed = keys.keyset.request_kem.seal(b"secret", info=b"")
    assert keys.open_request(sealed, info=b"") == b"secret"
    keys.destroy()
    for use in (
        lambda: keys.open_request(sealed, info=b""),
        lambda: keys.open_weights_key(sealed, info=b""),
        lambda: keys.sign_receipt(b""),
        keys.tls_private_key,
    ):
        with pytest.raises(StaleKeyError):
            use()


def _handshake(served, trusted, tmp_path):
    """Run one TLS handshake on a socket pair; the client trusts exactly ``trusted``."""
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(served.tls_certificate)
    key.write_bytes(served.tls_private_key())
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(chain, key)
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.load_verify_locations(cadata=trusted.tls_certificate.decode())
    near, far = socket.socketpair()
    for end in (near, far):
        end.settimeout(10)

    def serve():
        try:
            server_context.wrap_socket(far, server_side=True).close()
        except (ssl.SSLError, OSError):
            far.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client_context.wrap_socket(near, server_hostname="worker.example").close()
    finally:
        near.close()
        thread.join(10)


def test_tls_accepts_the_pinned_certificate_only(tmp_path):
    """A client whose sole root is the worker's certificate connects, and refuses another worker of the same name."""
    now_s = int(time.time())
    keys, other = (WorkerKeys.generate(authority="worker.example", now_s=now_s) for _ in range(2))
    _handshake(keys, keys, tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(other, keys, tmp_path)
