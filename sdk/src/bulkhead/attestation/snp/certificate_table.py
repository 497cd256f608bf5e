"""The certificate table that hosts hand to guests beside a report (GHCB specification 2.0, section 4.1.8.1).

Entries of a GUID (16 bytes), offset and length (u32, little-endian), ended by a zero entry; the certificates, DER, lie
behind them. Linux gives it as ``auxblob``; others append it to the report. The host wrote it: nothing in it is trusted.
"""

import uuid
from typing import Final

from cryptography import x509

from bulkhead.attestation.inputs import MAX_CERTIFICATE_BYTES, MAX_CERTIFICATES, load_certificates
from bulkhead.attestation.obligations import failed

__all__ = ["is_certificate_table", "read_certificate_table"]

MAX_TABLE_BYTES: Final = MAX_CERTIFICATES * (MAX_CERTIFICATE_BYTES + 24)
_ENTRY_BYTES: Final = 24
_OBLIGATION: Final = "SNP-4"
_CERTIFICATES: Final = frozenset(
    uuid.UUID(text).bytes
    for text in (
        "63da758d-e664-4564-adc5-f4b93be8accd",  # VCEK
        "a8074bc2-a25a-483e-aae6-39c045a0b8a1",  # VLEK
        "4ab7b379-bbac-4fe4-a02f-05aef327c782",  # ASK
        "c0b406a4-a803-4952-9743-3fb6014cd0ae",  # ARK
    )
)


def is_certificate_table(data: bytes) -> bool:
    """Whether ``data`` begins as a certificate table does: with the GUID of one of AMD's certificates."""
    return data[:16] in _CERTIFICATES


def read_certificate_table(data: bytes) -> tuple[x509.Certificate, ...]:
    """Return the certificates of a table, in its order; entries of other kinds (such as a CRL) are passed over.

    Raises:
        EvidenceError: SNP-4: longer than 16 certificates, an entry outside the table, no end, or no certificate.
    """
    if len(data) > MAX_TABLE_BYTES:
        raise failed(_OBLIGATION, f"the certificate table is longer than {MAX_TABLE_BYTES} bytes")
    found: list[x509.Certificate] = []
    for number in range(MAX_CERTIFICATES + 1):
        entry = data[number * _ENTRY_BYTES : (number + 1) * _ENTRY_BYTES]
        if len(entry) < _ENTRY_BYTES:
            raise failed(_OBLIGATION, "the certificate table does not end")
        if not any(entry):
            return tuple(found)
        offset, size = int.from_bytes(entry[16:20], "little"), int.from_bytes(entry[20:], "little")
        der = data[offset : offset + size]
        if len(der) != size or not size:
            raise failed(_OBLIGATION, f"entry {number} of the certificate table lies outside of it")
        if entry[:16] in _CERTIFICATES:
            found += load_certificates(der, what=f"entry {number} of the certificate table")
    raise failed(_OBLIGATION, f"the certificate table has more than {MAX_CERTIFICATES} entries")
