"""What true masks are to the rest of the program, whatever they are read from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from os import PathLike

import numpy as np
from PIL import Image

from cosa.core import IGNORE
from cosa.core.errors import UserError
from cosa.core.terminal import note

Size = tuple[int, int]
"""(width, height) in pixels."""

PERCENT = 1
"""By so much, of each side of the image, a mask may be larger or smaller than it."""


def classes_of(mask: np.ndarray) -> list[int]:
    """Class indices from 0, ascending, that occur in a mask (H, W) uint8."""
    values = np.flatnonzero(np.bincount(mask.ravel()))
    return [value - 1 for value in values.tolist() if value not in (0, IGNORE)]


class Once:
    """A note that is told once, whichever thread comes first."""

    def __init__(self) -> None:
        self._untold = [True]

    def note(self, message: str) -> None:
        """The note, if it is the first."""
        try:
            self._untold.pop()  # in one step, which no other thread interrupts
        except IndexError:
            return
        note(message)


class MaskReader(ABC):
    """The true masks of images, by the images' names. Nothing is read before it is asked for."""

    def __init__(self) -> None:
        self._resized = Once()

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether an image has a mask."""

    @abstractmethod
    def source(self, name: str) -> str:
        """Where an image's mask comes from, for people; it exists, or is missed."""

    @property
    def by_name(self) -> bool:
        """Whether masks name their classes, and the order of the classes does not matter."""
        return False

    def stated(self, name: str) -> list[int] | None:
        """The classes, from 1, that an image's mask is said to hold; None: nothing says so."""
        return None

    @abstractmethod
    def stored_size(self, name: str) -> Size | None:
        """The size of a mask, which exists, as it is stored; None if only the image tells."""

    @abstractmethod
    def _values(self, name: str, size: Size | None) -> np.ndarray:
        """The mask as it is stored; ``size`` is the image's, if it is known."""

    def prepare(self) -> None:  # noqa: B027 most have nothing to do
        """Read what all masks share, before threads ask for it.

        Raises:
            UserError: it cannot be read.
        """

    def read(
        self, name: str, size: Size | None = None, image: str | PathLike[str] = ""
    ) -> np.ndarray:
        """The mask of an image that has one.

        Args:
            size: of the image; a mask that differs from it by ``PERCENT`` at most is resized, each
                pixel taking the nearest one's value, which one note tells. None: as stored.
            image: the image file, for errors; empty: its name.

        Returns:
            (H, W) uint8: 0 background, 1..C the classes, 255 ignored.

        Raises:
            UserError: naming the file, if it cannot be read, holds another value or colour, or is
                of another size.
        """
        values = self._values(name, size)
        stored = values.shape[::-1]
        if size is None or not self._resizes(name, stored, size, image):
            return values
        return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.NEAREST))

    def size(self, name: str, size: Size, image: str | PathLike[str] = "") -> Size:
        """The size that ``read`` would return, without reading the mask; see there."""
        stored = self.stored_size(name) or size
        return size if self._resizes(name, stored, size, image) else stored

    def check(self, name: str, size: Size, image: str | PathLike[str] = "") -> None:
        """Raise ``UserError`` if a mask, which exists, cannot be read; see ``read``."""
        self.size(name, size, image)
        self.read(name, size, image)

    def _resizes(
        self, name: str, stored: Size, size: Size, image: str | PathLike[str]
    ) -> bool:
        """Whether a mask is of another size than its image, and near enough."""
        if stored == size:
            return False
        told = f"{self.source(name)}: the mask is {stored[0]}x{stored[1]} pixels but " \
               f"{image or name} is {size[0]}x{size[1]}"
        if any(100 * abs(s - n) > PERCENT * n for s, n in zip(stored, size, strict=True)):
            raise UserError(f"{told}; they must have one size")
        self._resized.note(f"{told}; this one and others that differ by up to {PERCENT} % are "
                           "resized, each pixel taking the nearest one's value")
        return True
