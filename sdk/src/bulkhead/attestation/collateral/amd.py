"""AMD's key distribution service: what to ask for a report (VCEK and KDS interface specification, 57230)."""

from collections.abc import Iterable
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from bulkhead.attestation.collateral.kinds import CollateralItem, CollateralKind
from bulkhead.attestation.obligations import failed
from bulkhead.attestation.snp.product import SnpProduct, Tcb
from bulkhead.attestation.snp.report import SigningKey, SnpReport

__all__ = ["chain_item", "crl_item", "has_endorsement", "vcek_item"]

_NAMES: Final = {SnpProduct.MILAN: "Milan", SnpProduct.GENOA: "Genoa", SnpProduct.TURIN: "Turin"}

_EXTENSIONS: Final = "1.3.6.1.4.1.3704.1."  # of VCEK and VLEK certificates alone (57230)


def vcek_item(claims: SnpReport, product: SnpProduct) -> CollateralItem:
    """Return where the VCEK of a report's chip and REPORTED_TCB is; the claims need not be trusted.

    Raises:
        EvidenceError: SNP-4: the host masks CHIP_ID, so that no certificate can be asked for.
    """
    if not any(claims.chip_id):
        raise failed("SNP-4", "the VCEK's certificate is missing, and the host masks CHIP_ID: only it can hand it out")
    tcb = Tcb.parse(claims.reported_tcb, product)
    levels = [("blSPL", tcb.bootloader), ("teeSPL", tcb.tee), ("snpSPL", tcb.snp), ("ucodeSPL", tcb.microcode)]
    if product is SnpProduct.TURIN:
        levels.insert(0, ("fmcSPL", tcb.fmc))
    query = "&".join(f"{name}={level:02}" for name, level in levels)
    hwid = claims.chip_id[: product.hwid_bytes].hex()
    return CollateralItem(
        kind=CollateralKind.AMD_VCEK,
        name=f"{product.value}-{hwid}-{claims.reported_tcb.hex()}",
        path=f"/vcek/v1/{_NAMES[product]}/{hwid}?{query}",
    )


def chain_item(product: SnpProduct, signing_key: SigningKey) -> CollateralItem:
    """Return where the authorities of a product's VCEKs or VLEKs are; the verifier pins them and needs no copy."""
    key = _key(signing_key)
    return CollateralItem(
        kind=CollateralKind.AMD_CHAIN,
        name=f"{product.value}-{key}",
        path=f"/{key}/v1/{_NAMES[product]}/cert_chain",
    )


def crl_item(product: SnpProduct, signing_key: SigningKey) -> CollateralItem:
    """Return where the revocation list of a product's ARK is."""
    key = _key(signing_key)
    return CollateralItem(
        kind=CollateralKind.AMD_CRL, name=f"{product.value}-{key}", path=f"/{key}/v1/{_NAMES[product]}/crl"
    )


def has_endorsement(certificates: Iterable[x509.Certificate]) -> bool:
    """Whether one of ``certificates`` poses as a VCEK's or VLEK's, so that none need be looked for."""
    return any(_poses(certificate) for certificate in certificates)


def _poses(certificate: x509.Certificate) -> bool:
    names = {attribute.value for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)}
    if not names.isdisjoint({"SEV-VCEK", "SEV-VLEK"}):
        return True
    try:
        return any(extension.oid.dotted_string.startswith(_EXTENSIONS) for extension in certificate.extensions)
    except ValueError:  # extensions that cannot be read; the verifier says so of what it is given
        return False


def _key(signing_key: SigningKey) -> str:
    return "vlek" if signing_key is SigningKey.VLEK else "vcek"
