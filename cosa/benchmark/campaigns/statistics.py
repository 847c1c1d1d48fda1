"""Scores of runs by row and seed: their means, their spreads, and both as text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cosa.benchmark.tables import NOTHING

Results = dict[str, dict[int, dict[str, Any]]]
"""Row -> seed -> scores."""


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; NaN deviation for a single value."""
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return statistics.fmean(values), deviation


def known(by_seed: Mapping[int, Mapping[str, Any]], key: str) -> list[float]:
    """The values of a score, without the seeds that have none."""
    return [scores[key] for scores in by_seed.values() if scores.get(key) is not None]


def paired(
    results: Results, first: tuple[str, str], second: tuple[str, str]
) -> list[tuple[float, float]]:
    """Both scores, given as (row, score), of every seed that has both."""
    (row_a, key_a), (row_b, key_b) = first, second
    a, b = results.get(row_a, {}), results.get(row_b, {})
    pairs = [(a[seed].get(key_a), b[seed].get(key_b)) for seed in sorted(a.keys() & b.keys())]
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def percent(mean: float, spread: float = math.nan, sign: str = "", note: str = "") -> str:
    """``mean`` ± ``spread`` in percent, such as "70.2 ± 4.0"; a spread of NaN is left out.

    Args:
        sign: "+" shows that of a positive mean, too.
        note: what the spread is, said after it.
    """
    told = f"{100 * mean:{sign}.1f}"
    return told if math.isnan(spread) else f"{told} ± {100 * spread:.1f}{note}"


def score_cell(by_seed: Mapping[int, Mapping[str, Any]], key: str) -> str:
    """Mean ± standard deviation in percent of a score over the seeds that have it."""
    values = known(by_seed, key)
    return percent(*mean_and_deviation(values)) if values else NOTHING
