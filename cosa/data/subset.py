"""A part of the images of a data set, which is a data set itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from cosa.data.base import SegmentationDataset
from cosa.data.images import LazyImage


class Subset(SegmentationDataset):
    """Some images of ``whole``, in the order of ``indices``; nothing is copied.

    Args:
        whole: a data set of N images.
        indices: of some of them, in 0..N-1, each once.
    """

    def __init__(self, whole: SegmentationDataset, indices: Sequence[int]) -> None:
        self.whole, self.indices = whole, list(indices)
        self.classes, self.palette = whole.classes, whole.palette
        self.names = [whole.names[index] for index in self.indices]
        self.labels = whole.labels[self.indices]
        self.has_masks = any(map(self.has_mask, range(len(self))))

    def image(self, index: int) -> Image.Image:
        return self.whole.image(self.indices[index])

    def open_image(self, index: int) -> Image.Image | LazyImage:
        return self.whole.open_image(self.indices[index])

    def image_size(self, index: int) -> tuple[int, int]:
        return self.whole.image_size(self.indices[index])

    def has_mask(self, index: int) -> bool:
        return self.whole.has_mask(self.indices[index])

    def mask(self, index: int) -> np.ndarray | None:
        return self.whole.mask(self.indices[index])

    def mask_source(self, index: int) -> str:
        return self.whole.mask_source(self.indices[index])

    def check(self) -> None:
        """Check the whole: what is left out here is often wanted later, after hours of training."""
        super().check()
        self.whole.check()


def halves(dataset: SegmentationDataset) -> tuple[Subset, Subset]:
    """The first half of the images by sorted name, which has the odd one, and the second half."""
    order = sorted(range(len(dataset)), key=dataset.names.__getitem__)
    middle = (len(order) + 1) // 2
    return Subset(dataset, order[:middle]), Subset(dataset, order[middle:])


def with_masks(dataset: SegmentationDataset) -> SegmentationDataset:
    """The images that have a mask: the data set itself if all have one."""
    masked = [index for index in range(len(dataset)) if dataset.has_mask(index)]
    return dataset if len(masked) == len(dataset) else Subset(dataset, masked)
