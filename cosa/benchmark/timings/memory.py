"""The highest use of memory between two moments, and processes to measure it in."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from cosa.core.errors import UserError
from cosa.core.memory import PEAK_RESIDENT, resident

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
    return resident()


def peak(device: torch.device) -> int:
    """The highest use of memory since :func:`start_peak`, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resident(PEAK_RESIDENT)


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module returns in a process that has done nothing else.

    Raises:
        UserError: the process was ended; and whatever the function raises.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise UserError("a measuring process was ended, perhaps for want of memory: lower "
                            "--batch-size, --workers or --size (inference), or leave out large "
                            "sizes of --memory (crf)") from error
