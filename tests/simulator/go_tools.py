"""The Go programs that others wrote and our formats are held against; `scripts/setup.sh` builds them. Never skipped."""

import os
import subprocess
from pathlib import Path

from bulkhead.encoding import b64encode

FSCK = "fsck@v1.0.4/fsck"
OMNIWITNESS = "omniwitness@2e1c6971d19e/omniwitness"


def tool(name: str) -> Path:
    """Return a built tool.

    Raises:
        FileNotFoundError: it was not built: run scripts/setup.sh.
    """
    cache = Path(os.environ.get("BULKHEAD_CACHE", Path.home() / ".cache" / "bulkhead"))
    path = cache / "tools" / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run scripts/setup.sh, which builds it")
    return path


def run_fsck(url: str, vkey: Path, timeout_s: float = 60.0) -> str:
    """Run Tessera's fsck over a log's tiles and return what it said.

    It exits 0 on a failure too, and hangs on some: the caller looks for :func:`fsck_success` in the text.
    """
    command = [str(tool(FSCK)), "--storage_url", url, "--public_key", str(vkey), "--ui=false", "-N", "16"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        return f"timed out: {error.stderr!r}"
    return done.stdout + done.stderr


def fsck_success(size: int, root: bytes) -> str:
    """Return the line that fsck prints when, and only when, a log holds."""
    return f"Successfully fsck'd log with size {size} and root {b64encode(root)} ({root.hex()})"
