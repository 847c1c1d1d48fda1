"""Numbers on their way into files and tables."""

from __future__ import annotations

import math
from typing import Any


def without_nan(value: Any) -> Any:
    """A value for JSON: NaN and infinities, also within dictionaries and lists, become None."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def percent(share: float | None) -> str:
    """A share in percent, five characters wide; a dash for None and NaN."""
    return "    -" if share is None or math.isnan(share) else f"{100 * share:5.1f}"
