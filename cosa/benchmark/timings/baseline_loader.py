"""Training views as they are made without thought of their cost, to time the loader against."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from cosa.data import SegmentationDataset
from cosa.data.augmentations import apply_strong, strong_operations
from cosa.data.images import to_tensor
from cosa.data.loader import TrainingViews
from cosa.data.transforms import crop, sample_geometry


class Straightforward(TrainingViews):
    """The stream of train.py, written without thought of its cost.

    Images are decoded in full, Pillow blurs, and views become float32 one by one in the process
    that loads. Yields weak and strong as (3, S, S) float32 in [0, 1].
    """

    def views(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        options = self.augment
        side = options["crop_size"]
        image = decoded(self.dataset, index)
        geometry = sample_geometry(image.size, rng, crop_size=side, **{
            key: options[key] for key in ("scale_min", "scale_max", "flip")
        })
        content = crop(image, geometry)
        if rng.random() < options["blur"]:
            content = blurred(content, rng.uniform(options["blur_min"], options["blur_max"]))
        left, top, right, bottom = geometry.target
        box = slice(top, bottom), slice(left, right)
        weak = strong = float_canvas(content, box, side)
        if options["strong"]:
            operation = strong_operations()[rng.integers(len(strong_operations()))]
            strong = float_canvas(apply_strong(content, operation, rng.random()), box, side)
        valid = torch.zeros(side, side, dtype=torch.bool)
        valid[box] = True
        return {"weak": weak, "strong": strong, "valid": valid}


def decoded(dataset: SegmentationDataset, index: int) -> Image.Image:
    """The image in full, RGB."""
    return dataset.image(index).convert("RGB")  # a copy, as of every image of any mode


def blurred(content: Image.Image, deviation: float) -> Image.Image:
    """Blurred by Pillow; ``deviation`` in pixels."""
    return content.filter(ImageFilter.GaussianBlur(deviation))


def float_canvas(content: Image.Image, box: tuple[slice, slice], side: int) -> Tensor:
    """(3, side, side) float32 in [0, 1]: ``content`` in rows and columns ``box``, 0 around it."""
    canvas = torch.zeros(3, side, side)
    canvas[(slice(None), *box)] = to_tensor(content)
    return canvas
