"""The dynamic threshold between background and foreground (Eq. 6 of CoSA).

The confidences of the last batches are taken as a mixture of two Gaussians; the threshold is the
point between their means where the weighted densities cross. The mixture is fitted by
expectation-maximisation on a histogram, which gives the result of a fit on the samples at a
cost that does not depend on their number.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cosa.core.errors import NotFiniteError

# Confidences are rounded to multiples of 1/500, a variance of 3e-7. 0 and 1, where normalised
# maps pile up, are exact.
_LEVELS = 501
_GRID = np.linspace(0, 1, _LEVELS)
_LEFT_OUT, _MISSING = _LEVELS, _LEVELS + 1
_POWERS = np.stack([np.ones(_LEVELS), _GRID, _GRID**2])

_MIN_SAMPLES = 16
_MAX_STEPS = 50  # each of two EM iterations and an extrapolation
_TOLERANCE = 1e-6


class DynamicThreshold:
    """A threshold that follows the distribution of the confidences over the last batches.

    Args:
        queue_length: the number of batches that the mixture is fitted to.
        initial: the threshold before the first successful fit, in [0, 1].
        smoothing: s in [0, 1); an update moves the threshold to ``s * old + (1 - s) * fit``.
            0 takes the newest fit itself.
        min_confidence: confidences up to and including this value are left out of the fit; at 0
            or below every confidence, 0 included, takes part.
        variance_floor: the least variance of either Gaussian.
        all_sum: where several processes have a share of each batch, the sum of a tensor over
            them: all agree on ξ then.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        queue_length: int = 100,
        initial: float = 0.5,
        smoothing: float = 0.99,
        min_confidence: float = 0.05,
        variance_floor: float = 1e-4,
        all_sum: Callable[[Tensor], Tensor] = lambda counts: counts,
    ) -> None:
        if queue_length < 1:
            raise ValueError(f"queue_length must be at least 1, got {queue_length}")
        if not 0 <= initial <= 1:
            raise ValueError(f"initial must be in [0, 1], got {initial}")
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {smoothing}")
        if not min_confidence < 1:
            raise ValueError(f"min_confidence must be below 1, got {min_confidence}")
        if not variance_floor > 0:
            raise ValueError(f"variance_floor must be positive, got {variance_floor}")
        self.smoothing = smoothing
        self.min_confidence = min_confidence
        self.variance_floor = variance_floor
        self._all_sum = all_sum
        self._value = float(initial)
        self._pending: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()
        self._queue: deque[np.ndarray] = deque(maxlen=queue_length)
        self._total = np.zeros(_LEVELS, dtype=np.int64)

    @property
    def value(self) -> float:
        """The threshold ξ in [0, 1], fitted to all batches that were pushed.

        It stays as it is while the queue allows no fit: too few samples, no spread, or Gaussians
        whose densities do not cross between their means.

        Raises:
            NotFiniteError: a confidence of the newest batch is NaN; that batch is dropped.
        """
        self._take_pending()
        return self._value

    def distribution(self) -> np.ndarray:
        """The confidences that ξ is fitted to: (501,) int64, how many are 0, 1/500 .. 1.

        Raises:
            NotFiniteError: see ``value``.
        """
        self._take_pending()
        return self._total.copy()

    @property
    def started(self) -> bool:
        """Whether any batch was taken in; before, ``value`` is the initial one."""
        return len(self._queue) + len(self._pending) > 0

    def push(self, confidence: Tensor, counted: Tensor | None = None) -> None:
        """Take in the confidences of one batch, of all processes, as soon as they are there.

        The host does not wait for the device that makes them.

        Work given to a CUDA device between this and reading ``value`` keeps it busy while the
        host waits for the confidences and fits.

        Args:
            confidence, counted: see :meth:`count`.
        """
        self.push_counts(self.count(confidence, counted))

    def count(self, confidence: Tensor, counted: Tensor | None = None) -> Tensor:
        """How often each level of confidence occurs, for :meth:`push_counts`.

        Args:
            confidence: ν of any shape, dtype and device, in [0, 1]; values outside count as the
                nearer bound.
            counted: bool of the same shape, False for what is left out; None takes all.

        Returns:
            Integers on the device of the confidences. Those of the parts of a batch add up.
        """
        return _histogram(confidence, counted, self.min_confidence)

    def push_counts(self, counts: Tensor) -> None:
        """:meth:`push` of what :meth:`count` gave."""
        ready = None
        counts = self._all_sum(counts)  # all processes agree on ξ, and on whether to stop
        if counts.is_cuda:
            stream = torch.cuda.current_stream(counts.device)
            counts = counts.to("cpu", non_blocking=True)
            ready = torch.cuda.Event()
            ready.record(stream)
        self._pending.append((counts, ready))

    def update(self, confidence: Tensor) -> float:
        """Take in the confidences of one batch, of all processes; return the new threshold.

        Args:
            confidence: see :meth:`push`.

        Raises:
            NotFiniteError: a confidence is NaN; the state is unchanged then.
        """
        self.push(confidence)
        return self.value

    def _take_pending(self) -> None:
        while self._pending:
            self._take(*self._pending.popleft())

    def _take(self, counts: Tensor, ready: torch.cuda.Event | None) -> None:
        if ready is not None:
            ready.synchronize()
        counts = counts.cpu()
        missing = int(counts[_MISSING])
        if missing:
            raise NotFiniteError(f"{missing} of {int(counts.sum())} confidences are NaN")
        histogram = counts[:_LEVELS].numpy().astype(np.int32)
        if len(self._queue) == self._queue.maxlen:
            self._total -= self._queue[0]
        self._queue.append(histogram)
        self._total += histogram
        fit = fit_threshold(self._total, self.variance_floor)
        if fit is not None:
            self._value = self.smoothing * self._value + (1 - self.smoothing) * fit

    def state_dict(self) -> dict[str, Any]:
        """The threshold and the queue: ``value`` float, ``histograms`` (n, levels) int32."""
        value = self.value  # takes in what is pending
        rows = np.array(self._queue, dtype=np.int32).reshape(-1, _LEVELS)
        return {"value": value, "histograms": torch.from_numpy(rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict``; of a longer queue the newest batches are kept.

        Raises:
            ValueError: the state is of another histogram.
        """
        rows = state["histograms"]
        if rows.dim() != 2 or rows.shape[1] != _LEVELS:
            raise ValueError(f"histograms must have shape (n, {_LEVELS}), got {tuple(rows.shape)}")
        self._value = float(state["value"])
        self._pending.clear()
        self._queue.clear()
        self._queue.extend(rows.cpu().numpy().astype(np.int32))
        self._total = np.sum(self._queue, axis=0, dtype=np.int64) + np.zeros(_LEVELS, np.int64)


def fit_threshold(histogram: np.ndarray, variance_floor: float = 1e-4) -> float | None:
    """Fit two Gaussians to a histogram and return where their densities cross: Eq. (6) of CoSA.

    Args:
        histogram: counts at equally spaced confidences from 0 to 1, (501,).
        variance_floor: the least variance of either Gaussian.

    Returns:
        The crossing between the two means, or None where there is none.
    """
    samples = histogram.sum()
    if samples < _MIN_SAMPLES or np.count_nonzero(histogram) < 2:
        return None
    frequency = histogram / samples
    fit = _fit_mixture(frequency, variance_floor)
    # A Gaussian that holds less than one sample has vanished.
    if min(fit[0][0], fit[1][0]) * samples < 1:
        return None
    low, high = sorted(fit, key=lambda moments: moments[1] / moments[0])
    return _crossing(low, high, variance_floor)


def _histogram(confidence: Tensor, counted: Tensor | None, min_confidence: float) -> Tensor:
    """Count the confidences above the minimum per level, on their device: (levels + 2,) int64.

    The last two bins take what is left out and what is not a number: one transfer tells all.
    """
    flat = torch.as_tensor(confidence).detach().flatten()
    if flat.dtype != torch.float64:
        flat = flat.float()
    missing = torch.isnan(flat)
    level = (flat.clamp(0, 1) * (_LEVELS - 1)).round().masked_fill(missing, 0).long()
    if min_confidence > 0:
        level = level.masked_fill(flat <= min_confidence, _LEFT_OUT)
    level = level.masked_fill(missing, _MISSING)
    if counted is not None:
        level = level.masked_fill(~counted.flatten(), _LEFT_OUT)
    # Unlike bincount, this needs no look at the largest level, for which the host would wait.
    return level.new_zeros(_LEVELS + 2).scatter_add_(0, level, torch.ones_like(level))


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
    for _ in range(_MAX_STEPS):
        first = iterate(high)
        second = iterate(first)
        if not (_is_gaussian(second) and _is_gaussian(total - second)):
            return total - second, second
        change = first - high
        bend = second - first - change
        start, high = high, second
        if np.abs(second - first).max() < _TOLERANCE:
            break
        length = max(math.sqrt(change @ change / max(bend @ bend, 1e-300)), 1.0)
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
    separation = np.divide(between, weight, out=np.zeros_like(between), where=weight > 1e-12)
    return total[:, 0] - below[:, separation.argmax()]


def _is_gaussian(moments: np.ndarray) -> bool:
    """Whether the moments are those of some Gaussian: a weight, and no negative variance."""
    weight, first, second = moments.tolist()
    return weight > 1e-9 and second * weight >= first * first * (1 - 1e-9)


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
    for _ in range(50):
        middle = (left + right) / 2
        if c + middle * (b + middle * a) < 0:
            left = middle
        else:
            right = middle
    return middle
