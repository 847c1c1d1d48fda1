"""Two Gaussians fitted to confidences, and where they cross: Eq. (6) of CoSA, on the host.

Expectation-maximisation on a histogram gives the result of a fit on the samples at a cost that does
not depend on their number. ``cosa.mixture.device`` does the same on a GPU.
"""

from __future__ import annotations

import math

import numpy as np

LEVELS = 501
"""Confidences are rounded to multiples of 1/500, a variance of 3e-7. 0 and 1, where normalised maps
pile up, are exact."""
_GRID = np.linspace(0, 1, LEVELS)
_POWERS = np.stack([np.ones(LEVELS), _GRID, _GRID**2])

MIN_SAMPLES = 16
MAX_STEPS = 50
"""Each of two EM iterations and an extrapolation."""
TOLERANCE = 1e-6
BISECTIONS = 50

LEAST_WEIGHT = 1e-9
"""Of a Gaussian."""
SLACK = 1 - 1e-9
"""For rounding, of the square of the mean that a mean square must reach."""
LEAST_SPLIT = 1e-12
"""Product of the weights of two classes, below which they are none."""
LEAST_BEND = 1e-300
"""What an extrapolation may divide by."""


def fit_threshold(histogram: np.ndarray, variance_floor: float = 1e-4) -> float | None:
    """Fit two Gaussians to a histogram and return where their densities cross: Eq. (6) of CoSA.

    Args:
        histogram: counts at equally spaced confidences from 0 to 1, (LEVELS,).
        variance_floor: the least variance of either Gaussian.

    Returns:
        The crossing between the two means, or None where there is none.
    """
    samples = histogram.sum()
    if samples < MIN_SAMPLES or np.count_nonzero(histogram) < 2:
        return None
    frequency = histogram / samples
    fit = _fit_mixture(frequency, variance_floor)
    # A Gaussian that holds less than one sample has vanished.
    if min(fit[0][0], fit[1][0]) * samples < 1:
        return None
    low, high = sorted(fit, key=lambda moments: moments[1] / moments[0])
    return _crossing(low, high, variance_floor)


# A Gaussian with its weight is held as its moments (weight, weight * mean, weight * mean square):
# they add up over the two Gaussians to those of the data, and an EM iteration is a map of one
# Gaussian's moments.


def _fit_mixture(frequency: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """Fit two Gaussians by EM from a start that depends on the histogram alone.

    Plain EM creeps where the Gaussians overlap; a squared extrapolation (SQUAREM: Varadhan and
    Roland, 2008) after every second iteration reaches the same fixed point sooner.
    """
    weighted = _POWERS * frequency
    total = weighted.sum(axis=1)

    def iterate(high: np.ndarray) -> np.ndarray:
        exponent = (_log_density(total - high, floor) - _log_density(high, floor)) @ _POWERS
        return weighted @ (1 / (1 + np.exp(np.minimum(exponent, 700))))

    high = _upper_class(weighted)
    for _ in range(MAX_STEPS):
        first = iterate(high)
        second = iterate(first)
        if not (_is_gaussian(second) and _is_gaussian(total - second)):
            return total - second, second
        change = first - high
        bend = second - first - change
        start, high = high, second
        if np.abs(second - first).max() < TOLERANCE:
            break
        length = max(math.sqrt(change @ change / max(bend @ bend, LEAST_BEND)), 1.0)
        leap = start + 2 * length * change + length**2 * bend
        if _is_gaussian(leap) and _is_gaussian(total - leap):
            high = leap
    return total - high, high


def _upper_class(weighted: np.ndarray) -> np.ndarray:
    """The moments above the split of least within-class variance (Otsu: an exact 2-means)."""
    below = weighted.cumsum(axis=1)
    total, below = below[:, -1:], below[:, :-1]
    weight = below[0] * (total[0] - below[0])
    between = (below[1] * total[0] - total[1] * below[0]) ** 2
    separation = np.divide(between, weight, out=np.zeros_like(between), where=weight > LEAST_SPLIT)
    return total[:, 0] - below[:, separation.argmax()]


def _is_gaussian(moments: np.ndarray) -> bool:
    """Whether the moments are those of some Gaussian: a weight, and no negative variance."""
    weight, first, second = moments.tolist()
    return weight > LEAST_WEIGHT and second * weight >= first * first * SLACK


def _log_density(moments: np.ndarray, floor: float) -> np.ndarray:
    """The log of the weighted density: coefficients of 1, x and x^2, up to a shared constant."""
    weight, first, second = moments.tolist()
    mean = first / weight
    variance = max(second / weight - mean**2, floor)
    constant = math.log(weight) - 0.5 * math.log(variance) - 0.5 * mean**2 / variance
    return np.array([constant, mean / variance, -0.5 / variance])


def _crossing(low: np.ndarray, high: np.ndarray, floor: float) -> float | None:
    """Where ``high`` becomes the denser Gaussian between the two means; None where it does not."""
    c, b, a = (_log_density(high, floor) - _log_density(low, floor)).tolist()
    left, right = float(low[1] / low[0]), float(high[1] / high[0])
    if right - left < _GRID[1]:
        return None
    if not (c + left * (b + left * a) < 0 < c + right * (b + right * a)):
        return None
    # A parabola of opposite signs at the ends has one root in between.
    for _ in range(BISECTIONS):
        middle = (left + right) / 2
        if c + middle * (b + middle * a) < 0:
            left = middle
        else:
            right = middle
    return middle
