"""How sure the network is of a mask: the IoU that its own probabilities promise.

Chosen among other measures by how well it orders photographs by their true IoU: docs/review.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cosa.core.tensors import in_float64

TEMPERATURE = 0.5
"""Of the softmax over the classes; below 1, since training leaves probabilities that are lower
than how often they are right."""


class Promise:
    """Sums over the positions of an image, out of which ``certainty`` comes.

    For who sees an image in parts: those must be of one grid, and no position in two of them.

    Args:
        presence: (K,) as of ``certainty``.
        temperature: of the softmax.
    """

    def __init__(self, presence: Tensor, temperature: float = TEMPERATURE) -> None:
        self._presence, self._temperature = in_float64(presence), temperature
        # Per class: the area of its mask, the sums of its probabilities within it and in all
        # positions, and the largest.
        self._area, self._inside, self._total, self.peak = self._presence.new_zeros(
            4, len(presence))

    @torch.inference_mode()
    def add(self, scores: Tensor, passes: int = 1) -> None:
        """Add positions: (K, h, w) as of ``certainty``, on the device of ``presence``."""
        flat = scores.flatten(1).float()
        labels = flat.max(dim=0).indices
        probabilities = (flat / (passes * self._temperature)).softmax(dim=0)
        sure = in_float64(probabilities.gather(0, labels[None])[0])
        labels = labels.to(sure.device)
        self._area += torch.bincount(labels, minlength=len(scores))
        self._inside += torch.bincount(labels, sure, minlength=len(scores))
        self._total += in_float64(probabilities.sum(dim=1))
        self.peak = torch.maximum(self.peak, in_float64(probabilities.amax(dim=1)))

    @property
    def shown(self) -> Tensor:
        """(K,) bool, which classes the mask shows."""
        return self._area > 0

    @property
    def ious(self) -> Tensor:
        """(K,) float64, the IoU of each class, 0 if it is not shown."""
        return self._inside / (self._area + self._total - self._inside).clamp_min(1e-12)

    def value(self) -> float:
        """The certainty of all positions so far, of which there must be one."""
        missed = 1 - (1 - self.peak) * (1 - self._presence)
        return float(self.ious.sum() / torch.where(self.shown, 1.0, missed).sum())


def certainty(scores: Tensor, presence: Tensor, passes: int = 1) -> float:
    """The mean IoU over the classes of an image that the network's own probabilities promise.

    Let p_k be the softmax of the mean logits at ``TEMPERATURE``, and m the positions at which
    class k has the largest. The IoU of k is taken for (Σ p_k over m) / (|m| + Σ p_k outside of
    m). A class without any position has an IoU of 0 if the truth shows it, and counts in the mean
    with the chance of that: 1 - (1 - the largest p_k) (1 - its presence).

    Args:
        scores: (K, h, w) logits of the classes that take part, summed over ``passes``, on any
            device; on the network's grid, or one a few times as fine.
        presence: (K,) in [0, 1], with which probability the image holds the class, whatever its
            positions say: the sigmoid of its class score; 1 for the background and where it is
            known. On the device of the scores.
        passes: predictions in the sum, over scales and flips.

    Returns:
        In [0, 1]; 1 where nothing is in doubt.
    """
    promise = Promise(presence)
    promise.add(scores, passes)
    return promise.value()
