"""The mixture of ``cosa.mixture.host``, fitted on a GPU in one kernel, for which no host waits.

A training step needs ξ between the assignment network's pass and the losses. Were it fitted on the
host, the GPU would idle until the host has it and has launched the rest of the step.

Triton comes with PyTorch for CUDA on Linux; importing this module elsewhere raises ImportError.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cosa.mixture.host import (
    BISECTIONS,
    LEAST_BEND,
    LEAST_SPLIT,
    LEAST_WEIGHT,
    LEVELS,
    MAX_STEPS,
    MIN_SAMPLES,
    SLACK,
    TOLERANCE,
)

WARPS = 4
_BLOCK = triton.next_power_of_2(LEVELS)
_VALUE, _PUSHED, _MISSING = (tl.constexpr(place) for place in range(3))  # in the state

# Where numbers are that float32, which Triton makes of literals and arguments, cannot hold exactly.
_SMOOTHING, _FLOOR, _TOLERANCE, _LEAST_WEIGHT, _SLACK, _LEAST_SPLIT, _LEAST_BEND = (
    tl.constexpr(place) for place in range(7)
)


class DeviceFit:
    """A threshold, and the histograms it is fitted to, on a GPU.

    Args:
        value: the threshold before the first fit.
        rows: (n, LEVELS) int32, the histograms so far, oldest first.
        queue_length, smoothing, variance_floor: see ``cosa.threshold.DynamicThreshold``.
        device: a CUDA device, whose current stream does all work.
    """

    xi: Tensor
    """(), float32, on the device: the threshold with the newest batch; NaN where that has one."""

    def __init__(
        self, value: float, rows: Tensor, queue_length: int, smoothing: float,
        variance_floor: float, device: torch.device,
    ) -> None:
        numbers = [smoothing, variance_floor, TOLERANCE, LEAST_WEIGHT, SLACK, LEAST_SPLIT,
                   LEAST_BEND]
        self._numbers = torch.tensor(numbers, dtype=torch.float64, device=device)
        self._ring = torch.zeros(queue_length, LEVELS, dtype=torch.int32, device=device)
        self._total = torch.zeros(LEVELS, dtype=torch.int64, device=device)
        self._state = torch.zeros(3, dtype=torch.float64, device=device)
        rows = rows[-queue_length:].to(device)
        self._ring[: len(rows)] = rows
        self._total += rows.sum(0)
        self._state.copy_(torch.tensor([value, len(rows), 0], dtype=torch.float64))
        self.xi = self._state[_VALUE.value].float()

    def push(self, counts: Tensor) -> None:
        """Take in a batch, and fit.

        Args:
            counts: (LEVELS + 2,) int64, of ``DynamicThreshold.count``. A batch with confidences
                that are NaN is dropped, and told of by :meth:`read`.

        Raises:
            Exception: of Triton, where it finds no compiler or the device is too old for it.
        """
        # A new one each time: the targets of the last step may still be looked at.
        self.xi = torch.empty((), device=counts.device)
        update[(1,)](
            counts.contiguous(), self._ring, self._total, self._state, self._numbers, self.xi,
            len(self._ring), LEVELS=LEVELS, BLOCK=_BLOCK, MAX_STEPS=MAX_STEPS,
            MIN_SAMPLES=MIN_SAMPLES, BISECTIONS=BISECTIONS, num_warps=WARPS,
        )

    def read(self) -> tuple[float, int]:
        """The threshold, and how many confidences were NaN since it was last read; the host waits.
        """
        value, _, missing = self._state.tolist()
        if missing:
            self._state[_MISSING.value] = 0
        return value, int(missing)

    def rows(self) -> Tensor:
        """(n, LEVELS) int32 on the CPU: the histograms that count, oldest first."""
        pushed, length = int(self._state[_PUSHED.value]), len(self._ring)
        ring = self._ring.cpu()
        return ring[:pushed] if pushed <= length else ring.roll(-(pushed % length), 0)


@triton.jit
def _coefficients(weight, first, second, numbers):
    """The log of a weighted density: coefficients of 1, x and x^2, up to a shared constant."""
    mean = first / weight
    variance = tl.maximum(second / weight - mean * mean, tl.load(numbers + _FLOOR))
    constant = tl.log(weight) - tl.log(variance) / 2 - mean * mean / variance / 2
    return constant, mean / variance, -1 / variance / 2


@triton.jit
def _is_gaussian(weight, first, second, numbers):
    """Whether moments are those of some Gaussian: a weight, and no negative variance."""
    heavy = weight > tl.load(numbers + _LEAST_WEIGHT)
    return heavy & (second * weight >= first * first * tl.load(numbers + _SLACK))


@triton.jit
def _iterate(w, f, s, tw, tf, ts, x, freq, numbers):
    """An iteration of EM: the moments of the upper Gaussian from those it had."""
    c, b, a = _coefficients(w, f, s, numbers)
    other_c, other_b, other_a = _coefficients(tw - w, tf - f, ts - s, numbers)
    exponent = (other_c - c) + x * ((other_b - b) + x * (other_a - a))
    share = freq / (1 + tl.exp(tl.minimum(exponent, 700)))
    return tl.sum(share), tl.sum(share * x), tl.sum(share * x * x)


@triton.jit
def _upper_class(freq, x, level, tw, tf, ts, LEVELS: tl.constexpr, numbers):
    """The moments above the split of least within-class variance, an exact 2-means."""
    below, moment = tl.cumsum(freq), tl.cumsum(freq * x)
    weight = below * (tw - below)
    apart = moment * tw - tf * below
    splits = (weight > tl.load(numbers + _LEAST_SPLIT)) & (level < LEVELS - 1)
    between = tl.where(splits, apart * apart / tl.where(splits, weight, 1.0), 0.0)
    above = level > tl.argmax(between, axis=0, tie_break_left=True)
    kept = tl.where(above, freq, 0.0)
    return tl.sum(kept), tl.sum(kept * x), tl.sum(kept * x * x)


@triton.jit
def update(
    counts, ring, total, state, numbers, xi, length,
    LEVELS: tl.constexpr, BLOCK: tl.constexpr, MAX_STEPS: tl.constexpr,
    MIN_SAMPLES: tl.constexpr, BISECTIONS: tl.constexpr,
):
    """Take a histogram into the queue, and move the threshold: see ``cosa.mixture.host``.

    Squared extrapolation (SQUAREM: Varadhan and Roland, 2008) after every second iteration of EM.
    """
    level = tl.arange(0, BLOCK)
    known = level < LEVELS
    value = tl.load(state + _VALUE)
    pushed = tl.load(state + _PUSHED).to(tl.int64)
    missing = tl.load(counts + LEVELS + 1)
    taken = missing == 0
    slot = ring + (pushed % length) * LEVELS + level
    new = tl.load(counts + level, mask=known, other=0)
    # Rows that were never written are 0.
    old = tl.load(slot, mask=known, other=0)
    there = tl.load(total + level, mask=known, other=0)
    there = tl.where(taken, there + new - old, there)
    tl.store(slot, new.to(tl.int32), mask=known & taken)
    tl.store(total + level, there, mask=known & taken)

    x = level.to(tl.float64) / (LEVELS - 1)
    samples = tl.sum(there)
    enough = taken & (samples >= MIN_SAMPLES) & (tl.sum((there > 0).to(tl.int32)) >= 2)
    samples = tl.maximum(samples, 1).to(tl.float64)
    freq = there.to(tl.float64) / samples
    tw, tf, ts = tl.sum(freq), tl.sum(freq * x), tl.sum(freq * x * x)
    w, f, s = _upper_class(freq, x, level, tw, tf, ts, LEVELS, numbers)

    tolerance = tl.load(numbers + _TOLERANCE)
    step = 0
    going = enough
    while going:
        w1, f1, s1 = _iterate(w, f, s, tw, tf, ts, x, freq, numbers)
        w2, f2, s2 = _iterate(w1, f1, s1, tw, tf, ts, x, freq, numbers)
        sound = _is_gaussian(w2, f2, s2, numbers)
        sound = sound & _is_gaussian(tw - w2, tf - f2, ts - s2, numbers)
        moved = tl.maximum(tl.abs(w2 - w1), tl.maximum(tl.abs(f2 - f1), tl.abs(s2 - s1)))
        going = sound & (moved >= tolerance)
        dw, df, ds = w1 - w, f1 - f, s1 - s
        bw, bf, bs = w2 - w1 - dw, f2 - f1 - df, s2 - s1 - ds
        bend = tl.maximum(bw * bw + bf * bf + bs * bs, tl.load(numbers + _LEAST_BEND))
        far = tl.maximum(tl.sqrt((dw * dw + df * df + ds * ds) / bend), 1)
        lw = w + 2 * far * dw + far * far * bw
        lf = f + 2 * far * df + far * far * bf
        ls = s + 2 * far * ds + far * far * bs
        leaps = going & _is_gaussian(lw, lf, ls, numbers)
        leaps = leaps & _is_gaussian(tw - lw, tf - lf, ts - ls, numbers)
        w, f, s = tl.where(leaps, lw, w2), tl.where(leaps, lf, f2), tl.where(leaps, ls, s2)
        step += 1
        going = going & (step < MAX_STEPS)

    # A Gaussian that holds less than one sample has vanished.
    fits = enough & (tl.minimum(w, tw - w) * samples >= 1)
    w, f, s = tl.where(fits, w, tw / 2), tl.where(fits, f, tf / 2), tl.where(fits, s, ts / 2)
    swap = f * (tw - w) < (tf - f) * w
    w, f, s = tl.where(swap, tw - w, w), tl.where(swap, tf - f, f), tl.where(swap, ts - s, s)
    left, right = (tf - f) / tl.maximum(tw - w, 1e-30), f / tl.maximum(w, 1e-30)
    c, b, a = _coefficients(w, f, s, numbers)
    low_c, low_b, low_a = _coefficients(tw - w, tf - f, ts - s, numbers)
    c, b, a = c - low_c, b - low_b, a - low_a
    fits = fits & ((right - left) * (LEVELS - 1) >= 1)
    fits = fits & (c + left * (b + left * a) < 0) & (c + right * (b + right * a) > 0)
    # A parabola of opposite signs at the ends has one root in between.
    middle = left
    for _ in range(BISECTIONS):
        middle = (left + right) / 2
        under = c + middle * (b + middle * a) < 0
        left, right = tl.where(under, middle, left), tl.where(under, right, middle)

    smoothing = tl.load(numbers + _SMOOTHING)
    value = tl.where(fits, smoothing * value + (1 - smoothing) * middle, value)
    tl.store(state + _VALUE, value)
    tl.store(state + _PUSHED, (pushed + taken.to(tl.int64)).to(tl.float64))
    tl.store(state + _MISSING, tl.load(state + _MISSING) + missing.to(tl.float64))
    tl.store(xi, tl.where(taken, value, float("nan")).to(tl.float32))
