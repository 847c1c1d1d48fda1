import subprocess
import sys

import pytest
import torch

from cosa.core import memory
from cosa.core.memory import in_mebibytes, peak_memory, resident

CPU = torch.device("cpu")


def test_the_peak_stays_when_memory_is_given_back():
    size, steps = 200 * 2**20, 2**20  # the system counts in steps
    before = peak_memory(CPU)
    block = bytearray(size)
    assert resident() >= size
    high = peak_memory(CPU)
    assert high >= max(size, before - steps)
    del block
    assert peak_memory(CPU) >= high - steps


def test_a_child_does_not_count_the_memory_of_its_parent():
    code = "from cosa.core.memory import resident, PEAK_RESIDENT as p; print(resident(p))"
    block = bytearray(900 * 2**20)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < len(block)


def test_a_system_that_does_not_tell(monkeypatch):
    def absent(field=""):
        raise FileNotFoundError

    monkeypatch.setattr(memory, "resident", absent)
    assert peak_memory(CPU) is None and in_mebibytes(None) is None
    assert in_mebibytes(3 * 2**19) == pytest.approx(1.5)
