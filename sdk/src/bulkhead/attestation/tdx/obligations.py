"""Obligations of the Intel TDX verifier, in the order of checking (docs/protocol.md section 3)."""

from types import MappingProxyType
from typing import Final

from bulkhead.attestation.obligations import Obligations

__all__ = ["TDX_OBLIGATIONS"]

TDX_OBLIGATIONS: Final[Obligations] = MappingProxyType(
    {
        "TDX-1": "The quote is a version 4 or 5 TDX quote of Intel's quoting enclave with an ECDSA P-256 key; every "
        "length is exact, and only zero bytes follow it.",
        "TDX-2": "The PCK certificate leads through an Intel PCK CA to the pinned Intel root.",
        "TDX-3": "Every certificate is within its validity.",
        "TDX-4": "Current revocation lists of the PCK CA and of the root are present, and revoke no certificate.",
        "TDX-5": "The PCK certificate names its platform: FMSPC, PCEID, PPID and TCB components.",
        "TDX-6": "The PCK key signed the quoting enclave's report.",
        "TDX-7": "The quoting enclave's report data is SHA-256 over attestation key and authentication data.",
        "TDX-8": "The attestation key signed the quote's header and body.",
        "TDX-9": "The TCB info is signed, byte for byte, by Intel's TCB signing key under the pinned root.",
        "TDX-10": "The QE identity is present and signed, byte for byte, by Intel's TCB signing key.",
        "TDX-11": "The TCB info is a version 3 document for TDX and the QE identity one for the TD quoting enclave.",
        "TDX-12": "TCB info, QE identity and revocation list were issued, have not run out, and are as young as the "
        "policy demands.",
        "TDX-13": "FMSPC and PCEID of TCB info and PCK certificate are equal.",
        "TDX-14": "MRSIGNER, ISVPRODID, MISCSELECT and ATTRIBUTES of the quoting enclave are those of its identity.",
        "TDX-15": "MRSIGNERSEAM and SEAMATTRIBUTES are those of the TDX module's identity; MRSEAM is pinned if the "
        "policy pins it.",
        "TDX-16": "Platform, TDX module and quoting enclave each match a TCB level.",
        "TDX-17": "The policy accepts the worst of the three TCB statuses and the number of the TCB evaluation.",
        "TDX-18": "No advisory stands against the matched levels that the policy does not accept.",
        "TDX-19": "The TD is not under debug or profiling: no TUD attribute is set.",
        "TDX-20": "SEPT_VE_DISABLE is set: the host cannot inject faults on private pages.",
        "TDX-21": "The TD cannot migrate and has no service TD: MIGRATABLE is clear and MRSERVICETD zero.",
        "TDX-22": "No reserved or unexpected TD attribute is set.",
        "TDX-23": "XFAM has the mandatory and only expected features.",
        "TDX-24": "MRTD and RTMR0 to RTMR3 are those of one image that the policy allows.",
        "TDX-25": "MRCONFIGID, MROWNER and MROWNERCONFIG have values that the policy allows.",
        "TDX-26": "REPORTDATA is what the caller expects.",
        "TDX-27": "The platform is one of those pinned by PPID, if the policy pins any.",
    }
)
