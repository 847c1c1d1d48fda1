"""Image files to 8-bit RGB, and RGB to what the networks read.

``layout``, ``samples``, ``tiff`` and ``multiband`` have the values of files that are deeper than 8
bits, or have other bands than red, green and blue; ``levels`` makes 8 bits of them, and ``reading``
is what a configuration says about it.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from os import PathLike
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError, features
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from cosa.core.errors import UserError
from cosa.core.foreign import open_regular
from cosa.data.layout import EIGHT, Clause, Layout
from cosa.data.lazy import Decoded, LazyImage
from cosa.data.levels import rendered
from cosa.data.modes import to_rgb
from cosa.data.multiband import TiffSamples
from cosa.data.orientation import AS_STORED, TURNS, upright
from cosa.data.reading import BY_DEPTH, Extent, Reading
from cosa.data.samples import Samples, layout_of, samples_of
from cosa.data.tiff import Tags, misread, read_tags

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .gif .tif .tiff .webp .ppm .pgm .pbm .pnm .jp2".split()
    # Pillow has it from version 11.3 on; not every build does.
    + [".avif"] * ("avif" in features.modules and features.check("avif"))
)
"""Lower-case suffixes by which image files are recognised in folders."""

MAX_PIXELS = 300_000_000
"""Larger images are refused; an RGB image of this size takes 1.2 GB. ``raster`` reads more."""

MAX_SIDE = 1_000_000
"""Longer images are refused: what is made of them takes a row of pixels at least."""

# Pillow's own limit lies at 89 megapixels, below a stitched panorama. It also warns about every
# oddity of a file's metadata, which over a folder of photographs buries the lines that matter.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
"""Modes of Pillow that hold 16 bits or more."""


def hidden(path: PurePath) -> bool:
    """Whether a relative path is of what systems keep for themselves, as ``._a.jpg`` of macOS."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


class TooManyPixels(UserError):
    """An image is too large to be held.

    Args:
        path: of the file.
        size: its (width, height), upright; None where that is not known.
        clause: that says so of the file, by default that it is larger than ``MAX_PIXELS``.

    Attributes:
        size: as given.
        what: a clause that names the file.
    """

    def __init__(
        self, path: str | PathLike[str], size: tuple[int, int] | None = None, clause: str = ""
    ) -> None:
        self.size = size
        self.what = f"{path} {clause or f'has over {MAX_PIXELS // 1_000_000} megapixels'}"
        super().__init__(f"{self.what}; shrink or tile it")


