"""Maps of the classes that an image holds, without those of the others.

An image of VOC holds one or two of twenty classes, one of COCO three of eighty. Pseudo-labels
know of no other class, so the assignment network's maps are enlarged to pixels, scaled and fused
for these alone: the same result for a fraction of the memory and time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cosa.core.tensors import present_index


@dataclass(frozen=True)
class PresentClasses:
    """Which classes the images of a batch hold: K places per image, in the order of the classes.

    An image with fewer than K classes fills its last places with classes that it does not hold.
    """

    index: Tensor
    """(B, K) int64 in 0..C-1, which class is in which place."""
    held: Tensor
    """(B, K) bool, False for the places that only fill up."""
    num_classes: int
    """C."""

    @classmethod
    def of(cls, image_labels: Tensor, index: Tensor | None = None) -> PresentClasses:
        """Those of image-level labels.

        Args:
            image_labels: (B, C) of any dtype, positive means present.
            index: what :func:`present_index` made of these labels before they were moved to a
                CUDA device; without it, the host waits for the device to learn K.
        """
        if index is None:
            index = present_index(image_labels)
        return cls(index, image_labels.gather(1, index) > 0, image_labels.shape[1])

    def select(self, maps: Tensor, background: bool = False) -> Tensor:
        """The maps of the present classes: (B, C, h, w) to (B, K, h, w).

        Args:
            background: the maps are (B, C + 1, h, w) and their first channel, that of the
                background, is kept: the result is (B, K + 1, h, w).
        """
        index = self._with_background() if background else self.index
        return maps.gather(1, index[:, :, None, None].expand(-1, -1, *maps.shape[-2:]))

    def spread(self, maps: Tensor, background: bool = False) -> Tensor:
        """The inverse of :meth:`select`: (B, K, h, w) to (B, C, h, w), 0 for absent classes."""
        index = self._with_background() if background else self.index
        channels = self.num_classes + background
        full = maps.new_zeros(maps.shape[0], channels, *maps.shape[-2:])
        index = index[:, :, None, None].expand_as(maps)
        return full.scatter_(1, index, maps)

    def name(self, places: Tensor) -> Tensor:
        """Labels by place, (B, H, W) int64 in 0..K with 0 the background, as labels by class."""
        index = self._with_background()
        return index.gather(1, places.flatten(1)).view_as(places)

    def _with_background(self) -> Tensor:
        return torch.cat([torch.zeros_like(self.index[:, :1]), self.index + 1], dim=1)
