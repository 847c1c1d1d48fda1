"""The kernels of a repeated piece of work on CUDA: which, how often, how long."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

REPEATS = 3
SHOWN = 16
"""Kernels in the table; the others are one line."""


def profile(work: Callable[[], object]) -> list[dict[str, Any]]:
    """Name, ``milliseconds`` and ``count`` of each kernel in one piece of work, longest first."""
    work()
    torch.cuda.synchronize()
    both = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=both) as recorded:
        for _ in range(REPEATS):
            work()
        torch.cuda.synchronize()
    kernels = [
        {"name": event.key, "milliseconds": event.self_device_time_total / REPEATS / 1e3,
         "count": event.count / REPEATS}
        for event in recorded.key_averages()
        # Ranges that programs name are on the device's time line, too, such as Optimizer.step#...
        if event.device_type == DeviceType.CUDA and "#" not in event.key
    ]
    return sorted(kernels, key=lambda kernel: -kernel["milliseconds"])


def kernel_table(kernels: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Header, a row for each of the longest, one for the others, one for all."""
    rows = [["kernel", "ms", "calls"]]
    for kernel in kernels[:SHOWN]:
        rows.append([short(kernel["name"]), *_cells([kernel])])
    rows.append([f"{max(0, len(kernels) - SHOWN)} others", *_cells(kernels[SHOWN:])])
    return [*rows, ["all", *_cells(kernels)]]


def short(name: str) -> str:
    """A kernel's name without its types and arguments, for a table."""
    name = re.sub(r"\(anonymous namespace\)::|at::native::|^void ", "", name)
    functor = re.search(r"(\w+)(?:Functor\w*|KernelImpl)\b", name)
    name = re.split(r"[<(]", name)[0].strip()
    return f"{name} {functor.group(1)}" if functor else name


def _cells(kernels: Sequence[dict[str, Any]]) -> list[str]:
    return [f"{sum(kernel['milliseconds'] for kernel in kernels):.2f}",
            f"{sum(kernel['count'] for kernel in kernels):.0f}"]
