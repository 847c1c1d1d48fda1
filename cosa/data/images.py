"""Image files to 8-bit RGB, and RGB to what the networks read."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError, features
from PIL.JpegImagePlugin import JpegImageFile

from cosa.core.errors import UserError

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .gif .tif .tiff .webp .ppm .pgm .pbm .pnm .jp2".split()
    # Pillow has it from version 11.3 on; not every build does.
    + [".avif"] * ("avif" in features.modules and features.check("avif"))
)
"""Lower-case suffixes by which image files are recognised in folders."""

MAX_PIXELS = 300_000_000
"""Larger images are refused; an RGB image of this size takes 0.9 GB."""

# Pillow's own limit lies at 89 megapixels, below a stitched panorama. It also warns about every
# oddity of a file's metadata, which over a folder of photographs buries the lines that matter.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Which of them exchange the sides, and which, in the upright image, reverse an axis.
_SIDEWAYS = (5, 6, 7, 8)
_MIRRORED_ACROSS = (2, 3, 6, 7)
_MIRRORED_DOWN = (3, 4, 7, 8)

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
    """

    size: tuple[int, int]

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


class LazyJpeg(LazyImage):
    """A JPEG file, whose ``decode`` is to be called once."""

    def __init__(self, path: Path, picture: JpegImageFile) -> None:
        self._path, self._picture = path, picture
        self._orientation = picture.getexif().get(_ORIENTATION_TAG)
        sideways = self._orientation in _SIDEWAYS
        self.size = picture.size[::-1] if sideways else picture.size

    def decode(self, shrink: float = 1.0) -> Decoded:
        reduction = reduction_for(shrink)
        with _explained(self._path), self._picture as picture:
            full = picture.size
            if reduction > 1 and not picture.draft(None, tuple(n // reduction for n in full)):
                reduction = 1
            picture.load()
            surplus = [n - whole / reduction for n, whole in zip(picture.size, full, strict=True)]
            image = picture if picture.mode == "RGB" else _to_rgb(picture)
            turn = _UPRIGHT.get(self._orientation)
            if turn is None:
                return Decoded(image, reduction)
            across, down = surplus[::-1] if self._orientation in _SIDEWAYS else surplus
            origin = (across * (self._orientation in _MIRRORED_ACROSS),
                      down * (self._orientation in _MIRRORED_DOWN))
            return Decoded(image.transpose(turn), reduction, origin)


def open_image(path: str | PathLike[str]) -> Image.Image | LazyImage:
    """An image file as ``read_image`` reads it, whose pixels a JPEG file keeps for later.

    Raises:
        UserError: as ``read_image``; of JPEG files, damaged pixels are found when decoding.
    """
    path = Path(path)
    with _explained(path):
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty; remove the file or copy it again")
        picture = Image.open(path)
        if picture.width * picture.height > MAX_PIXELS:
            picture.close()
            raise Image.DecompressionBombError
        if isinstance(picture, JpegImageFile):
            return LazyJpeg(path, picture)
        with picture:
            picture.load()
            # After load(), which turns TIFF images itself and reads late metadata of PNG.
            turn = _UPRIGHT.get(picture.getexif().get(_ORIENTATION_TAG))
            rgb = _to_rgb(picture)
            return rgb if turn is None else rgb.transpose(turn)


def read_image(path: str | PathLike[str]) -> Image.Image:
    """Read an image file as upright 8-bit RGB.

    The EXIF rotation is applied. Transparency is composited on white. 16-bit grayscale is scaled
    from its type's full range; wider integers and floats from the narrowest of [0, 1] (floats
    only), [0, 255] and [0, 65535] that holds the values, else from their own minimum and maximum.
    Of animations and multi-page files the first frame is read.

    Raises:
        UserError: naming the file, if it is missing, empty, damaged, not an image or larger than
            ``MAX_PIXELS``.
    """
    image = open_image(path)
    return image.decode().image if isinstance(image, LazyImage) else image


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
        raise UserError(f"{path} is not an image in a format that Pillow reads") from error
    except Image.DecompressionBombError as error:
        limit = MAX_PIXELS // 1_000_000
        raise UserError(f"{path} has over {limit} megapixels; shrink or tile it") from error
    except MemoryError as error:
        raise UserError(f"{path} is too large for the free memory; shrink it, or read fewer "
                        "images at a time (fewer workers)") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read as an image: {reason}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image of any Pillow mode to a new RGB image."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _to_eight_bits(values: np.ndarray) -> np.ndarray:
    """Scale grayscale values (H, W) of a wider type to uint8, as ``read_image`` describes."""
    if values.dtype.itemsize == 2:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    values = np.where(np.isfinite(values), values, 0).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 65535:
        ranges = (1, 255, 65535) if values.dtype.kind == "f" else (255, 65535)
        low, high = 0.0, next(full for full in ranges if high <= full)
    span = max(high - low, np.finfo(np.float64).tiny)
    return np.rint((values - low) / span * 255).astype(np.uint8)


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
