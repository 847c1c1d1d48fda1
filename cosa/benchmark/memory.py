"""The highest use of memory between two moments."""

from __future__ import annotations

from pathlib import Path

import torch

from cosa.errors import UserError

_CLEAR_PEAK = "5"  # what proc(5) takes for: reset the largest resident set


def start_peak(device: torch.device) -> int:
    """Forget the highest use of memory so far; return the present one, in bytes.

    On CUDA what PyTorch has allocated on the device, else the resident set of this process.

    Raises:
        UserError: the system does not tell.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK, encoding="ascii")
    except OSError as error:
        raise UserError(f"the peak of the memory cannot be measured here: {error}; "
                        "run this benchmark on Linux, or on a GPU") from error
    return _status("VmRSS")


def peak(device: torch.device) -> int:
    """The highest use of memory since :func:`start_peak`, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])
