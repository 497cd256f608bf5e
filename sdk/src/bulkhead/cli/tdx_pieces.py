"""Collateral of a TDX quote from files, in the forms in which it occurs.

Each file is one of: a bundle (JSON with the members of Intel's ``sgx_ql_qve_collateral_t``, snake or camel case, values
as text or lists of byte values, documents with or without their signature around them); an answer of Intel's service
with TCB info or QE identity; certificates; a revocation list. What a piece is, its content says.
"""

import json
import re
from dataclasses import dataclass
from typing import Final

from cryptography import x509

from bulkhead.attestation.collateral.cache import CollateralCache
from bulkhead.attestation.collateral.intel import TdxItems, signed_document
from bulkhead.attestation.collateral.kinds import CollateralEntry, CollateralKind
from bulkhead.attestation.inputs import load_certificates, load_crls
from bulkhead.attestation.obligations import failed
from bulkhead.attestation.tdx import TdxCollateral
from bulkhead.attestation.tdx.collateral import common_name
from bulkhead.cli.evidence_files import NamedBytes
from bulkhead.encoding import Json
from bulkhead.errors import EvidenceError

__all__ = ["TdxPieces"]

_INFO, _IDENTITY = CollateralKind.INTEL_TCB_INFO, CollateralKind.INTEL_QE_IDENTITY
_TCB_SIGNER: Final = "Intel SGX TCB Signing"
_PCK_NAME: Final = "Intel SGX PCK Certificate"
_ROOT_NAME: Final = "Intel SGX Root CA"
_CAMEL: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")
_SIGNATURE_BYTES: Final = 64


@dataclass(slots=True, kw_only=True)
class _Document:
    data: bytes | None = None
    signature: bytes | None = None
    chain: bytes | None = None


