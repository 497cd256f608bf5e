"""The `opa` program as a command: where it is, and running it bounded in time, output and environment."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bulkhead.errors import ConfigError

__all__ = ["OpaRun", "find_opa", "run_opa"]

MAX_OUTPUT_CHARS: Final = 1024 * 1024  # a coverage report of the policies is 60 KiB
DEFAULT_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class OpaRun:
    """How a run ended.

    Attributes:
        code: exit status.
        output: standard output, cut at a bound.
        errors: standard error, cut at a bound.
    """

    code: int
    output: str
    errors: str

    @property
    def said(self) -> str:
        """Everything it wrote, errors first."""
        return "\n".join(part.strip() for part in (self.errors, self.output) if part.strip())


def find_opa() -> Path:
    """Return the `opa` program: ``BULKHEAD_OPA``, else on PATH, else in Bulkhead's own cache of tools.

    Raises:
        ConfigError: it is in none of them; the message says how to get it.
    """
    named = os.environ.get("BULKHEAD_OPA")
    if named is not None:
        if not os.access(named, os.X_OK):
            raise ConfigError("BULKHEAD_OPA does not name a program that can be run")
        return Path(named)
    on_path = shutil.which("opa")
    if on_path is not None:
        return Path(on_path)
    cache = Path(os.environ.get("BULKHEAD_CACHE") or "~/.cache/bulkhead").expanduser()
    cached = cache / "tools" / "bin" / "opa"
    if os.access(cached, os.X_OK):
        return cached
    raise ConfigError(
        "opa is not on PATH: `go install github.com/open-policy-agent/opa@v1.22.2`, or name it in BULKHEAD_OPA"
    )


def run_opa(opa: Path, *arguments: str, cwd: Path, timeout_s: float = DEFAULT_TIMEOUT_S) -> OpaRun:
    """Run `opa` in ``cwd`` and return how it ended. Blocks; call it off the event loop.

    Raises:
        ConfigError: the program cannot be started.
        TimeoutError: it took longer than ``timeout_s`` and was killed.
    """
    try:
        ended = subprocess.run(
            [str(opa.resolve()), *arguments],
            cwd=cwd,
            env={"HOME": str(cwd), "PATH": ""},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"opa {arguments[0]} took longer than {timeout_s:.0f} s") from error
    except OSError as error:
        raise ConfigError(f"opa cannot be started: {error.strerror}") from error
    return OpaRun(code=ended.returncode, output=_text(ended.stdout), errors=_text(ended.stderr))


def _text(data: bytes) -> str:
    return data[:MAX_OUTPUT_CHARS].decode("utf-8", errors="replace")
