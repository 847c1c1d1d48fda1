"""How much memory there is, and how much this process uses."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import torch

from cosa.core.errors import UserError

try:
    import resource
except ImportError:  # not on Windows
    resource = None

RESIDENT, PEAK_RESIDENT = "VmRSS", "VmHWM"
"""Of Linux: the present and the largest resident set."""


def resident(field: str = RESIDENT) -> int:
    """Bytes of this process's resident set.

    Raises:
        OSError: the system has no such file, it is not Linux.
    """
    # Not resource.getrusage: its peak is that of the parent, if that was larger when it forked.
    return _told(Path("/proc/self/status"), field)


def _told(path: Path, *fields: str) -> int:
    """Bytes that a file of Linux tells of these fields, together."""
    lines = path.read_text(encoding="ascii").splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(fields))


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


_CONTROL_GROUP = Path("/sys/fs/cgroup/memory.max")  # the limit of a container, or "max"
_MEMORY = Path("/proc/meminfo")
_SHARED = Path("/dev/shm")
_UNKNOWN = 8 * 2**30  # bytes, where the system does not tell


def memory_size() -> int:
    """Bytes of main memory that this machine, or its container, has."""
    sizes = _limits()
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(sizes, default=_UNKNOWN)


def available_memory(device: torch.device | None = None) -> int | None:
    """Bytes that a program can hope for at most; None where the system does not tell.

    All that a CUDA device has; else what is free of the main memory, or could be freed, and of
    the space it is swapped to, but no more than the container may use.
    """
    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    sizes = _limits()
    if _MEMORY.is_file():
        sizes.append(_told(_MEMORY, "MemAvailable", "SwapFree"))
    return min(sizes, default=None)


def require_memory(
    least: int, what: str, remedy: str, device: torch.device | None = None
) -> None:
    """Refuse what cannot fit.

    Args:
        least: bytes; a lower bound, that nothing is refused which could run.
        what: takes them, a plural.
        remedy: what to do.

    Raises:
        UserError: there is less memory.
    """
    there = available_memory(device)
    if there is not None and least > there:
        where = device if device is not None and device.type == "cuda" else "this machine"
        raise UserError(f"{what} take at least {least / 2**30:.1f} GiB, and {where} has "
                        f"{there / 2**30:.1f} GiB for them: {remedy}")


def shared_memory() -> int | None:
    """Free bytes of what processes share, in which PyTorch hands on batches; None: no limit."""
    if sys.platform != "linux":
        return None
    return shutil.disk_usage(_SHARED).free if _SHARED.is_dir() else 0


def _limits() -> list[int]:
    """Bytes that the container and this process may have, where there are such limits."""
    limits = []
    if _CONTROL_GROUP.is_file():
        limit = _CONTROL_GROUP.read_text(encoding="ascii").strip()
        limits += [int(limit)] if limit.isdigit() else []
    if resource is not None:
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        limits += [limit] if limit != resource.RLIM_INFINITY else []
    return limits


def in_mebibytes(size: int | None) -> float | None:
    """Bytes as MiB, to one decimal place; None for None."""
    return None if size is None else round(size / 2**20, 1)
