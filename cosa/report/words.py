"""How a report writes numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def percent(share: float | None) -> str:
    """A share, or a dash where there is none."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.1f} %"


def first_score(scores: Mapping[str, Any]) -> str:
    """The key of the score: the label-free one, without masks that of the classification."""
    return "miou" if "miou" in scores else "classification_map"


def duration(seconds: float | None) -> str:
    """Seconds in the unit that suits them."""
    if seconds is None:
        return "not recorded"
    factor, unit = time_unit(seconds)
    return f"{seconds / factor:.1f} {unit}" if factor > 1 else f"{seconds:.0f} s"


def time_unit(seconds: float) -> tuple[float, str]:
    """Seconds of the unit that suits such a time, and the unit's name."""
    if seconds >= 2 * 3600:
        return 3600.0, "hours"
    return (60.0, "minutes") if seconds >= 120 else (1.0, "seconds")


def megabytes(size: float | None) -> str:
    """MiB in the unit that suits them."""
    if size is None:
        return "not recorded"
    return f"{size / 1024:.1f} GiB" if size >= 1024 else f"{size:.0f} MiB"
