"""Which images are trained on, and in which order: once each in a pass, or rare classes more often.

The order of a pass is a function of (seed, pass), so that a stream goes on exactly wherever it was
interrupted, in any number of processes.
"""

from __future__ import annotations

import numpy as np

from cosa.core.errors import UserError

# Keeps the draws that order a pass apart from those that make a sample.
_ORDER = 0


def trained_on(labels: np.ndarray, negatives: bool = False) -> np.ndarray:
    """The indices of the images that take part in a training, ascending.

    Args:
        labels: (N, C), positive means present.
        negatives: images without a label take part, too.

    Raises:
        UserError: no image has a label.
    """
    labelled = (labels > 0).any(axis=1)
    if not labelled.any():
        raise UserError("no training image has a label, so there is nothing to learn from; "
                        "check the labels of the training split")
    return np.arange(len(labels)) if negatives else np.flatnonzero(labelled)


def image_weights(labels: np.ndarray, exponent: float) -> np.ndarray:
    """(N,) float64: how often each image is drawn, in proportion: n ** -exponent.

    n is the number of images that hold the rarest class of this one. Images without any class are
    a class of their own.

    Args:
        labels: (N, C), positive means present; of the images that take part alone.
        exponent: 0 draws all alike, 1 by inverse frequency.
    """
    present = labels > 0
    held = np.concatenate([present, ~present.any(axis=1, keepdims=True)], axis=1)
    rarest = np.where(held, held.sum(axis=0), len(held)).min(axis=1)
    return rarest.astype(np.float64) ** -exponent


class Order:
    """Image after image, pass after pass, each in a new order drawn from (seed, pass).

    Args:
        labels: (N, C) of the whole data set.
        seed: non-negative integer.
        negatives: see :func:`trained_on`.
        balance: the exponent of :func:`image_weights`. At 0 a pass holds each image once. Above, it
            holds as many images, each as often as its weight says, rounded up or down by chance.

    Attributes:
        images: the indices of those that take part.

    Raises:
        UserError: no image has a label.
    """

    def __init__(
        self, labels: np.ndarray, seed: int, negatives: bool = False, balance: float = 0.0
    ) -> None:
        self.images = trained_on(labels, negatives)
        self.seed = seed
        self._weights = image_weights(labels[self.images], balance) if balance else None
        self._pass, self._order = -1, self.images

    def __getitem__(self, position: int) -> int:
        """Index in the data set of the image at a position of the endless stream, from 0."""
        number, place = divmod(position, len(self.images))
        if number != self._pass:
            self._order, self._pass = self._drawn(number), number
        return int(self._order[place])

    def _drawn(self, number: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, _ORDER, number))
        if self._weights is None:
            return rng.permutation(self.images)
        # Systematic sampling: equal steps over the weights, laid side by side in a random order.
        shuffled, count = rng.permutation(len(self.images)), len(self.images)
        ends = np.cumsum(self._weights[shuffled])
        steps = (np.arange(count) + rng.random()) / count * ends[-1]
        drawn = np.searchsorted(ends, steps, side="right").clip(max=count - 1)
        return rng.permutation(self.images[shuffled[drawn]])
