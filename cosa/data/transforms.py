"""The two training views of an image: one geometry, a weak and a strong colour treatment.

Every random draw comes from the generator that is passed in, so a sample is a pure function of
the image and the generator's state. Colour operations see the image content only, before it is
padded. Views are 8-bit pixels, a quarter of the memory of what the networks read:
``cosa.data.batches.to_device`` makes float planes of them and colours the padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from cosa.core import IGNORE
from cosa.data.augmentations import apply_strong, blurred, strong_operations
from cosa.data.images import Decoded, LazyImage


@dataclass(frozen=True)
class Geometry:
    """Which part of an image lands where in the square crop.

    Attributes:
        source: (left, top, right, bottom) in image pixels, fractions allowed.
        target: the same box in pixels of the crop; everything outside it is padding.
        flip: whether the content is mirrored horizontally.
    """

    source: tuple[float, float, float, float]
    target: tuple[int, int, int, int]
    flip: bool

    @property
    def shrink(self) -> float:
        """How many times smaller the content becomes, along both sides at least."""
        left, top, right, bottom = self.source
        x0, y0, x1, y1 = self.target
        return min((right - left) / (x1 - x0), (bottom - top) / (y1 - y0))


def sample_geometry(
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    crop_size: int,
    scale_min: float,
    scale_max: float,
    flip: float,
) -> Geometry:
    """Draw scale, position and flip for an image of ``size`` (width, height).

    The image is scaled by a uniform factor in [scale_min, scale_max]. A side longer than
    ``crop_size`` is cut at a uniform position, a shorter one is placed at a uniform position and
    padded.
    """
    scale = rng.uniform(scale_min, scale_max)
    horizontal = _sample_side(size[0], scale, crop_size, rng)
    vertical = _sample_side(size[1], scale, crop_size, rng)
    source, target = zip(horizontal, vertical, strict=True)
    return Geometry(
        source=tuple(pair[end] for end in (0, 1) for pair in source),
        target=tuple(pair[end] for end in (0, 1) for pair in target),
        flip=bool(rng.random() < flip),
    )


def _sample_side(
    length: int, scale: float, crop_size: int, rng: np.random.Generator
) -> tuple[tuple[float, float], tuple[int, int]]:
    """One axis of the crop: its interval in the image and in the crop."""
    scaled = max(1, round(length * scale))
    start = int(rng.integers(abs(scaled - crop_size) + 1))
    if scaled <= crop_size:
        return (0.0, float(length)), (start, start + scaled)
    ratio = length / scaled
    return (start * ratio, min(length, (start + crop_size) * ratio)), (0, crop_size)


def crop(image: Image.Image | LazyImage, geometry: Geometry) -> Image.Image:
    """The content of the crop, without padding: ``geometry.target``'s size, RGB.

    Resampling only the part that is kept makes one pass over the pixels that are needed;
    bilinear, antialiased when shrinking. A JPEG file is decoded as small as the crop allows.
    """
    left, top, right, bottom = geometry.target
    lazy = isinstance(image, LazyImage)
    decoded = image.decode(geometry.shrink) if lazy else Decoded(image)
    content = decoded.image.resize(
        (right - left, bottom - top), Image.BILINEAR, box=decoded.box(geometry.source)
    )
    return content.transpose(Image.FLIP_LEFT_RIGHT) if geometry.flip else content


def pad(content: Image.Image, geometry: Geometry, crop_size: int) -> torch.Tensor:
    """(crop_size, crop_size, 3) uint8, 0 outside the content."""
    left, top, right, bottom = geometry.target
    canvas = np.zeros((crop_size, crop_size, 3), dtype=np.uint8)
    canvas[top:bottom, left:right] = content
    return torch.from_numpy(canvas)


def crop_mask(mask: np.ndarray, geometry: Geometry, crop_size: int) -> torch.Tensor:
    """A mask (H, W) uint8 through the geometry of its image, padding ``IGNORE``.

    Returns (crop_size, crop_size) int64; nearest neighbour, so no value is made up.
    """
    left, top, right, bottom = geometry.target
    content = Image.fromarray(mask).resize(
        (right - left, bottom - top), Image.NEAREST, box=geometry.source
    )
    if geometry.flip:
        content = content.transpose(Image.FLIP_LEFT_RIGHT)
    canvas = torch.full((crop_size, crop_size), IGNORE, dtype=torch.int64)
    canvas[top:bottom, left:right] = torch.from_numpy(np.array(content, dtype=np.int64))
    return canvas


def training_views(
    image: Image.Image | LazyImage,
    rng: np.random.Generator,
    *,
    crop_size: int = 448,
    scale_min: float = 0.5,
    scale_max: float = 2.0,
    flip: float = 0.5,
    blur: float = 0.5,
    blur_min: float = 0.1,
    blur_max: float = 2.0,
    strong: bool = True,
    mask: np.ndarray | None = None,
) -> dict[str, torch.Tensor]:
    """The weak and the strong view of an image, aligned pixel for pixel.

    Args:
        image: RGB picture of any size, decoded or not.
        rng: source of every draw.
        crop_size: side S of the square views, in pixels.
        scale_min, scale_max: range of the random scale.
        flip, blur: probabilities of the horizontal flip and of the weak view's Gaussian blur.
        blur_min, blur_max: range of the blur's deviation, in pixels of the crop.
        strong: False makes the strong view equal to the weak one.
        mask: (H, W) uint8 truth of the image's size. Weak supervision has none; the fully
            supervised bound of the benchmark does.

    Returns:
        weak, strong: (S, S, 3) uint8, RGB;
        valid: (S, S) bool, False in the padding, which is never supervised;
        mask, if one is given: (S, S) int64, the truth of the views' pixels, see ``crop_mask``.
    """
    geometry = sample_geometry(
        image.size, rng, crop_size=crop_size, scale_min=scale_min, scale_max=scale_max, flip=flip
    )
    content = crop(image, geometry)
    if rng.random() < blur:
        content = blurred(content, rng.uniform(blur_min, blur_max))
    weak_view = strong_view = pad(content, geometry, crop_size)
    if strong:
        operation = strong_operations()[rng.integers(len(strong_operations()))]
        strong_view = pad(apply_strong(content, operation, rng.random()), geometry, crop_size)

    left, top, right, bottom = geometry.target
    valid = torch.zeros(crop_size, crop_size, dtype=torch.bool)
    valid[top:bottom, left:right] = True
    views = {"weak": weak_view, "strong": strong_view, "valid": valid}
    if mask is not None:
        views["mask"] = crop_mask(mask, geometry, crop_size)
    return views
