"""Training images that stay decoded in memory, for machines whose processors are few."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from cosa.data.base import SegmentationDataset
from cosa.data.images import Decoded, LazyImage


class KeptImages(SegmentationDataset):
    """A data set whose images are decoded once and then kept, by the process that asks for them.

    The pixels are those of the data set itself. Pillow takes four bytes for each, and for those of
    WebP and AVIF files as much again, which their decoders keep.
    """

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.classes, self.palette = dataset.classes, dataset.palette
        self.names, self.labels = dataset.names, dataset.labels
        self._dataset = dataset
        self._kept: dict[int, Image.Image | KeptImage] = {}

    @property
    def has_masks(self) -> bool:
        return self._dataset.has_masks

    def image(self, index: int) -> Image.Image:
        image = self.open_image(index)
        return image.decode().image if isinstance(image, LazyImage) else image

    def open_image(self, index: int) -> Image.Image | LazyImage:
        if index not in self._kept:
            image = self._dataset.open_image(index)
            if isinstance(image, LazyImage):
                image = KeptImage(image, lambda: self._dataset.open_image(index))
            self._kept[index] = image
        return self._kept[index]

    def has_mask(self, index: int) -> bool:
        return self._dataset.has_mask(index)

    def mask(self, index: int) -> np.ndarray | None:
        return self._dataset.mask(index)

    def check(self) -> None:
        self._dataset.check()


class KeptImage(LazyImage):
    """An image that is decoded once for each fraction of its size that is asked for."""

    def __init__(self, image: LazyImage, reopen: Callable[[], LazyImage]) -> None:
        self.size, self.reducible = image.size, image.reducible
        self._image: LazyImage | None = image
        self._reopen = reopen
        self._decoded: dict[int, Decoded] = {}

    def decode(self, shrink: float = 1.0) -> Decoded:
        reduction = self.reduction(shrink)
        if reduction not in self._decoded:
            image, self._image = self._image or self._reopen(), None
            self._decoded[reduction] = image.decode(shrink)
        return self._decoded[reduction]
