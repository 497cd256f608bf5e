"""Certificates, lists and reports in the forms in which they come."""

import base64
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from bulkhead.attestation.inputs import (
    MAX_CERTIFICATE_BYTES,
    MAX_CERTIFICATES,
    decode_text,
    load_certificates,
    load_crls,
)
from bulkhead.errors import EvidenceError
from tests.simulator.nvidia_world import world
from tests.simulator.snp_machine import Machine, crl

LEAF = Machine().leaf()
DER, PEM = (LEAF.public_bytes(encoding) for encoding in (Encoding.DER, Encoding.PEM))
LIST = crl("ARK-Turin", (4711,))
CHAIN = b"".join(signer.certificate.public_bytes(Encoding.PEM) for signer in world().device)

ONE = {
    "DER": DER,
    "PEM": PEM,
    "PEM with CRLF and text": b"Bag Attributes\r\n" + PEM.replace(b"\n", b"\r\n") + b"\r\n\0",
    "PEM of an old label": PEM.replace(b"CERTIFICATE", b"X509 CERTIFICATE"),
    "PEM in one line": b"-----BEGIN CERTIFICATE-----" + base64.b64encode(DER) + b"-----END CERTIFICATE-----",
    "hex": DER.hex().encode(),
    "HEX with 0x": b"0x" + DER.hex().upper().encode() + b"\n",
    "hex in columns": b"\n".join(DER[at : at + 16].hex(" ").encode() for at in range(0, len(DER), 16)),
    "hex of a C program": DER.hex().encode() + b"\0",
    "base64": base64.encodebytes(DER),
    "base64url without padding": base64.urlsafe_b64encode(DER).rstrip(b"="),
    "base64 of PEM": base64.b64encode(PEM),
    "hex of PEM": PEM.hex().encode(),
    "percent-encoded PEM": quote(PEM).encode(),
    "PEM beside a key": b"-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n" + PEM,
}


@pytest.mark.parametrize("data", ONE.values(), ids=ONE)
def test_one_certificate(data: bytes) -> None:
    """Each form gives the same certificate."""
    assert load_certificates(data, what="leaf") == (LEAF,)


@pytest.mark.parametrize("wrap", [bytes, base64.b64encode, lambda text: quote(text).encode()], ids=["", "b64", "url"])
def test_chains_keep_their_order(wrap) -> None:
    """Several PEM blocks give their certificates in order, however the text is wrapped."""
    assert load_certificates(wrap(CHAIN), what="chain") == tuple(signer.certificate for signer in world().device)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 64,
        DER[:-1],
        DER + b"\0",
        PEM[:-10],
        PEM.replace(b"MII", b"M!I"),
        PEM * (MAX_CERTIFICATES + 1),
        b"\x30\x82\xff\xff" + bytes(MAX_CERTIFICATE_BYTES),
        base64.b64encode(base64.b64encode(PEM)),
        b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
        LIST.public_bytes(Encoding.DER),
        b"A" * 1_000_000,
    ],
    ids=["empty", "zeros", "cut", "longer", "PEM cut", "not base64", "too many", "too long", "wrapped twice",
         "a list", "a list's DER", "huge"],
)  # fmt: skip
def test_no_certificate(data: bytes) -> None:
    """What is no certificate, or more than anyone has, is our error."""
    with pytest.raises(EvidenceError):
        load_certificates(data, what="leaf")


@pytest.mark.parametrize(
    "encode",
    [
        lambda der: der,
        lambda der: der.hex().upper().encode() + b"\0",
        base64.b64encode,
        lambda _: LIST.public_bytes(Encoding.PEM),
        lambda _: quote(LIST.public_bytes(Encoding.PEM)).encode(),
    ],
    ids=["DER", "hex", "base64", "PEM", "percent-encoded"],
)
def test_lists(encode) -> None:
    """A revocation list is the same in each form."""
    assert load_crls(encode(LIST.public_bytes(Encoding.DER)), what="list") == (LIST,)


def test_text_of_a_bound() -> None:
    """A text may be longer than what it encodes, by a bounded factor."""
    sizes = {"is_binary": lambda it: len(it) == 64, "max_bytes": 64, "what": "x", "error": EvidenceError}
    assert decode_text(bytes(64).hex(" ").encode(), **sizes) == bytes(64)
    for data in (bytes(64).hex().encode() + b" " * 400, b"00" * 63, bytes(65)):
        with pytest.raises(EvidenceError):
            decode_text(data, **sizes)
