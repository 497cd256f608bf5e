"""Bounded XML for reference integrity manifests: parsing, canonicalisation, and nothing else.

Canonical XML 1.1 (W3C, xml-c14n11) differs from 1.0 only in how attributes of the ``xml:`` namespace reach a part of a
document. Such attributes are refused here, so lxml's Canonical XML 1.0 gives the bytes of both.
"""

from typing import TYPE_CHECKING, Final

from bulkhead.attestation.inputs import decode_text
from bulkhead.attestation.obligations import failed
from bulkhead.errors import EvidenceError, UnsupportedError

if TYPE_CHECKING:
    from lxml.etree import _Element

__all__ = ["MAX_RIM_BYTES", "canonical", "parse_xml"]

MAX_RIM_BYTES: Final = 262_144  # manifests have some 21 kB
_OBLIGATION: Final = "GPU-11"
_MAX_ELEMENTS: Final = 1_024  # 64 to 128 measurements and a signature of some 20 elements
_MAX_DEPTH: Final = 8  # an X509Certificate stands at depth 5
_MAX_ATTRIBUTES: Final = 64  # of one element: a measurement has 6, and one for each of its values
_MAX_NAMESPACES: Final = 32  # declarations: manifests have 6; canonicalisation takes the square of their number
_XML_NAMESPACE: Final = "{http://www.w3.org/XML/1998/namespace}"
_SIGNATURE_VALUES: Final = frozenset({"DigestValue", "SignatureValue", "X509Certificate"})


def parse_xml(data: bytes, *, what: str) -> "_Element":
    """Return the root element of an untrusted document: UTF-8, raw or base64, at most 256 KiB.

    Only elements, attributes and white space are let through, text only where a signature has values: no document
    type, entity, comment, processing instruction or CDATA that readers could see differently.

    Raises:
        EvidenceError: GPU-11.
        UnsupportedError: lxml is not installed.
    """
    try:
        from lxml import etree
    except ImportError as error:
        raise UnsupportedError("GPU manifests need lxml: install bulkhead-sdk with the extra 'nvidia'") from error
    text = _decoded(data, what)
    parser = etree.XMLParser(
        encoding="utf-8",
        resolve_entities=False,
        load_dtd=False,
        dtd_validation=False,
        no_network=True,
        huge_tree=False,
        recover=False,
        strip_cdata=False,
    )
    try:
        root = etree.fromstring(text, parser)
    except (etree.XMLSyntaxError, ValueError) as error:  # ValueError: an encoding declaration that lxml refuses
        raise failed(_OBLIGATION, f"{what}: not well-formed XML") from error
    _check_shape(root, what)
    return root


def canonical(element: "_Element", *, what: str) -> bytes:
    """Return the canonical form of an element of :func:`parse_xml`, with the namespaces in scope at it.

    Raises:
        EvidenceError: GPU-11: it has none, as with a relative namespace name (Canonical XML 1.0, section 1.3).
    """
    from lxml import etree

    try:
        return bytes(etree.tostring(element, method="c14n", exclusive=False, with_comments=False, with_tail=False))
    except etree.C14NError as error:
        raise failed(_OBLIGATION, f"{what}: no canonical form") from error


def _decoded(data: bytes, what: str) -> bytes:
    try:
        text = decode_text(
            data,
            is_binary=lambda candidate: candidate.lstrip()[:1] == b"<",
            max_bytes=MAX_RIM_BYTES,
            what=what,
            error=EvidenceError,
        )
        decoded = text.decode("utf-8")
    except EvidenceError as error:
        raise failed(_OBLIGATION, error.message) from error
    except UnicodeDecodeError as error:
        raise failed(_OBLIGATION, f"{what}: not UTF-8") from error
    # Before the parser sees anything: whatever it would do with a document type, it does not get to do it.
    if "<!" in decoded or "\x00" in decoded:
        raise failed(_OBLIGATION, f"{what}: document types, comments and CDATA are not accepted")
    if decoded.count("xmlns") > _MAX_NAMESPACES:
        raise failed(_OBLIGATION, f"{what}: more namespaces than a manifest has")
    return text.strip()


def _check_shape(root: "_Element", what: str) -> None:
    if root.getprevious() is not None or root.getnext() is not None:
        raise failed(_OBLIGATION, f"{what}: something stands beside the root element")
    pending, count = [(root, 1)], 0
    while pending:
        element, depth = pending.pop()
        count += 1
        if count > _MAX_ELEMENTS or depth > _MAX_DEPTH:
            raise failed(_OBLIGATION, f"{what}: more elements, or deeper ones, than a manifest has")
        if not isinstance(element.tag, str):  # a processing instruction or an entity
            raise failed(_OBLIGATION, f"{what}: only elements are accepted")
        if len(element.attrib) > _MAX_ATTRIBUTES:
            raise failed(_OBLIGATION, f"{what}: an element with more attributes than a manifest's")
        if any(str(name).startswith(_XML_NAMESPACE) for name in element.attrib):
            raise failed(_OBLIGATION, f"{what}: attributes of the xml: namespace are not accepted")
        has_value = element.tag.rpartition("}")[2] in _SIGNATURE_VALUES and not len(element)
        if ((element.text or "").strip() and not has_value) or (element.tail or "").strip():
            raise failed(_OBLIGATION, f"{what}: text where none belongs")
        pending.extend((child, depth + 1) for child in element)
