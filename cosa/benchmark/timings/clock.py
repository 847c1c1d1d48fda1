"""Times as benchmarks measure and show them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch


def clock(device: torch.device) -> float:
    """Seconds, when the device has done what it was told so far."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """``median`` and ``iqr`` (the interquartile range), in milliseconds."""
    low, median, high = np.percentile(1e3 * np.asarray(seconds), [25, 50, 75])
    return {"median": float(median), "iqr": float(high - low)}


def cell(times: dict[str, float]) -> str:
    """What ``spread`` returns, for a table."""
    digits = 0 if times["median"] >= 1000 else 1 if times["median"] >= 10 else 2
    return f"{times['median']:.{digits}f} ({times['iqr']:.{digits}f})"
