"""What :func:`bulkhead.attestation.snp.verify_snp_report` checks, by number and in this order."""

from types import MappingProxyType
from typing import Final

from bulkhead.attestation.obligations import Obligations

__all__ = ["SNP_OBLIGATIONS"]

SNP_OBLIGATIONS: Final[Obligations] = MappingProxyType(
    {
        "SNP-1": "The report is exactly 0x4A0 bytes of version 2 to 5, signed with ECDSA P-384 and SHA-384, and every "
        "reserved field and the padding of the signature is zero.",
        "SNP-2": "The product is known: from the report's CPUID, or given by the caller for version 2, and never both "
        "and different.",
        "SNP-3": "KEY_INFO names a VCEK or a VLEK as signing key, and a VCEK is not masked.",
        "SNP-4": "The endorsement key's certificate was issued under the product's pinned ARK by its ASK (VCEK) or "
        "ASVK (VLEK), with RSASSA-PSS and SHA-384, and no certificate of another path comes along.",
        "SNP-5": "Every certificate of the path is within its validity.",
        "SNP-6": "No certificate of the path stands in AMD's revocation list, where one is given or demanded.",
        "SNP-7": "The leaf is the kind of key that KEY_INFO names: common name, P-384 key, product, and hardware id "
        "(VCEK) or CSP id (VLEK), never both.",
        "SNP-8": "The leaf's security patch levels equal REPORTED_TCB, component by component.",
        "SNP-9": "A VCEK's hardware id equals CHIP_ID.",
        "SNP-10": "The leaf's key signed bytes 0x000 to 0x29F of the report.",
        "SNP-11": "REPORT_DATA is the 64 bytes that the caller expects.",
        "SNP-12": "The policy accepts the product.",
        "SNP-13": "The policy accepts the kind of signing key, and of a VLEK its CSP id.",
        "SNP-14": "The guest's POLICY has DEBUG = 0.",
        "SNP-15": "The guest's POLICY has MIGRATE_MA = 0, unless the policy allows migration agents.",
        "SNP-16": "The rest of POLICY: reserved bits as the ABI demands; SMT, CXL and sockets as the policy demands.",
        "SNP-17": "VMPL is exactly the policy's.",
        "SNP-18": "The reported, committed and launch TCB each reach the policy's floor for the product.",
        "SNP-19": "The running firmware is committed, so that it cannot be rolled back, unless the policy allows that.",
        "SNP-20": "MEASUREMENT is on the policy's list.",
        "SNP-21": "HOST_DATA is on the policy's list, where it has one.",
        "SNP-22": "PLATFORM_INFO has every bit that the policy requires and none that it forbids.",
        "SNP-23": "CHIP_ID is one that the policy pins, where it pins any.",
        "SNP-24": "ID key, author key and GUEST_SVN are as the policy demands.",
    }
)
