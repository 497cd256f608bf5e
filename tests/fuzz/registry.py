"""The one list of fuzz targets: every parser of untrusted bytes has an entry (``make fuzz``, ``test_corpus.py``).

To add targets: write a module beside this one that defines ``TARGETS: tuple[FuzzTarget, ...]``, name it in ``MODULES``,
and run ``python -m tests.fuzz --write-seeds`` once to make each new target's committed corpus. Import what is fuzzed
at the top of that module: the driver instruments imports.
"""

import importlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bulkhead.errors import BulkheadError

__all__ = ["CORPUS", "MODULES", "FuzzTarget", "load_targets"]

MODULES: Final = (
    "tests.fuzz.attestation_targets",
    "tests.fuzz.collateral_targets",
    "tests.fuzz.edge_targets",
    "tests.fuzz.model_targets",
    "tests.fuzz.protocol_targets",
    "tests.fuzz.transparency_targets",
)
CORPUS: Final = Path(__file__).with_name("corpus")


@dataclass(frozen=True, kw_only=True)
class FuzzTarget:
    """One parser.

    Attributes:
        name: lower case with hyphens; names the corpus folder.
        parse: what is fuzzed; it returns anything, or raises one of ``expected``. Whatever else it raises is a finding,
            and so is taking longer than the driver's limit or holding on to memory. To check more than that, raise
            ``AssertionError`` in it.
        seeds: makes first inputs, of which each should be parsed; called only to write a corpus.
        max_bytes: longest input tried.
        expected: the errors that a caller is told of.
    """

    name: str
    parse: Callable[[bytes], object]
    seeds: Callable[[], Iterable[bytes]]
    max_bytes: int
    expected: tuple[type[Exception], ...] = (BulkheadError,)

    def try_one(self, data: bytes) -> None:
        """Parse one input; any error that is not expected passes through."""
        with suppress(*self.expected):
            self.parse(data)

    @property
    def corpus(self) -> Path:
        """Folder of the committed corpus."""
        return CORPUS / self.name


def load_targets(modules: Sequence[str] = MODULES) -> dict[str, FuzzTarget]:
    """Return every target by name.

    Raises:
        ValueError: two have the same name.
    """
    targets: dict[str, FuzzTarget] = {}
    for module in modules:
        for target in importlib.import_module(module).TARGETS:
            if target.name in targets:
                raise ValueError(f"two fuzz targets are called {target.name}")
            targets[target.name] = target
    return targets
