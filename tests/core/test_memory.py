import subprocess
import sys

import pytest
import torch

from cosa.core import memory
from cosa.core.errors import UserError
from cosa.core.memory import (
    available_memory,
    in_mebibytes,
    memory_size,
    peak_memory,
    require_memory,
    resident,
    shared_memory,
)

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
    # Without PyTorch, which it does not need for this, it is small.
    code = ("import sys, types; sys.modules['torch'] = types.ModuleType('torch'); "
            "from cosa.core.memory import resident, PEAK_RESIDENT as p; print(resident(p))")
    block = bytearray(200 * 2**20)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < len(block)


def test_a_system_that_does_not_tell(monkeypatch):
    def absent(field=""):
        raise FileNotFoundError

    monkeypatch.setattr(memory, "resident", absent)
    assert peak_memory(CPU) is None and in_mebibytes(None) is None
    assert in_mebibytes(3 * 2**19) == pytest.approx(1.5)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine whose files tell of 3 GiB that are available and 1 GiB to swap to."""
    monkeypatch.setattr(memory, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CONTROL_GROUP", tmp_path / "memory.max")
    (tmp_path / "meminfo").write_text(
        f"MemTotal: {9 * 2**20} kB\nMemAvailable: {3 * 2**20} kB\nSwapFree: {2**20} kB\n")
    return tmp_path


def test_what_there_is(machine):
    assert available_memory() == available_memory(CPU) == 4 * 2**30
    (machine / "memory.max").write_text("max\n")
    assert available_memory() == 4 * 2**30
    (machine / "memory.max").write_text(f"{2**30}\n")
    assert available_memory() == 2**30 and memory_size() <= 2**30
    for path in machine.iterdir():
        path.unlink()
    assert available_memory() is None and memory_size() > 0


def test_what_cannot_fit_is_refused_with_the_figure(machine):
    require_memory(4 * 2**30, "the networks", "take smaller ones")
    with pytest.raises(UserError) as caught:
        require_memory(9 * 2**29, "the networks", "take smaller ones")
    assert str(caught.value) == ("the networks take at least 4.5 GiB, and this machine has 4.0 GiB "
                                 "for them: take smaller ones")


def test_the_memory_of_a_gpu_is_all_that_it_has(monkeypatch):
    class Card:
        total_memory = 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card)
    with pytest.raises(UserError, match="and cuda:1 has 1.0 GiB"):
        require_memory(2**31, "the networks", "take smaller ones", torch.device("cuda:1"))


def test_shared_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory, "_SHARED", tmp_path)
    assert shared_memory() > 0
    monkeypatch.setattr(memory, "_SHARED", tmp_path / "absent")
    assert shared_memory() == 0, "PyTorch cannot hand on a batch"
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert shared_memory() is None


@pytest.mark.skipif(memory.resource is None, reason="Windows has no such limits")
def test_the_memory_of_a_process_is_its_limit(monkeypatch):
    whole = memory_size()
    monkeypatch.setattr(memory.resource, "getrlimit", lambda _: (2**20, 2**30))
    assert memory_size() == available_memory() == 2**20
    unlimited = (memory.resource.RLIM_INFINITY,) * 2
    monkeypatch.setattr(memory.resource, "getrlimit", lambda _: unlimited)
    assert memory_size() >= whole
