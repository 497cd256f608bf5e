import subprocess
import sys

import pytest

# In a process of its own: searches all its memory for weights whose bytes are known, before and after they are erased.
SEARCH = """
import sys, torch
from data_plane.engine.linear import HalfLinear, make_linear
from data_plane.engine.memory import overwriting_what_is_freed, returning_what_is_freed

rows, columns = int(sys.argv[1]), int(sys.argv[2])
value = 1234.0
pattern = bytes(a ^ 0x5A for a in torch.full((48,), value).half().numpy().tobytes())  # the wanted bytes stand nowhere

def found():
    count = 0
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb") as memory:
        for line in maps:
            span, mode = line.split()[:2]
            if not mode.startswith("rw") or "[v" in line:
                continue
            begin, end = (int(place, 16) for place in span.split("-"))
            memory.seek(begin)
            block = memory.read(end - begin)
            wanted = bytes(a ^ 0x5A for a in pattern)
            count += block.count(wanted)
            del block, wanted
    return count

with torch.inference_mode():
    with returning_what_is_freed(), overwriting_what_is_freed():  # as the engine loads
        linears = [make_linear(torch.full((rows, columns), value), weights="fp32") for _ in range(3)]
    assert all(isinstance(linear, HalfLinear) for linear in linears)
    before = found()
    with overwriting_what_is_freed():
        for linear in linears:
            linear.erase()
    print(before, found())
"""


@pytest.mark.parametrize("shape", [(2048, 1024), (96, 512)], ids=["mapped by itself", "in the heap"])
def test_erased_half_weights_are_nowhere_in_memory(shape: tuple[int, int]) -> None:
    """Weights that fbgemm packed are found in the process's memory while they serve, and nowhere once erased."""
    command = [sys.executable, "-c", SEARCH, *map(str, shape)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 1000
    assert after <= 2  # what the search itself holds
