"""A data set of noise with given labels, and views of it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from cosa.data.base import SegmentationDataset
from cosa.pictures.palette import voc_palette

AUGMENT = dict(crop_size=16, scale_min=0.5, scale_max=2.0, flip=0.5, blur=0.5, strong=True)


class Pictures(SegmentationDataset):
    """Pictures of 24x20 pixels with the image-level labels (N, C), and no masks."""

    def __init__(self, labels: np.ndarray) -> None:
        self.labels = labels
        self.classes = tuple(f"class {k}" for k in range(labels.shape[1]))
        self.palette = voc_palette(labels.shape[1] + 1)
        self.names = [str(index) for index in range(len(labels))]

    def image(self, index: int) -> Image.Image:
        values = np.random.default_rng(index).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        return Image.fromarray(values)