class TdxPieces:
    """Pieces as they are found; a later one replaces an earlier one of its kind.

    Attributes:
        pck_chain: of a quote that only names its PCK certificate; None where none was given.
    """

    def __init__(self) -> None:
        self.pck_chain: bytes | None = None
        self._documents = {_INFO: _Document(), _IDENTITY: _Document()}
        self._pck_crl: bytes | None = None
        self._root_crl: bytes | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing is missing but, perhaps, a chain that another document brought along."""
        documents = self._documents.values()
        return (
            all(document.data is not None for document in documents)
            and self._pck_crl is not None
            and self._root_crl is not None
        )

    def add(self, file: NamedBytes) -> None:
        """Take what a file holds.

        Raises:
            EvidenceError: it holds nothing that is known; the obligation is that of what it seems to be.
        """
        if file.data.lstrip().startswith(b"{"):
            self._add_json(file)
        elif b"-----BEGIN CERTIFICATE-----" in file.data:
            self._add_certificates(file)
        else:
            try:
                self._add_crls(file)
            except EvidenceError:
                self._add_certificates(file)

    def complete_from(self, cache: CollateralCache, items: TdxItems) -> None:
        """Find in the cache, or by an allowed fetch, what is missing.

        Raises:
            EvidenceError: a piece is missing still: names it and its source.
            ConnectionFailedError: a service did not answer.
        """
        for kind, item in ((_INFO, items.tcb_info), (_IDENTITY, items.qe_identity)):
            if self._documents[kind].data is None:
                self._take_answer(cache.find(item))
        if self._pck_crl is None:
            self._pck_crl = cache.find(items.pck_crl).data
        if self._root_crl is None:
            self._root_crl = cache.find(items.root_crl).data

    def collateral(self) -> TdxCollateral:
        """Return the bundle, untrusted.

        Raises:
            EvidenceError: an issuer's chain or a signature is missing: says where it comes from.
        """
        info, info_signature, info_chain = self._document(_INFO)
        identity, identity_signature, identity_chain = self._document(_IDENTITY)
        if self._pck_crl is None or self._root_crl is None:
            raise failed("TDX-4", "a revocation list is missing: that of the PCK CA or that of Intel's root")
        return TdxCollateral(
            tcb_info=info,
            tcb_info_signature=info_signature,
            tcb_info_issuer_chain=info_chain,
            qe_identity=identity,
            qe_identity_signature=identity_signature,
            qe_identity_issuer_chain=identity_chain,
            pck_crl=self._pck_crl,
            root_ca_crl=self._root_crl,
            pck_certificate_chain=self.pck_chain,
        )

    def _document(self, kind: CollateralKind) -> tuple[bytes, bytes, bytes]:
        document = self._documents[kind]
        other = self._documents[_IDENTITY if kind is _INFO else _INFO]
        chain = document.chain or other.chain  # one certificate signs both
        name = "TCB info" if kind is _INFO else "QE identity"
        if document.data is None or document.signature is None:
            raise failed(kind.obligation, f"the {name} or its signature is missing: {kind.origin} gives both at once")
        if chain is None:
            raise failed(
                kind.obligation,
                f"the certificate chain of the {name} is missing: the header {kind.chain_header} of Intel's answer",
            )
        return document.data, document.signature, chain

    def _take_answer(self, entry: CollateralEntry) -> None:
        data, signature = signed_document(entry.data, entry.kind)
        self._documents[entry.kind] = _Document(data=data, signature=signature, chain=entry.chain)

    def _add_json(self, file: NamedBytes) -> None:
        try:
            value = json.loads(file.data.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise failed("TDX-9", f"{file.name}: not JSON") from error
        if not isinstance(value, dict):
            raise failed("TDX-9", f"{file.name}: not a JSON object")
        for kind, member in ((_INFO, "tcbInfo"), (_IDENTITY, "enclaveIdentity")):
            if isinstance(value.get(member), dict) and "signature" in value:
                document = self._documents[kind]
                document.data, document.signature = signed_document(file.data, kind)
                return
        members = {_CAMEL.sub("_", name).lower(): member for name, member in value.items()}
        nested = members.get("collateral")
        if isinstance(nested, dict):
            members = {_CAMEL.sub("_", name).lower(): member for name, member in nested.items()}
        if not members.keys() & {"tcb_info", "qe_identity", "pck_crl", "root_ca_crl"}:
            raise failed("TDX-9", f"{file.name}: neither a bundle of collateral nor an answer of Intel's service")
        self._add_bundle(members, file.name)

    def _add_bundle(self, members: dict[str, Json], name: str) -> None:
        for kind, prefix in ((_INFO, "tcb_info"), (_IDENTITY, "qe_identity")):
            document = self._documents[kind]
            data = _document_bytes(members.get(prefix))
            if data is not None and data.lstrip().startswith((b'{"tcbInfo"', b'{"enclaveIdentity"')):
                document.data, document.signature = signed_document(data, kind)
            elif data is not None:
                document.data = data
                document.signature = _signature(members.get(f"{prefix}_signature"), f"{name}: {prefix}_signature", kind)
            document.chain = _bytes(members.get(f"{prefix}_issuer_chain")) or document.chain
        self._pck_crl = _bytes(members.get("pck_crl")) or self._pck_crl
        self._root_crl = _bytes(members.get("root_ca_crl")) or self._root_crl
        self.pck_chain = _bytes(members.get("pck_certificate_chain")) or self.pck_chain

    def _add_certificates(self, file: NamedBytes) -> None:
        try:
            certificates = load_certificates(file.data, what=file.name)
        except EvidenceError as error:
            raise failed("TDX-2", error.message) from error
        names = {common_name(certificate.subject) for certificate in certificates}
        if _PCK_NAME in names:
            self.pck_chain = file.data
        if _TCB_SIGNER in names:
            for document in self._documents.values():
                document.chain = document.chain or file.data
        # Anything else is an authority: those that count are pinned or come with what they signed.

    def _add_crls(self, file: NamedBytes) -> None:
        for crl in load_crls(file.data, what=file.name):
            if _is_root(crl):
                self._root_crl = file.data
            else:
                self._pck_crl = file.data


def _is_root(crl: x509.CertificateRevocationList) -> bool:
    return common_name(crl.issuer) == _ROOT_NAME


def _document_bytes(value: Json) -> bytes | None:
    if isinstance(value, dict):  # taken apart by whoever wrote the bundle: Intel signs the compact form
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    return _bytes(value)


def _bytes(value: Json) -> bytes | None:
    if isinstance(value, str) and value:
        return value.encode("utf-8", "replace")
    if isinstance(value, list) and value and all(isinstance(item, int) and 0 <= item <= 255 for item in value):
        return bytes(item for item in value if isinstance(item, int))
    return None


def _signature(value: Json, what: str, kind: CollateralKind) -> bytes:
    raw = _bytes(value) or b""
    if len(raw) == 2 * _SIGNATURE_BYTES:
        try:
            raw = bytes.fromhex(raw.decode("ascii"))
        except ValueError as error:
            raise failed(kind.obligation, f"{what} is not hexadecimal") from error
    if len(raw) != _SIGNATURE_BYTES:
        raise failed(kind.obligation, f"{what} is not {_SIGNATURE_BYTES} bytes")
    return raw
