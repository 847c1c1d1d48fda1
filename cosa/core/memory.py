"""How much memory this process uses, as the system and PyTorch count it."""

from __future__ import annotations

from pathlib import Path

import torch

RESIDENT, PEAK_RESIDENT = "VmRSS", "VmHWM"
"""Of Linux: the present and the largest resident set."""


def resident(field: str = RESIDENT) -> int:
    """Bytes of this process's resident set.

    Raises:
        OSError: the system has no such file, it is not Linux.
    """
    # Not resource.getrusage: its peak is that of the parent, if that was larger when it forked.
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that this process has used so far; None where the system does not tell.

    On CUDA what PyTorch has allocated on the device, else the resident set.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        return resident(PEAK_RESIDENT)
    except OSError:
        return None


def in_mebibytes(size: int | None) -> float | None:
    """Bytes as MiB, to one decimal place; None for None."""
    return None if size is None else round(size / 2**20, 1)
