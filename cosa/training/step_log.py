"""Losses of the steps, kept on the device until somebody wants to read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cosa.core import distributed
from cosa.core.errors import NotFiniteError, not_finite

MOST_PENDING = 100
"""So many steps at most go by before a diverged training is noticed."""


class DivergedError(NotFiniteError):
    """A step was not finite.

    Attributes:
        iteration: which step, counted from 0.
        terms: names of the loss terms that are not finite.
        index: (B,) the indices of its images in the data set.
    """

    def __init__(self, loss: float, iteration: int, terms: list[str], index: Tensor) -> None:
        super().__init__(not_finite(loss))
        self.iteration, self.terms, self.index = iteration, terms, index


@dataclass
class _Step:
    iteration: int
    names: tuple[str, ...]
    values: Tensor  # (2 + T,) float32: loss, norm of the gradient, each term
    index: Tensor


class StepLog:
    """Collects what the steps yield; the host reads many of them in one transfer.

    Means are over the steps since the last :meth:`take_means`.
    """

    def __init__(self) -> None:
        self._pending: list[_Step] = []
        self._sums: dict[str, tuple[float, int]] = {}

    def add(
        self, iteration: int, loss: Tensor, norm: Tensor, terms: Mapping[str, Tensor],
        index: Tensor,
    ) -> None:
        """Note a step without waiting for the device.

        Args:
            iteration: counted from 0.
            loss, norm: the scalar loss and the norm of its gradient.
            terms: name -> scalar.
            index: (B,) the indices of the batch's images in the data set.
        """
        scalars = [value.detach().float() for value in (loss, norm, *terms.values())]
        self._pending.append(_Step(iteration, tuple(terms), torch.stack(scalars), index))

    @property
    def full(self) -> bool:
        """Whether :meth:`settle` should be called for the number of steps that were noted."""
        return len(self._pending) >= MOST_PENDING

    def settle(self) -> None:
        """Read the noted steps, means over all processes: one transfer, for which the host waits.

        Raises:
            DivergedError: one was not finite.
        """
        steps, self._pending = self._pending, []
        if not steps:
            return
        values = distributed.all_mean(torch.cat([step.values for step in steps])).cpu().numpy()
        ends = np.cumsum([len(step.values) for step in steps])
        for step, row in zip(steps, np.split(values, ends[:-1]), strict=True):
            self._require_finite(step, row)
            for name, value in zip(("loss", *step.names), (row[0], *row[2:]), strict=True):
                total, count = self._sums.get(name, (0.0, 0))
                self._sums[name] = (total + float(value), count + 1)

    def take_means(self) -> dict[str, float]:
        """Name -> mean of "loss" and of each term over the settled steps, which are forgotten.

        A term that began in between is averaged over the steps that had it.
        """
        means = {name: total / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """The sums of the settled steps, for a checkpoint."""
        return {name: list(entry) for name, entry in self._sums.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict`."""
        self._pending = []
        self._sums = {name: (float(total), int(count)) for name, (total, count) in state.items()}

    @staticmethod
    def _require_finite(step: _Step, row: np.ndarray) -> None:
        if np.isfinite(row).all():
            return
        bad = [name for name, value in zip(step.names, row[2:], strict=True)
               if not np.isfinite(value)]
        raise DivergedError(float(row[0]), step.iteration, bad, step.index)
