"""Measures of how certain a network is of a mask, of which the best is what infer.py tells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from cosa.cam import resize
from cosa.inference.certainty import TEMPERATURE, Promise
from cosa.inference.segmenter import CELLS, Maps
from cosa.network import CoSANetwork
from cosa.predict import scaled_size
from cosa.targets import cam_pseudo_labels, perplexity

MIRRORED, SMALLER, LARGER = "mirrored", 0.75, 1.25
VIEWS = (MIRRORED, SMALLER, LARGER)
"""How an image is seen once more: as its mirror image, and at other scales."""


@dataclass
class Seen:
    """What a network makes of one image, on a grid of ``CELLS`` cells for each position."""

    seg: Tensor
    """(C + 1, h, w) logits."""
    cam: Tensor
    """(C, h, w) in [0, 1], 0 for classes with a class score below 0."""
    presence: Tensor
    """(C,) probabilities of the class scores."""
    views: dict[str | float, Tensor]
    """Of ``VIEWS``, ``seg`` as it would be by that view alone."""
    threshold: float
    """xi, where the CAM becomes a pseudo-label."""

    @cached_property
    def probabilities(self) -> Tensor:
        """(C + 1, h, w)"""
        return self.seg.softmax(dim=0)

    @cached_property
    def mask(self) -> Tensor:
        """(h, w) int64"""
        return self.seg.max(dim=0).indices

    @cached_property
    def sorted(self) -> Tensor:
        """(2, h, w), the largest and the second largest probability."""
        return self.probabilities.topk(2, dim=0).values

    @cached_property
    def entropy(self) -> Tensor:
        """(h, w) in nats."""
        return entropy(self.probabilities)

    @cached_property
    def cam_labels(self) -> tuple[Tensor, Tensor]:
        """(h, w) pseudo-labels and their confidence."""
        labels, confidence = cam_pseudo_labels(self.cam[None], self.threshold)
        return labels[0], confidence[0]


@torch.no_grad()
def see(network: CoSANetwork, maps: Maps, image: Tensor, threshold: float) -> Seen:
    """What a network has made of an image, and what it makes of it seen in other ways.

    Args:
        maps: of both kinds, of all classes and of a single pass.
        image: (3, S, S) in [0, 1], the square that it saw.
        threshold: see ``Seen``.
    """
    cells = (image.shape[-1] // network.stride * CELLS,) * 2

    def look(scale: float, mirror: bool) -> Tensor:
        pixels = resize(image[None], scaled_size(image.shape[-2:], scale, network.stride))
        seg = network(pixels.flip(-1) if mirror else pixels).seg.float()
        return resize(seg.flip(-1) if mirror else seg, cells)[0]

    views = {view: look(1.0, True) if view == MIRRORED else look(view, False) for view in VIEWS}
    seg, cam = (resize(maps_of[None], cells)[0] if len(maps_of) else maps_of.new_zeros(0, *cells)
                for maps_of in (maps.seg, maps.cam))
    cams = seg.new_zeros(len(seg) - 1, *cells)
    cams[[label - 1 for label in maps.cam_classes]] = cam
    return Seen(seg, cams, maps.presence[1:], views, threshold)


def entropy(probabilities: Tensor) -> Tensor:
    """Of (K, h, w), in nats."""
    return -(probabilities * probabilities.clamp_min(1e-12).log()).sum(dim=0)


def mean_iou(first: Tensor, second: Tensor) -> float:
    """Of two masks of integers, over all classes that one of them holds."""
    both = first == second
    classes = torch.cat([first.unique(), second.unique()]).unique()
    shares = [(both & (first == k)).sum() / ((first == k) | (second == k)).sum() for k in classes]
    return float(torch.stack(shares).mean())


def mean_by_class(values: Tensor, mask: Tensor) -> float:
    """The mean over the classes of a mask of the mean of ``values`` over their positions."""
    return float(torch.stack([values[mask == k].mean() for k in mask.unique()]).mean())


def _agreement(
    compare: Callable[[Tensor, Tensor], float], views: Sequence[str | float]
) -> Callable[[Seen], float]:
    """The mean of a comparison of the mask with those of other views."""
    def measure(seen: Seen) -> float:
        others = [seen.views[view].max(dim=0).indices for view in views]
        return float(np.mean([compare(seen.mask, other) for other in others]))

    return measure


def _divergence(views: Sequence[str | float]) -> Callable[[Seen], float]:
    """Minus the mean Jensen-Shannon divergence of the probabilities of all views."""
    def measure(seen: Seen) -> float:
        every = [seen.probabilities, *(seen.views[view].softmax(dim=0) for view in views)]
        mixed = entropy(sum(every) / len(every))
        return -float((mixed - sum(map(entropy, every)) / len(every)).mean())

    return measure


def pixels_alike(first: Tensor, second: Tensor) -> float:
    """The share of the positions at which two masks agree."""
    return float((first == second).float().mean())


def shown_and_scored(seen: Seen) -> float:
    """Minus how much the classes of the mask differ from the class scores, summed."""
    shown = torch.zeros_like(seen.presence)
    shown[seen.mask[seen.mask > 0].unique() - 1] = 1
    return -float((shown - seen.presence).abs().sum())


def eq4(seen: Seen) -> float:
    """Minus the mean perplexity of the CAM's pseudo-labels, Eq. (4) of CoSA."""
    return -float(perplexity(seen.cam_labels[1], seen.threshold).mean())


