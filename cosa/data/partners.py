"""The training stream of CSD: an image of several classes brings one of a single class along.

"Cross-domain Semantic Decoupling for Weakly-Supervised Semantic Segmentation" (CSD; Yang, Ke,
Hancke and Lau, BMVC 2023), Sec. 3.2. From the partner, as it is called here, objects and
background are pasted: see ``cosa.regularizers.semantic_decoupling``.
"""

from __future__ import annotations

import numpy as np
import torch

from cosa.core.terminal import note
from cosa.data.base import SegmentationDataset
from cosa.data.loader import TrainingViews
from cosa.data.transforms import training_views

# Keeps the draws of the partner apart from those of the loader, which are keyed 0 and 1.
_PARTNER = 2


def cooccurrence(labels: np.ndarray) -> np.ndarray:
    """How often one class comes with another: Eq. (1) of CSD.

    Args:
        labels: (N, C) image-level labels; nonzero means present.

    Returns:
        P (C, C) float64. P_ij is the number of images with the classes i and j (for i = j: with
        class i, alone or not), divided by the sum of row i. Rows sum to 1; those of classes
        without an image are 0.
    """
    present = (np.asarray(labels) != 0).astype(np.float64)
    counts = present.T @ present
    totals = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)


class PartnerViews(TrainingViews):
    """The training stream, in which each multi-label image has a single-label partner.

    The class of the partner is drawn with the probabilities of :meth:`class_probabilities`, then
    an image of this class alone, uniformly. Both are drawn from (seed, position) as its view is,
    apart from the sample's own draws: without their partners, the samples are those of
    ``TrainingViews``.

    Args:
        dataset: where images and labels come from.
        seed: non-negative integer.
        options: keyword arguments of ``TrainingViews``.

    Raises ``UserError`` if no image has a label.
    """

    def __init__(self, dataset: SegmentationDataset, seed: int, **options) -> None:
        super().__init__(dataset, seed, **options)
        present = dataset.labels != 0
        single = present.sum(axis=1) == 1
        self._single_label = [np.flatnonzero(single & column) for column in present.T]
        pasted = np.array([len(images) > 0 for images in self._single_label])
        self._chances = cooccurrence(present) * pasted
        if not pasted.any():
            note("csd: no training image has a single label, so there is nothing to paste and "
                 "its terms stay 0")
        elif (present.sum(axis=1) < 2).all():
            note("csd: no training image has several labels, so nothing is pasted and its terms "
                 "stay 0")
        elif unpasted := [
            name for name, seen, usable
            in zip(dataset.classes, present.any(axis=0), pasted, strict=True)
            if seen and not usable
        ]:
            note("csd: classes that no training image has as its only label are never pasted: "
                 + ", ".join(unpasted))

    def class_probabilities(self, index: int) -> np.ndarray:
        """(C,) float64: how likely image ``index`` gets a partner of each class.

        Proportional to the sum of P_kj over the image's classes k (:func:`cooccurrence`), over
        the classes j that have a single-label image. All 0 if none of these has a chance, and
        for an image that is no multi-label image.
        """
        classes = np.flatnonzero(self.dataset.labels[index])
        if len(classes) < 2:
            return np.zeros(len(self._chances))
        chances = self._chances[classes].sum(axis=0)
        return chances / (chances.sum() or 1.0)

    def draw_partner(self, index: int, rng: np.random.Generator) -> tuple[int, int] | None:
        """Class, from 0, and index of a partner for image ``index``; None if there is none."""
        probabilities = self.class_probabilities(index)
        if not probabilities.any():
            return None
        partner_class = int(rng.choice(len(probabilities), p=probabilities))
        return partner_class, int(rng.choice(self._single_label[partner_class]))

    def __getitem__(self, position: int) -> dict:
        """The sample at ``position``, with its partner.

        Returns what ``TrainingViews`` does, and partner (S, S, 3) uint8, the weak view;
        partner_valid (S, S) bool, False in its padding; partner_class, from 0. A sample
        without a partner has zeros, False and -1.
        """
        sample = super().__getitem__(position)
        rng = np.random.default_rng((self.seed, _PARTNER, position))
        drawn = self.draw_partner(sample["index"], rng)
        if drawn is None:
            partner_class = -1
            views = {key: torch.zeros_like(sample[key]) for key in ("weak", "valid")}
        else:
            partner_class, index = drawn
            # Only the weak view is used; the strong one would be made for nothing.
            options = self.augment | {"strong": False}
            views = training_views(self.dataset.open_image(index), rng, **options)
        return sample | {
            "partner": views["weak"],
            "partner_valid": views["valid"],
            "partner_class": partner_class,
        }
