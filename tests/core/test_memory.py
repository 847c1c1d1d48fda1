import subprocess
import sys

import pytest
import torch

from cosa.core import memory
from cosa.core.memory import in_mebibytes, peak_memory, resident

CPU = torch.device("cpu")


def test_the_peak_stays_when_memory_is_given_back():
    before = peak_memory(CPU)
    block = bytearray(200 * 2**20)
    assert resident() >= len(block)
    high = peak_memory(CPU)
    len_of_block = len(block)
    del block
    about = 2**20  # the system counts in steps
    assert peak_memory(CPU) >= high - about >= before - 2 * about and high >= len_of_block


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
