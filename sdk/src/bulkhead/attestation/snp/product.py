"""AMD's products with SEV-SNP, how a report names them, and the layout of their TCB versions."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

__all__ = ["COMPONENTS", "SnpProduct", "Tcb", "product_of_cpuid", "product_of_name"]
COMPONENTS: Final = ("fmc", "bootloader", "tee", "snp", "microcode")


class SnpProduct(StrEnum):
    """A product line, each with its own ARK. Siena and Bergamo are endorsed under Genoa's."""

    MILAN = "milan"
    GENOA = "genoa"
    TURIN = "turin"

    @property
    def certificate_names(self) -> frozenset[str]:
        """What the product extension of its leaf certificates starts with (VCEK specification, AMD 57230)."""
        return _CERTIFICATE_NAMES[self]

    @property
    def hwid_bytes(self) -> int:
        """Bytes of a VCEK's hardware id: from Turin on 8, with which CHIP_ID begins before zeros."""
        return 8 if self is SnpProduct.TURIN else 64


_CERTIFICATE_NAMES: Final = {
    SnpProduct.MILAN: frozenset({"Milan"}),
    SnpProduct.GENOA: frozenset({"Genoa", "Siena", "Bergamo"}),
    SnpProduct.TURIN: frozenset({"Turin"}),
}
_CPUID_MODELS: Final = (
    # (family, first model, last model): AMD's revision guides 56683 (19h 00h-0Fh), 57095 (19h 10h-1Fh) and 58251 (1Ah
    # 00h-0Fh); 19h A0h-AFh are Bergamo and Siena, 1Ah 10h-1Fh is Turin Dense. A wrong guess would fail at the ARK.
    (0x19, 0x00, 0x0F, SnpProduct.MILAN),
    (0x19, 0x10, 0x1F, SnpProduct.GENOA),
    (0x19, 0xA0, 0xAF, SnpProduct.GENOA),
    (0x1A, 0x00, 0x1F, SnpProduct.TURIN),
)


def product_of_cpuid(family: int, model: int) -> SnpProduct | None:
    """Return the product of a combined (base plus extended) CPUID family and model, or None for an unknown one."""
    for known_family, first, last, product in _CPUID_MODELS:
        if family == known_family and first <= model <= last:
            return product
    return None


def product_of_name(name: str) -> SnpProduct | None:
    """Return the product line that AMD or a person calls ``name``, Siena and Bergamo included, or None."""
    return next((line for line, names in _CERTIFICATE_NAMES.items() if name.title() in names), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tcb:
    """Security patch levels, 0 to 255 each; ``fmc`` exists from Turin on and is 0 before.

    Levels of different products are not comparable, and the library never compares them as one number.
    """

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int = 0

    @classmethod
    def parse(cls, raw: bytes, product: SnpProduct) -> Self:
        """Return the levels in a TCB_VERSION (8 bytes, AMD 56860 section 2.2) as ``product`` lays them out."""
        if product is SnpProduct.TURIN:
            return cls(fmc=raw[0], bootloader=raw[1], tee=raw[2], snp=raw[3], microcode=raw[7])
        return cls(bootloader=raw[0], tee=raw[1], snp=raw[6], microcode=raw[7])

    def below(self, floor: "Tcb") -> tuple[str, ...]:
        """Return the names of the components that do not reach ``floor``; each counts by itself."""
        return tuple(name for name in COMPONENTS if getattr(self, name) < getattr(floor, name))
