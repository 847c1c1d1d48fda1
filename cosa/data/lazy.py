"""Images that are decoded when it is known how large they are needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from PIL import Image

from cosa.data.reading import Extent

REDUCTION_MARGIN = 1.5
"""What is left to shrink after a JPEG file was decoded at a fraction of its size, at least: so the
result stays close to that of the full decoding."""


@dataclass(frozen=True)
class Decoded:
    """An image, perhaps decoded at a fraction of its size.

    Attributes:
        image: upright 8-bit RGB.
        reduction: 1, 2, 4 or 8: how many pixels of the full image, along each side, became one.
        origin: (x, y) of the full image's corner, in pixels of ``image``. Decoders round sizes
            up; where the image was turned, the surplus lies before the first pixel.
        extent: the values in the file; None where they are 8 bits that become what they are.
    """

    image: Image.Image
    reduction: int = 1
    origin: tuple[float, float] = (0.0, 0.0)
    extent: Extent | None = None

    def box(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """A (left, top, right, bottom) in pixels of the full image, in pixels of ``image``."""
        (x, y), (left, top, right, bottom), r = self.origin, box, self.reduction
        return (x + left / r, y + top / r, x + right / r, y + bottom / r)


def reduction_for(shrink: float) -> int:
    """How many times smaller an image is decoded along each side, 1, 2, 4 or 8; see ``decode``."""
    return next(r for r in (8, 4, 2, 1) if r * REDUCTION_MARGIN <= shrink or r == 1)


class LazyImage(ABC):
    """An image of known size that is decoded when it is known how large it is needed.

    Attributes:
        size: (width, height) in pixels, upright.
        reducible: whether it can be decoded at a fraction of its size, as JPEG files can.
    """

    size: tuple[int, int]
    reducible: bool

    def reduction(self, shrink: float) -> int:
        """How many times smaller ``decode`` would make the image along each side."""
        return reduction_for(shrink) if self.reducible else 1

    @abstractmethod
    def decode(self, shrink: float = 1.0) -> Decoded:
        """The image, which nobody may change.

        Args:
            shrink: how many times smaller it will be made, along both sides at least. From
                ``REDUCTION_MARGIN`` times 2 on, the file is decoded at 1/2 of its size, and so on
                to 1/8. That saves work and stays close to the full decoding.

        Raises:
            UserError: naming the file, if it is damaged.
        """