def promised(
    missed: Callable[[Promise, Tensor], Tensor] | None, temperature: float = TEMPERATURE
) -> Callable[[Seen], float]:
    """The mean IoU that the probabilities promise, over the classes of the mask and ``missed``.

    Args:
        missed: how much each class that the mask does not show counts in the mean, out of the
            sums and the class scores, (K,) each; None: nothing.
    """
    def measure(seen: Seen) -> float:
        presence = torch.cat([seen.presence.new_ones(1), seen.presence]).double()
        promise = Promise(presence, temperature)
        promise.add(seen.seg)
        others = missed(promise, presence) if missed else torch.zeros_like(presence)
        return float(promise.ious.sum() / torch.where(promise.shown, 1.0, others).sum())

    return measure


def _both(promise: Promise, presence: Tensor) -> Tensor:
    return 1 - (1 - promise.peak) * (1 - presence)


CHOSEN = "promised IoU, classes not shown by positions and class scores"
"""The row of what infer.py tells."""

_both_alike = _agreement(mean_iou, VIEWS)
_cam_alike = "CAM against mask: IoU"

MEASURES: dict[str, Callable[[Seen], float]] = {
    "probability of the mask, mean over pixels": lambda seen: float(seen.sorted[0].mean()),
    "the same, mean over classes": lambda seen: mean_by_class(seen.sorted[0], seen.mask),
    "margin": lambda seen: float((seen.sorted[0] - seen.sorted[1]).mean()),
    "entropy": lambda seen: -float(seen.entropy.mean()),
    "entropy, mean over classes": lambda seen: -mean_by_class(seen.entropy, seen.mask),
    "perplexity: exp(entropy)": lambda seen: -float(seen.entropy.exp().mean()),
    "perplexity of Eq. (4)": eq4,
    "both perplexities, summed": lambda seen: eq4(seen) - float(seen.entropy.exp().mean()),
    "class scores: distance from 1/2": lambda seen: float((seen.presence - 0.5).abs().mean()),
    "class scores against classes of the mask": shown_and_scored,
    "classes of the mask, few to many": lambda seen: -float(len(seen.mask.unique())),
    "CAM against mask: pixels": lambda seen: pixels_alike(seen.cam_labels[0], seen.mask),
    _cam_alike: lambda seen: mean_iou(seen.cam_labels[0], seen.mask),
    "flip: divergence": _divergence([MIRRORED]),
    "flip: IoU of the masks": _agreement(mean_iou, [MIRRORED]),
    "scales: divergence": _divergence([SMALLER, LARGER]),
    "scales: IoU of the masks": _agreement(mean_iou, [SMALLER, LARGER]),
    "flip and scales: IoU of the masks": _both_alike,
    "promised IoU, of the classes of the mask": promised(None),
    "promised IoU, classes not shown by positions": promised(lambda promise, _: promise.peak),
    "promised IoU, classes not shown by class scores": promised(lambda _, presence: presence),
    CHOSEN: promised(_both),
    "the bold one at temperature 1": promised(_both, 1.0),
    "the bold one times the IoU of flip and scales":
        lambda seen: promised(_both)(seen) * _both_alike(seen),
    "the bold one times the IoU of CAM and mask":
        lambda seen: promised(_both)(seen) * MEASURES[_cam_alike](seen),
}
"""Row of the table -> a number of an image, the larger the more certain."""

PASSES = {"flip:": 2, "scales:": 3, "flip and": 4, "the bold one times the IoU of flip": 4}
"""Passes of the network that rows beginning so need; the others need one."""


def passes(row: str) -> int:
    """How many passes of the network a measure needs."""
    return next((count for start, count in PASSES.items() if row.startswith(start)), 1)
