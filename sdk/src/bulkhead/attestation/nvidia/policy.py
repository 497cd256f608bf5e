"""What a tenant accepts of a GPU's report; every default is the strict one."""

from dataclasses import dataclass, field

from bulkhead.attestation.nvidia.opaque import GpuMode

__all__ = ["NvidiaPolicy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaPolicy:
    """A tenant's demands on a GPU; each default with its reason.

    Attributes:
        products: chips by the name in their certificates. Default GH100 and GB100: those whose reports this verifier
            was tried on; another name is a decision of the tenant.
        modes: default SPT alone: in MPT and PPCIE the GPU's NVLink peers and switches matter as much as the GPU, and
            one report says nothing about them.
        mode_must_be_stated: default False: firmware that predates the field has no other mode but protected PCIe,
            which it states.
        allow_missing_fwid: default False: without FWID nothing ties the report to the firmware that signed it. True
            is for firmware before 2024 that does not report it.
        fwids: accepted FWIDs (48 bytes: SHA-384 of the firmware that holds the attestation key), or None for any that
            the device's certificate names. Default None: firmware is judged by the manifests of its version, and a
            list breaks with each update.
        driver_versions: accepted driver versions; default none named: whichever NVIDIA publishes a manifest for.
        vbios_versions: accepted VBIOS versions; as before.
        minimum_driver_version: floor in dotted numbers, such as ``550.90.07``; None: no floor, as one written into
            code would soon be too low.
        minimum_vbios_version: floor in dotted hexadecimal; as before.
        revocation_required: default True: a certificate counts as good only if NVIDIA's OCSP responder said so. False
            uses the answers that are there, and still refuses what they revoke or put on hold.
        maximum_ocsp_age_s: seconds since an answer's ``thisUpdate``; default one day, as a device may be revoked any
            day, whatever ``nextUpdate`` the responder chose.
    """

    products: frozenset[str] = frozenset({"GH100", "GB100"})
    modes: frozenset[GpuMode] = field(default_factory=lambda: frozenset({GpuMode.SPT}))
    mode_must_be_stated: bool = False
    allow_missing_fwid: bool = False
    fwids: frozenset[bytes] | None = None
    driver_versions: frozenset[str] = frozenset()
    vbios_versions: frozenset[str] = frozenset()
    minimum_driver_version: str | None = None
    minimum_vbios_version: str | None = None
    revocation_required: bool = True
    maximum_ocsp_age_s: int = 86_400
