"""From pixels to what networks see, and from their maps to labels of pixels, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor

from cosa.cam import MapRows, strips
from cosa.core.tensors import in_float64
from cosa.targets import cam_pseudo_labels

Size = tuple[int, int]
"""(height, width)"""


class Tally:
    """How much of an image each of some labels has, and how surely.

    Attributes:
        pixels: of each label, (K,) int64 on the CPU.
    """

    def __init__(self, labels: int) -> None:
        self.pixels = torch.zeros(labels, dtype=torch.int64)
        self._total = torch.zeros(labels, dtype=torch.float64)

    def add(self, labels: Tensor, probability: Tensor) -> None:
        """Count (h, w) pixels with int64 labels and the probabilities of these."""
        flat, count = labels.flatten(), len(self.pixels)
        self.pixels += torch.bincount(flat, minlength=count).cpu()
        sure = in_float64(probability.flatten())
        self._total += torch.bincount(flat.to(sure.device), sure, minlength=count).cpu()

    @property
    def probability(self) -> Tensor:
        """Mean of each label over its pixels, (K,) float64; NaN for a label without pixels."""
        return self._total / self.pixels


@torch.inference_mode()
def labels_in_strips(
    scores: Tensor | MapRows, size: Size, passes: int | None = None, tally: Tally | None = None
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Argmax of scores, resized to ``size``, a few rows at a time.

    Args:
        scores: (K, h, w), K <= 256: logits summed over ``passes``, or probabilities.
        size: (H, W).
        passes: number of passes in the sum; None for probabilities.
        tally: counts the labels, if given.

    Yields:
        The rows, their labels (h, W) uint8 on the CPU and, where there is a tally, the labels'
        probabilities (h, W) float32. For logits these are the softmax of their mean over the
        passes.
    """
    for part, wide in strips(scores, size):
        # Not argmax(), which is slower across the channels on the CPU.
        best, sure = wide.max(dim=0), None
        if tally is not None:
            sure = best.values
            if passes is not None:
                sure = ((wide - best.values) / passes).exp().sum(dim=0).reciprocal()
            tally.add(best.indices, sure)
        yield part, best.indices.byte().cpu(), sure


def argmax_at_size(scores: Tensor, size: Size) -> Tensor:
    """Argmax of scores (K, h, w), K <= 256, resized to ``size``: (H, W) uint8 on the CPU."""
    mask = torch.empty(size, dtype=torch.uint8)
    for part, labels, _ in labels_in_strips(scores, size):
        mask[part] = labels
    return mask


def argmax_and_probability(
    scores: Tensor, size: Size, passes: int | None, of_pixels: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """``argmax_at_size``, with how much of the image each label has, and how surely.

    Args:
        scores, size, passes: see ``labels_in_strips``.
        of_pixels: (H, W) on the CPU, filled with the probability of each pixel's label, if given.

    Returns:
        The mask, the pixels of each label (K,) int64, and the mean probability of each label
        over its pixels (K,) float64, NaN for a label without pixels; all on the CPU.
    """
    mask, tally = torch.empty(size, dtype=torch.uint8), Tally(len(scores))
    for part, labels, sure in labels_in_strips(scores, size, passes, tally):
        mask[part] = labels
        if of_pixels is not None:
            of_pixels[part] = sure.cpu()
    return mask, tally.pixels, tally.probability


@torch.inference_mode()
def pseudo_labels_at_size(cam: Tensor, size: Size, threshold: float) -> Tensor:
    """CAM pseudo-labels (Eq. 3 of CoSA) at the size of the image.

    Args:
        cam: (N, h, w) in [0, 1], of the classes that the image holds; N may be 0.
        size: (H, W).
        threshold: xi in [0, 1].

    Returns:
        (H, W) uint8 on the CPU: 0 background, n the n-th map.
    """
    labels = torch.zeros(size, dtype=torch.uint8)
    if len(cam):
        for part, wide in strips(cam, size):
            labels[part] = cam_pseudo_labels(wide[None], threshold)[0][0].byte().cpu()
    return labels


def shrunk(size: Size, longest: int) -> Size:
    """``size`` (height, width), in proportion, so that no side is above ``longest``."""
    factor = min(1.0, longest / max(size))
    height, width = (max(1, round(side * factor)) for side in size)
    return height, width


def resized(image: Image.Image, size: Size) -> Image.Image:
    """An RGB image at (height, width), bilinear, antialiased; itself where that is its size.

    Across before down, which Pillow would decide by the sides: so does
    ``cosa.data.shrinking.resized_rows`` with images that are not held.
    """
    for target in ((size[1], image.height), size[::-1]):
        if image.size != target:
            image = image.resize(target, Image.Resampling.BILINEAR)
    return image
