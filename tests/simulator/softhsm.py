"""A PKCS#11 token for tests: SoftHSM 2, a real token in software, in a directory of its own."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
)
TOKEN = "bulkhead-test"
PIN = "271828"


@dataclass(frozen=True)
class SoftHsm:
    """One token.

    Attributes:
        module: the PKCS#11 library.
        pin_file: holds the user PIN.
        environment: what a process needs to find the token.
    """

    module: Path
    pin_file: Path
    environment: dict[str, str]

    def uri(self, label: str) -> str:
        """Return the URI of a key in the token."""
        return f"pkcs11:token={TOKEN};object={label}?module-path={self.module}&pin-source={self.pin_file}"


def softhsm_module() -> Path:
    """Return SoftHSM's library; without it the tests fail and say what to install."""
    configured = os.environ.get("BULKHEAD_SOFTHSM")
    for candidate in (configured, *MODULES):
        if candidate and Path(candidate).is_file():
            return Path(candidate)
    raise AssertionError("SoftHSM is missing: install Debian's package softhsm2 (scripts/setup.sh does as root)")


# The library reads its configuration once in the life of a process, so all tests of one process share a directory.
_directory: Path | None = None


@contextmanager
def softhsm_token(directory: Path) -> Iterator[SoftHsm]:
    """Give an initialised token below ``directory``; in one process always below the first."""
    global _directory  # noqa: PLW0603  see above
    module = softhsm_module()
    if _directory is None:
        _directory = directory
        (directory / "tokens").mkdir()
        configuration = directory / "softhsm2.conf"
        configuration.write_text(
            f"directories.tokendir = {directory / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n"
        )
        os.environ["SOFTHSM2_CONF"] = str(configuration)
        subprocess.run(
            ["softhsm2-util", "--init-token", "--free", "--label", TOKEN, "--so-pin", "31415926", "--pin", PIN],
            check=True,
            capture_output=True,
        )
        (directory / "pin").write_text(PIN + "\n")
    yield SoftHsm(module, _directory / "pin", {"SOFTHSM2_CONF": str(_directory / "softhsm2.conf")})