class LazyFile(LazyImage):
    """An image file, opened; it is decoded, by one of its methods, once.

    Args:
        path: of the file.
        reading: what becomes of its values.

    Attributes:
        format: Pillow's name of the file's format, such as PNG.

    Raises:
        UserError: naming the file, if it is missing, no regular file, empty, not an image, larger
            than ``MAX_PIXELS`` (``TooManyPixels``) or ``MAX_SIDE``, or without the bands that are
            to be read.
    """

    def __init__(self, path: str | PathLike[str], reading: Reading = BY_DEPTH) -> None:
        self._path, self._reading = Path(path), reading
        with explained(self._path), ExitStack() as opened:
            self._file = opened.enter_context(open_regular(self._path))
            if os.fstat(self._file.fileno()).st_size == 0:
                raise UserError(f"{path} is empty; remove the file or copy it again")
            self._picture, self._tags = _opened(self._file, by_number=reading.bands is not None)
            stored = self._tags.size if self._picture is None else self._picture.size
            if min(stored) < 1:
                raise ValueError("it has no pixels")
            if max(stored) > MAX_SIDE:
                raise UserError(f"{path} has a side of over {MAX_SIDE} pixels; cut it into parts")
            if self._picture is None:
                self._turn = TURNS.get(self._tags.orientation, AS_STORED)
                self.size = self._turn.size(stored)
            else:
                self.size, self._turn = upright(self._picture, self._file)
            if math.prod(stored) > MAX_PIXELS:
                raise TooManyPixels(path, self.size)
            self.reducible = isinstance(self._picture, JpegImageFile)
            self._layout = self._checked_layout()
            self.format = "TIFF" if self._picture is None else self._picture.format
            opened.pop_all()

    def close(self) -> None:
        """Let go of a file that will not be decoded."""
        self._file.close()

    def decode(self, shrink: float = 1.0) -> Decoded:
        with self._loading():
            reduction = self._reduced(shrink)
            image, extent = self._rendered()
            self._check_size(image.size, reduction)
            turn = self._turn
            across, down = (n - whole / reduction
                            for n, whole in zip(image.size, self.size, strict=True))
            origin = (across * turn.mirrored_across, down * turn.mirrored_down)
            return Decoded(image, reduction, origin, extent)

    def stored(self) -> Image.Image:
        """The upright image of Pillow's mode for what the file holds, such as palette indices.

        Raises:
            UserError: as ``decode``, or if Pillow does not read it, or would cut the values of
                several channels to 8 bits.
        """
        if self._picture is None:
            self.close()
            raise UserError(f"{self._path} has bands that only a TIFF reader of many bands "
                            "understands: save it as PNG")
        with self._loading():
            if self._picture.mode not in _SIXTEEN_BITS and ";16" in str(self._picture.tile):
                raise UserError(f"{self._path} has several channels of 16 bits, of which 8 can be "
                                "read: save it with 8 bits")
            self._picture.load()
            image = self._turn.applied(self._picture)
            self._check_size(image.size)
            return image

    def sample(self, most: int) -> np.ndarray:
        """Values of the bands that are seen, of at most about so many pixels, evenly spread.

        Returns:
            (n,) finite numbers as float64, as the file holds them.
        """
        step = max(1, math.isqrt(math.prod(self.size) // most))
        with self._loading():
            samples, found = self._samples(), []
            for top, values in samples.strips(self._layout.chosen(self._reading.bands)):
                found.append(values[-top % step :: step, ::step].ravel())
            values = np.concatenate(found).astype(np.float64)
            return values[np.isfinite(values)]

    @property
    def limits(self) -> tuple[float, float] | None:
        """The values of black and white that the file tells, None if it does not."""
        return self._layout.limits

    @property
    def deep(self) -> bool:
        """Whether its values have, or may have, more than 8 bits."""
        return self._layout.limits is None or self._layout.limits[1] > 255

    def _checked_layout(self) -> Layout:
        """What its bands are, of which those that are to be read are there."""
        layout = self._tags.layout if self._picture is None else layout_of(self._picture)
        layout.chosen(self._reading.bands)
        return layout

    def _reduced(self, shrink: float) -> int:
        """How many times smaller the picture, which is prepared for it, will be decoded."""
        reduction = self.reduction(shrink)
        if reduction > 1:
            draft = tuple(n // reduction for n in self._picture.size)
            if not (min(draft) and self._picture.draft(None, draft)):
                return 1
        return reduction

    def _rendered(self) -> tuple[Image.Image, Extent | None]:
        """The upright image, and its values where they are others than those of the image."""
        # What Pillow makes of all bands, which are of 8 bits.
        plain = self._layout.limits == EIGHT and not self._layout.hidden
        if plain and self._picture is not None and self._reading == BY_DEPTH:
            self._picture.load()
            return to_rgb(self._picture, self._turn), None
        return rendered(self._samples(), self._turn, self._reading)

    def _samples(self) -> Samples:
        if self._picture is None:
            return TiffSamples(self._file, self._tags)
        return samples_of(self._picture, self._file, self._layout)

    @contextmanager
    def _loading(self) -> Iterator[None]:
        with explained(self._path), self._file, self._picture or nullcontext():
            yield

    def _check_size(self, size: tuple[int, int], reduction: int = 1) -> None:
        """The image must have the size that was announced."""
        if size != tuple(-(-n // reduction) for n in self.size):
            raise ValueError("its size is not the one that its header tells")


def _opened(file: BinaryIO, by_number: bool) -> tuple[ImageFile | None, Tags | None]:
    """The picture that Pillow opens or, of a TIFF file that it does not read, the tags.

    Args:
        by_number: whether bands are asked for by their numbers.
    """
    try:
        # Of a file without a name, Pillow never maps the pixels into memory: where it does, it
        # takes the upright width of a turned TIFF image for that of the stored rows.
        picture = Image.open(file)
    except (UnidentifiedImageError, Image.DecompressionBombError):
        tags = read_tags(file)
        if tags is None:
            raise
        return None, tags
    if isinstance(picture, TiffImageFile):
        tags = Tags.of(picture.tag_v2)
        if misread(tags, len(picture.getbands()), by_number):
            return None, tags
    return picture, None


open_image = LazyFile
"""Opens an image file as ``read_image`` reads it; damaged pixels are found when decoding."""


def image_size(
    path: str | PathLike[str], reading: Reading = BY_DEPTH
) -> tuple[int, int]:
    """(width, height) of the image that ``read_image`` would return, without decoding it.

    Raises:
        UserError: as ``LazyFile``.
    """
    with closing(LazyFile(path, reading)) as image:
        return image.size


def read_image(path: str | PathLike[str], reading: Reading = BY_DEPTH) -> Image.Image:
    """Read an image file as upright 8-bit RGB.

    The EXIF rotation is applied. Transparency is composited on white. Values become levels from
    the range that ``reading`` says, else from that of the file's depth, such as 0..65535 of 16
    bits. Where a file has none (integers wider than that or with a sign, fractions), the narrowest
    of [0, 1] (fractions only), [0, 255] and [0, 65535] that holds its values is taken, else their
    own minimum and maximum. Of animations and multi-page files the first frame is read. All of it
    is in docs/pictures.md.

    Raises:
        UserError: naming the file, as ``LazyFile``, or if it is damaged.
    """
    return LazyFile(path, reading).decode().image


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong with an image file in the block into one sentence.

    Raises:
        UserError: naming the file; ``TooManyPixels`` where Pillow says so.
    """
    try:
        yield
    except Clause as error:
        raise UserError(f"{path} {error}") from error
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the path") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not an image in a format that Pillow reads; replace or remove "
                        "it") from error
    except Image.DecompressionBombError as error:
        raise TooManyPixels(path) from error
    except MemoryError as error:
        raise UserError(f"{path} is too large for the free memory; shrink it, or read fewer "
                        "images at a time (fewer workers)") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes.
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        reason = reason or type(error).__name__
        damaged = not getattr(error, "errno", None) and isinstance(error, OSError | SyntaxError)
        remedy = "; copy it again, or remove it" if damaged else ""
        raise UserError(f"{path} cannot be read as an image: {reason}{remedy}") from error


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
