"""What a checkpoint holds, by the types that it is checked against before anything is taken up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

from torch import Tensor

from cosa.core.declared import Within

Iteration = Annotated[int, Within(0, 2**53)]


@dataclass
class State:
    """Where a run is; all of it is in the checkpoint."""

    iteration: Iteration = 0
    """How many are done."""
    evaluated: Iteration = 0
    """The iteration of the last evaluation that came to its end."""
    best: float = -1.0
    """The highest validation score so far."""
    seconds: float = 0.0
    """Of training and of the evaluations in between."""
    images: Annotated[int, Within(0, 2**53)] = 0
    """How many are trained on; 0 in checkpoints of earlier versions, which do not say."""


class _Moments(TypedDict):
    step: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


class _Optimizer(TypedDict):
    state: dict[int, _Moments]
    param_groups: list[dict[str, Any]]


class _Threshold(TypedDict):
    value: Annotated[float, Within(0, 1)]
    histograms: Tensor


class _About(TypedDict):
    classes: list[str]
    config: dict[str, Any]


class _Best(TypedDict):
    about: dict[str, Any]
    assignment: dict[str, Tensor]


class _Required(TypedDict):
    about: _About
    online: dict[str, Tensor]
    assignment: dict[str, Tensor]
    thresholds: dict[str, _Threshold]
    optimizer: _Optimizer
    rng: dict[str, Tensor]
    state: State


class Saved(_Required, total=False):
    """What resuming reads of a checkpoint; earlier versions' lack the rest."""

    regularizers: dict[str, Tensor]
    log: dict[str, tuple[float, Annotated[int, Within(1, 2**31)]]]
    best: _Best | None
