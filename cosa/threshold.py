"""The dynamic threshold between background and foreground (Eq. 6 of CoSA).

The confidences of the last batches are taken as a mixture of two Gaussians; the threshold is the
point between their means where the weighted densities cross (``cosa.mixture``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cosa.core.errors import NotFiniteError
from cosa.mixture import LEVELS, fit_threshold

_LEFT_OUT, _MISSING = LEVELS, LEVELS + 1


class Fit(Protocol):
    """A queue and its threshold on a GPU: ``cosa.mixture.device.DeviceFit``."""

    xi: Tensor

    def push(self, counts: Tensor) -> None: ...

    def read(self) -> tuple[float, int]: ...

    def rows(self) -> Tensor: ...


OnGpu = Callable[[float, Tensor, int, float, float, torch.device], Fit | None]
"""Makes a ``Fit``, see ``DeviceFit``; None where there is none."""


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
        on_gpu: asked once, when the first confidences come from a GPU; what it makes fits there,
            and ``newest`` waits for nothing. Without one the host fits.

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
        on_gpu: OnGpu = lambda *given: None,
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
        self._all_sum, self._on_gpu = all_sum, on_gpu
        self._fit: Fit | None = None
        self._asked = False
        self._value = float(initial)
        self._pending: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()
        self._queue: deque[np.ndarray] = deque(maxlen=queue_length)
        self._total = np.zeros(LEVELS, dtype=np.int64)

    @property
    def value(self) -> float:
        """The threshold ξ in [0, 1], fitted to all batches that were pushed.

        It stays as it is while the queue allows no fit: too few samples, no spread, or Gaussians
        whose densities do not cross between their means.

        Raises:
            NotFiniteError: a confidence of the newest batch is NaN, or on a GPU of one since this
                was last read; such a batch is dropped.
        """
        self._take_pending()
        if self._fit is not None:
            self._value, missing = self._fit.read()
            if missing:
                raise NotFiniteError(f"{missing} confidences of the last steps are NaN")
        return self._value

    @property
    def newest(self) -> float | Tensor:
        """``value``, but of a fit on a GPU as a tensor (), float32, for which the host waits not.

        That is NaN, and nothing raised, if a confidence of the newest batch is NaN.
        """
        return self.value if self._fit is None else self._fit.xi

    def distribution(self) -> np.ndarray:
        """The confidences that ξ is fitted to: (LEVELS,) int64, how many are 0, 1/500 .. 1.

        Raises:
            NotFiniteError: see ``value``.
        """
        return np.sum(self._rows(), axis=0, dtype=np.int64)

    @property
    def started(self) -> bool:
        """Whether any batch was taken in; before, ``value`` is the initial one."""
        return self._fit is not None or len(self._queue) + len(self._pending) > 0

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
            if self._fits_on(counts.device):
                self._fit.push(counts)
                return
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
        histogram = counts[:LEVELS].numpy().astype(np.int32)
        if len(self._queue) == self._queue.maxlen:
            self._total -= self._queue[0]
        self._queue.append(histogram)
        self._total += histogram
        fit = fit_threshold(self._total, self.variance_floor)
        if fit is not None:
            self._value = self.smoothing * self._value + (1 - self.smoothing) * fit

    def _fits_on(self, device: torch.device) -> bool:
        """Whether the fit is made on a device, to which the queue moves at the first time."""
        if not self._asked:
            self._asked = True
            rows = torch.from_numpy(self._rows())
            self._fit = self._on_gpu(self._value, rows, self._queue.maxlen, self.smoothing,
                                     self.variance_floor, device)
        return self._fit is not None

    def _rows(self) -> np.ndarray:
        """The histograms in the queue, oldest first, (n, LEVELS) int32."""
        self._take_pending()
        if self._fit is not None:
            return self._fit.rows().numpy()
        return np.array(self._queue, dtype=np.int32).reshape(-1, LEVELS)

    def state_dict(self) -> dict[str, Any]:
        """The threshold and the queue: ``value`` float, ``histograms`` (n, levels) int32."""
        value = self.value  # takes in what is pending
        return {"value": value, "histograms": torch.from_numpy(self._rows())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict``; of a longer queue the newest batches are kept.

        Raises:
            ValueError: the state is of another histogram.
        """
        rows = state["histograms"]
        if rows.dim() != 2 or rows.shape[1] != LEVELS:
            raise ValueError(f"histograms must have shape (n, {LEVELS}), got {tuple(rows.shape)}")
        self._value = float(state["value"])
        self._fit, self._asked = None, False
        self._pending.clear()
        self._queue.clear()
        self._queue.extend(rows.cpu().numpy().astype(np.int32))
        self._total = np.sum(self._queue, axis=0, dtype=np.int64) + np.zeros(LEVELS, np.int64)


def _histogram(confidence: Tensor, counted: Tensor | None, min_confidence: float) -> Tensor:
    """Count the confidences above the minimum per level, on their device: (levels + 2,) int64.

    The last two bins take what is left out and what is not a number: one transfer tells all.
    """
    flat = torch.as_tensor(confidence).detach().flatten()
    if flat.dtype != torch.float64:
        flat = flat.float()
    missing = torch.isnan(flat)
    level = (flat.clamp(0, 1) * (LEVELS - 1)).round().masked_fill(missing, 0).long()
    if min_confidence > 0:
        level = level.masked_fill(flat <= min_confidence, _LEFT_OUT)
    level = level.masked_fill(missing, _MISSING)
    if counted is not None:
        level = level.masked_fill(~counted.flatten(), _LEFT_OUT)
    # Unlike bincount, this needs no look at the largest level, for which the host would wait.
    return level.new_zeros(LEVELS + 2).scatter_add_(0, level, torch.ones_like(level))
