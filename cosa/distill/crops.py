"""Random crops of photographs that are held on the device: where they lie, colours, mixing.

A batch is cut by a few operations on whole tensors, and no photograph is decoded for it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cosa.distill.photographs import Photographs

AREA = (0.2, 1.0)
"""Share of a photograph that a crop shows. 0.2 of a photograph of 500x375 pixels is one of 194x194,
about the least that a crop of configs/photographs.yaml shows of it."""
ASPECT = 4 / 3
"""Most that a crop is stretched, in either direction."""
JITTER = 0.36
"""Most by which the factors of brightness, contrast and saturation differ from 1, which changes
nothing."""
GREY = (0.299, 0.587, 0.114)
"""Parts of red, green and blue in what is seen as brightness (ITU-R BT.601)."""


class RandomCrops:
    """Batches of crops, a function of the seed and the device's random numbers.

    Args:
        photographs: of which those to learn from are cut.
        size: S, the side of the crops.
        batch: B.
        mix: share of each batch that is mixed, in [0, 1]; see :func:`mixed`.
        seed: non-negative integer.
    """

    def __init__(
        self, photographs: Photographs, size: int, batch: int, mix: float, seed: int
    ) -> None:
        self._photographs, self._size, self._batch, self._mix = photographs, size, batch, mix
        device = photographs.pixels.device
        self._random = torch.Generator(device).manual_seed(seed)

    def next(self) -> Tensor:
        """The next batch, (B, 3, S, S) float32 in [0, 1]."""
        held, random = self._photographs, self._random
        drawn = torch.randint(len(held.learnt), (self._batch,), generator=random,
                              device=random.device)
        indices = held.learnt[drawn]
        boxes = random_boxes(held.aspects[indices], random)
        crops = cut(held.pixels[indices], boxes, uniform(self._batch, 0, 1, random) < 0.5,
                    self._size)
        crops = jittered(crops, uniform((3, self._batch), 1 - JITTER, 1 + JITTER, random))
        return mixed(crops, uniform(round(self._mix * self._batch), 0, 1, random))


def uniform(
    shape: int | tuple[int, ...], low: float, high: float, random: torch.Generator
) -> Tensor:
    """Numbers in [low, high), float32, on the generator's device."""
    return low + (high - low) * torch.rand(shape, generator=random, device=random.device)


def random_boxes(aspects: Tensor, random: torch.Generator) -> Tensor:
    """Where crops lie in their photographs.

    The area is uniform in ``AREA`` and the aspect, by its logarithm, within ``ASPECT``. What would
    exceed the photograph is cut off; where that leaves an aspect beyond ``ASPECT``, the longer
    side, too.

    Args:
        aspects: (B,) width by height of the photographs.

    Returns:
        (4, B): left, top, width and height, as shares of the photograph's width and height.
    """
    count = len(aspects)
    side = uniform(count, *AREA, random).sqrt()
    stretch = ASPECT ** uniform(count, -0.5, 0.5, random)
    wide = (side * stretch / aspects.sqrt()).clamp_max(1)
    high = (side / stretch * aspects.sqrt()).clamp_max(1)
    wide = torch.minimum(wide, ASPECT * high / aspects)
    high = torch.minimum(high, ASPECT * wide * aspects)
    left = uniform(count, 0, 1, random) * (1 - wide)
    top = uniform(count, 0, 1, random) * (1 - high)
    return torch.stack([left, top, wide, high])


def cut(pixels: Tensor, boxes: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """Parts of squashed photographs, of one size, bilinearly.

    Args:
        pixels: (B, 3, H, W) uint8.
        boxes: (4, B), of :func:`random_boxes`; within the photographs.
        mirrored: (B,) bool, left and right swapped.

    Returns:
        (B, 3, size, size) float32 in [0, 1].
    """
    left, top, wide, high = boxes[..., None]
    middles = (torch.arange(size, device=boxes.device) + 0.5) / size
    columns = left + wide * torch.where(mirrored[:, None], 1 - middles, middles)
    rows = top + high * middles
    # From -1 to 1 over the photograph, as grid_sample counts. By hand, as affine_grid multiplies
    # matrices, with TensorFloat-32 to a tenth of a pixel.
    across = columns[:, None, :].expand(-1, size, -1)
    down = rows[:, :, None].expand(-1, -1, size)
    grid = 2 * torch.stack([across, down], dim=3) - 1
    # The outermost half pixel of a photograph has no neighbour: it is continued, not darkened.
    crops = F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
    return crops.div_(255)


def jittered(images: Tensor, factors: Tensor) -> Tensor:
    """Images of other brightness, contrast and saturation, as Pillow's ``ImageEnhance`` has them.

    Args:
        images: (B, 3, H, W) in [0, 1].
        factors: (3, B) of the three; 1 changes nothing.

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    brightness, contrast, saturation = factors[..., None, None, None]
    images = images * brightness
    middle = grey(images).mean((2, 3), keepdim=True)
    images = middle + contrast * (images - middle)
    colourless = grey(images)
    return (colourless + saturation * (images - colourless)).clamp(0, 1)


def grey(images: Tensor) -> Tensor:
    """The brightness (B, 1, H, W) of RGB images (B, 3, H, W)."""
    red, green, blue = images.split(1, dim=1)
    return GREY[0] * red + GREY[1] * green + GREY[2] * blue


def mixed(images: Tensor, weights: Tensor) -> Tensor:
    """The first images of a batch, each mixed with the one before it; the others as they are.

    Mixup, with weights from the whole of [0, 1], as in Beyer et al., "Knowledge distillation: a
    good teacher is patient and consistent" (CVPR 2022): whoever is taught by such pictures, which
    the teacher sees, too, meets more of them than there are photographs.

    Args:
        images: (B, 3, H, W).
        weights: (n,) of the first n images themselves, n <= B; the image before the first is the
            last.
    """
    if not len(weights):
        return images
    count, own = len(weights), weights[:, None, None, None]
    both = own * images[:count] + (1 - own) * images.roll(1, 0)[:count]
    return torch.cat([both, images[count:]])
