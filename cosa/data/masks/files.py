"""Masks in picture files: of class indices, with or without a palette, or of colours."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from cosa.core import IGNORE
from cosa.core.errors import UserError
from cosa.data.images import LazyFile, image_size
from cosa.data.masks.colors import ColorMap, find_labelmap
from cosa.data.masks.reader import MaskReader, Size

SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".pgm", ".ppm", ".pnm")
"""Of mask files, the preferred first: formats that keep every value; programs that write GIF files
number the colours anew."""

BLENDING_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".jp2", ".avif")
BLENDING = {"JPEG", "MPO", "JPEG2000", "WEBP", "AVIF"}
"""Formats that (may) blend neighbouring values."""

_INDICES = ("1", "L", "P", "LA", "PA", "I", "I;16", "I;16B", "I;16L", "I;16N")

REMEDY = ("give the map of its colours, data.colors or --colors of infer.py, or save the mask with "
          "one index per pixel")


class MaskFiles(MaskReader):
    """Masks in a file each.

    Args:
        paths: image name -> file.
        classes: the C foreground classes.
        folder: of the masks, in which, or above which, a labelmap.txt is looked for.
        colors: the map of colours; None: that labelmap.txt, if there is one.
    """

    def __init__(
        self,
        paths: Mapping[str, Path],
        classes: Sequence[str],
        folder: Path | None = None,
        colors: Path | None = None,
    ) -> None:
        super().__init__()
        self.paths, self.classes = paths, tuple(classes)
        self._folder, self._given = folder, colors

    def path(self, name: str) -> Path | None:
        """The file of an image's mask, if there is one."""
        return self.paths.get(name)

    def has(self, name: str) -> bool:
        return self.path(name) is not None

    def source(self, name: str) -> str:
        return str(self.path(name))

    def stored_size(self, name: str) -> Size:
        return image_size(self.path(name))

    @property
    def by_name(self) -> bool:
        return self._given is not None or self.colors is not None

    def prepare(self) -> None:
        self.colors  # noqa: B018 kept from now on

    @cached_property
    def colors(self) -> ColorMap | None:
        """What colours mean, if that is known."""
        path = self._given or (self._folder and find_labelmap(self._folder))
        return ColorMap(path, self.classes, found=not self._given) if path else None

    def _values(self, name: str, size: Size | None) -> np.ndarray:
        return read_mask(self.path(name), len(self.classes), self.colors)


class MasksBelow(MaskFiles):
    """Masks in a folder with the relative path and stem of their images, looked for when needed.

    Args:
        folder, classes, colors: see ``MaskFiles``; names have the images' suffixes.
    """

    def __init__(self, folder: Path, classes: Sequence[str], colors: Path | None = None) -> None:
        super().__init__({}, classes, folder, colors)
        self.folder = folder

    def path(self, name: str) -> Path | None:
        stem = str(self.folder / os.path.splitext(name)[0])
        # Of os.path, which takes a name that no file can have for one that is not there.
        return next((Path(stem + s) for s in SUFFIXES if os.path.exists(stem + s)), None)

    def source(self, name: str) -> str:
        return str(self.path(name) or self.folder / (os.path.splitext(name)[0] + SUFFIXES[0]))


def read_mask(path: Path, num_classes: int, colors: ColorMap | None = None) -> np.ndarray:
    """Read a picture of class indices, or of colours that a map explains.

    With a map, colours count: those of a palette, too, and grey values where a class has a grey
    colour. What is fully transparent is background: nothing was painted there.

    Returns:
        (H, W) uint8 with 0 background, 1..num_classes, 255 ignored, upright as the image.

    Raises:
        UserError: naming the file, if it is unreadable, of a format that blends values, in colours
            without a map, or holds another value or colour.
    """
    picture = _lossless(path)
    pixels = np.asarray(picture)
    if picture.mode in ("LA", "PA", "RGBA"):
        visible = pixels[..., -1] > 0
        bands = pixels[visible, 0] if pixels.shape[-1] == 2 else pixels[visible, :-1]
        values = np.zeros(visible.shape, np.uint8)
        values[visible] = _values(picture, bands, path, colors)
    else:
        values = _values(picture, pixels, path, colors)
    return _checked(values, path, num_classes)


def _lossless(path: Path) -> Image.Image:
    """The picture as it is stored, of a format that keeps its values."""
    file = LazyFile(path)
    if file.format not in BLENDING:
        picture = file.stored()
        if "jpeg" not in str(picture.info.get("compression")):  # within TIFF
            return picture
    file.close()
    raise UserError(f"{path} is compressed as {'JPEG' if file.format == 'TIFF' else file.format}, "
                    "which blends the values of neighbouring pixels: make the masks anew, as PNG")


def _values(
    picture: Image.Image, pixels: np.ndarray, path: Path, colors: ColorMap | None
) -> np.ndarray:
    """What pixels of a picture mean, without its alpha: (...), or (..., 3) if it has colours."""
    if picture.mode in ("RGB", "RGBA"):
        if colors is not None:
            return colors.values(pixels, path)
        # Some programs write indices into all three channels.
        if (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all():
            return pixels[..., 0]
    elif picture.mode in _INDICES:
        return _by_palette(picture, pixels, path, colors) if colors else pixels
    raise UserError(f"{path}: a mask must hold one class index per pixel, this is a colour picture "
                    f"or one of fractions; {REMEDY}")


def _by_palette(
    picture: Image.Image, pixels: np.ndarray, path: Path, colors: ColorMap
) -> np.ndarray:
    """What indices mean: the classes of their colours, unless the n-th is the n-th grey."""
    if pixels.dtype.itemsize > 1:  # no program writes colours so
        return pixels
    count = 2 if picture.mode == "1" else 256
    palette = np.repeat(np.linspace(0, 255, count).astype(np.uint8)[:, None], 3, axis=1)
    used = np.flatnonzero(np.bincount(pixels.ravel(), minlength=count))
    if picture.mode in ("P", "PA"):
        stored = np.array(picture.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
        named = np.zeros((256, 3), np.uint8)
        named[: len(stored)] = stored
        if len(stored) == 1 or (stored != palette[: len(stored)]).any():
            return _looked_up(named, used, pixels, path, colors)
    return _looked_up(palette, used, pixels, path, colors) if colors.greys else pixels


def _looked_up(
    palette: np.ndarray, used: np.ndarray, pixels: np.ndarray, path: Path, colors: ColorMap
) -> np.ndarray:
    meanings = np.zeros(256, np.uint8)
    meanings[used] = colors.values(palette[used], path)
    return meanings[pixels.astype(np.uint8)]


def _checked(values: np.ndarray, path: Path, num_classes: int) -> np.ndarray:
    """The values as uint8, if they are all allowed."""
    if values.dtype != np.uint8:
        values = values.astype(np.int64)
    unknown = values[((values < 0) | (values > num_classes)) & (values != IGNORE)]
    if unknown.size:
        raise UserError(
            f"{path}: the mask holds the value {unknown[0]}; allowed are 0 (background), "
            f"1..{num_classes} (the classes) and {IGNORE} (ignored)"
        )
    return values.astype(np.uint8)
