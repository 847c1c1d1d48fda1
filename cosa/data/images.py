"""Image files to 8-bit RGB, and RGB to what the networks read."""

from __future__ import annotations

import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError, features
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from cosa.core.errors import UserError
from cosa.core.foreign import open_regular
from cosa.data.modes import to_rgb
from cosa.data.orientation import upright

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .gif .tif .tiff .webp .ppm .pgm .pbm .pnm .jp2".split()
    # Pillow has it from version 11.3 on; not every build does.
    + [".avif"] * ("avif" in features.modules and features.check("avif"))
)
"""Lower-case suffixes by which image files are recognised in folders."""

MAX_PIXELS = 300_000_000
"""Larger images are refused; an RGB image of this size takes 1.2 GB."""

MAX_SIDE = 1_000_000
"""Longer images are refused: what is made of them takes a row of pixels at least."""

# Pillow's own limit lies at 89 megapixels, below a stitched panorama. It also warns about every
# oddity of a file's metadata, which over a folder of photographs buries the lines that matter.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
"""Modes of Pillow that hold 16 bits or more."""

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
    """

    image: Image.Image
    reduction: int = 1
    origin: tuple[float, float] = (0.0, 0.0)

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


class LazyFile(LazyImage):
    """An image file, opened; it is decoded, by one of its methods, once.

    Attributes:
        format: Pillow's name of the file's format, such as PNG.

    Raises:
        UserError: naming the file, if it is missing, no regular file, empty, not an image, or
            larger than ``MAX_PIXELS`` or ``MAX_SIDE``.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._path = Path(path)
        with _explained(self._path), ExitStack() as opened:
            self._file = opened.enter_context(open_regular(self._path))
            if os.fstat(self._file.fileno()).st_size == 0:
                raise UserError(f"{path} is empty; remove the file or copy it again")
            # Of a file without a name, Pillow never maps the pixels into memory: where it does,
            # it takes the upright width of a turned TIFF image for that of the stored rows.
            self._picture = Image.open(self._file)
            if math.prod(self._picture.size) > MAX_PIXELS:
                raise Image.DecompressionBombError
            if max(self._picture.size) > MAX_SIDE:
                raise UserError(f"{path} has a side of over {MAX_SIDE} pixels; cut it into parts")
            self.size, self._turn = upright(self._picture, self._file)
            self.reducible = isinstance(self._picture, JpegImageFile)
            self.format = self._picture.format
            opened.pop_all()

    def close(self) -> None:
        """Let go of a file that will not be decoded."""
        self._file.close()

    def decode(self, shrink: float = 1.0) -> Decoded:
        with self._loading() as picture:
            reduction = self.reduction(shrink)
            stored = picture.size
            draft = tuple(n // reduction for n in stored)
            if reduction > 1 and not (min(draft) and picture.draft(None, draft)):
                reduction = 1
            picture.load()
            turn = self._turn
            image = self._checked(to_rgb(picture, turn), reduction)
            across, down = (n - whole / reduction
                            for n, whole in zip(image.size, self.size, strict=True))
            origin = (across * turn.mirrored_across, down * turn.mirrored_down)
            return Decoded(image, reduction, origin)

    def stored(self) -> Image.Image:
        """The upright image of Pillow's mode for what the file holds, such as palette indices.

        Raises:
            UserError: as ``decode``, or if Pillow would cut the values of several channels to 8
                bits.
        """
        with self._loading() as picture:
            if picture.mode not in _SIXTEEN_BITS and ";16" in str(picture.tile):
                raise UserError(f"{self._path} has several channels of 16 bits, of which 8 can be "
                                "read: save it with 8 bits")
            picture.load()
            return self._checked(self._turn.applied(picture))

    @contextmanager
    def _loading(self) -> Iterator[ImageFile]:
        with _explained(self._path), self._file, self._picture as picture:
            yield picture

    def _checked(self, image: Image.Image, reduction: int = 1) -> Image.Image:
        """The image, which has the size that was announced."""
        if image.size != tuple(-(-n // reduction) for n in self.size):
            raise ValueError("its size is not the one that its header tells")
        return image


open_image = LazyFile
"""Opens an image file as ``read_image`` reads it; damaged pixels are found when decoding."""


def image_size(path: str | PathLike[str]) -> tuple[int, int]:
    """(width, height) of the image that ``read_image`` would return, without decoding it.

    Raises:
        UserError: as ``LazyFile``.
    """
    with closing(LazyFile(path)) as image:
        return image.size


def read_image(path: str | PathLike[str]) -> Image.Image:
    """Read an image file as upright 8-bit RGB.

    The EXIF rotation is applied. Transparency is composited on white. 16-bit grayscale is scaled
    from its type's full range; wider integers and floats from the narrowest of [0, 1] (floats
    only), [0, 255] and [0, 65535] that holds the values, else from their own minimum and maximum.
    Of animations and multi-page files the first frame is read.

    Raises:
        UserError: naming the file, as ``LazyFile``, or if it is damaged.
    """
    return LazyFile(path).decode().image


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong with a file into one sentence."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the path") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not an image in a format that Pillow reads; replace or remove "
                        "it") from error
    except Image.DecompressionBombError as error:
        limit = MAX_PIXELS // 1_000_000
        raise UserError(f"{path} has over {limit} megapixels; shrink or tile it") from error
    except MemoryError as error:
        raise UserError(f"{path} is too large for the free memory; shrink it, or read fewer "
                        "images at a time (fewer workers)") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes.
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        reason = reason or type(error).__name__
        raise UserError(f"{path} cannot be read as an image: {reason}") from error


def to_tensor(image: Image.Image | np.ndarray) -> torch.Tensor:
    """An RGB image, PIL or (H, W, 3) uint8, as (3, H, W) float32 in [0, 1]."""
    return to_planes(torch.from_numpy(np.array(image, dtype=np.uint8)))


def to_planes(pixels: torch.Tensor) -> torch.Tensor:
    """RGB pixels (..., H, W, 3) uint8 as (..., 3, H, W) float32 in [0, 1], on their device."""
    # Planes first, then a pass in place: the formula as written makes copies.
    planes = pixels.movedim(-1, -3).to(torch.float32, memory_format=torch.contiguous_format)
    return planes.div_(255)


def network_input(image: Image.Image, size: int) -> torch.Tensor:
    """Squash an RGB image to a square (3, size, size) float32 in [0, 1], for prediction.

    Bilinear without antialiasing, as in CoSA's evaluation. Sides beyond twice the size are first
    averaged down to that, so that large photographs do not alias; benchmark images are smaller.
    """
    width, height = min(image.width, 2 * size), min(image.height, 2 * size)
    image = image.resize((width, height), Image.Resampling.BOX)
    square = F.interpolate(to_tensor(image)[None], (size, size), mode="bilinear")
    return square[0]
