"""The values of image files as the files hold them, strip by strip, whatever their depth."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Protocol

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile

from cosa.data.layout import EIGHT, SIXTEEN, Layout, rows_at_once
from cosa.data.tiff import Tags

NATIVE = "L" if sys.byteorder == "little" else "B"
_OTHER = {"L": "B", "B": "L"}


class Samples(Protocol):
    """The values of an image as it is stored."""

    size: tuple[int, int]
    """(width, height)"""
    layout: Layout

    def strips(self, bands: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """The image in parts of whole rows: the first row, and (h, w, len(bands)) values.

        Args:
            bands: indices from 0.
        """


def strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The image in parts of whole rows, each with the number of its first row."""
    for rows in rows_at_once(*image.size):
        whole = rows.stop - rows.start == image.height
        yield rows.start, image if whole else image.crop((0, rows.start, image.width, rows.stop))


class LoadedSamples:
    """Those of an image that Pillow has loaded, or of two that have the bytes of one of 16 bits.

    Args:
        image: of a mode of numbers.
        layout: of its bands; by default that of its mode.
        low: an image whose bytes are the lower ones.
        paired: whether bands (0, 1), (2, 3) are higher and lower bytes of the same sample.
    """

    def __init__(
        self,
        image: Image.Image,
        layout: Layout | None = None,
        low: Image.Image | None = None,
        paired: bool = False,
    ) -> None:
        self.size, self.layout = image.size, layout or layout_of_mode(image)
        self._image, self._low, self._paired = image, low, paired
        # Pillow would compare the transparent colour of 16 bits with one of 8.
        self._array = np.asarray if low or paired or self.layout.key else _colours

    def strips(self, bands: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        for top, part in strips(self._image):
            values = self._array(part)
            if self._low is not None:
                box = (0, top, part.width, top + part.height)
                values = _joined(values, self._array(self._low.crop(box)))
            elif self._paired:
                values = _joined(values[..., ::2], values[..., 1::2])
            if self.layout.stretched:
                unit = self.layout.limits[1] / self.layout.stretched
                values = np.rint(values * unit).astype(np.uint16)
            values = values[..., None] if values.ndim == 2 else values
            yield top, values[..., list(bands)]


class RawSamples:
    """Those that lie in a file as they are, row by row.

    Args:
        file: opened; its position moves.
        offset: of the first byte.
        dtype: of a value.
        size: (width, height).
        layout: of the bands.
        separate: whether each band has its own rows, one band behind the other.
    """

    def __init__(
        self,
        file: BinaryIO,
        offset: int,
        dtype: str | np.dtype,
        size: tuple[int, int],
        layout: Layout,
        separate: bool = False,
    ) -> None:
        self.size, self.layout = size, layout
        self._file, self._offset, self._dtype = file, offset, np.dtype(dtype)
        self._separate = separate

    def strips(self, bands: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        width, height = self.size
        for rows in rows_at_once(width * max(1, self.layout.bands // 3), height):
            if self._separate:
                planes = [self._rows(rows, band * self.size[1], 1) for band in bands]
                values = np.concatenate(planes, axis=-1)
            else:
                values = self._rows(rows, 0, self.layout.bands)[..., list(bands)]
            yield rows.start, values

    def _rows(self, rows: slice, above: int, bands: int) -> np.ndarray:
        """(h, w, bands) values of some rows, of which so many lie above in the file."""
        width = self.size[0]
        row = width * bands * self._dtype.itemsize
        self._file.seek(self._offset + (above + rows.start) * row)
        content = self._file.read((rows.stop - rows.start) * row)
        if len(content) < (rows.stop - rows.start) * row:
            raise ValueError("the file ends before the image does")
        values = np.frombuffer(content, self._dtype).astype(self._dtype.newbyteorder("="))
        return values.reshape(-1, width, bands)


def layout_of(picture: ImageFile) -> Layout:
    """The layout of a file that Pillow has opened and not loaded.

    Raises:
        Exception: almost any, of Pillow, for damaged metadata.
    """
    if isinstance(picture, TiffImageFile):
        return _tiff_layout(picture)
    if isinstance(picture, PngImageFile) and _raw_mode(picture).endswith(";16B"):
        key = picture.info.get("transparency")
        return Layout(**_OF_16[_raw_mode(picture)], limits=SIXTEEN,
                      key=(key,) if isinstance(key, int) else key)
    if isinstance(picture, PpmImageFile) and picture.mode in ("L", "I", "RGB"):
        largest, colours = _maxval(picture), 3 if picture.mode == "RGB" else 1
        most = 65535 if picture.mode == "I" else 255
        stretched = None if _is_raw(picture) or largest == most else most
        return Layout(colours, colours, (0.0, float(largest)), stretched=stretched)
    return layout_of_mode(picture)


_OF_16 = {
    "I;16B": {"bands": 1, "colours": 1}, "LA;16B": {"bands": 2, "colours": 1, "alpha": 1},
    "RGB;16B": {"bands": 3, "colours": 3}, "RGBA;16B": {"bands": 4, "colours": 3, "alpha": 3},
}
"""What Pillow names the samples of PNG files -> what they are."""


def layout_of_mode(image: Image.Image) -> Layout:
    """The layout of an image of which nothing but Pillow's mode tells it."""
    if image.mode.startswith("I;16"):
        return Layout(1, 1, SIXTEEN)
    if image.mode in ("I", "F"):
        return Layout(1, 1, None)
    if image.mode in ("1", "L") and not image.has_transparency_data:
        return Layout(1, 1, EIGHT)
    if image.mode in ("La", "LA"):
        return Layout(2, 1, EIGHT, alpha=1)
    if image.has_transparency_data:
        return Layout(4, 3, EIGHT, alpha=3)
    return Layout(3, 3, EIGHT)


def _tiff_layout(picture: TiffImageFile) -> Layout:
    tags, mode = Tags.of(picture.tag_v2), _raw_mode(picture)
    inverted = tags.photometric == 0
    if picture.mode.startswith("I;16"):
        return Layout(1, 1, (0.0, 2.0 ** min(16, tags.bits) - 1), inverted)
    if picture.mode in ("I", "F"):
        return Layout(1, 1, None, inverted)
    if _is_16(mode) and mode.startswith("RGB"):
        four = picture.mode == "RGBA"
        return Layout(3 + four, 3, SIXTEEN, alpha=3 if four and tags.opacity else None,
                      premultiplied=tags.opacity == 1)
    if picture.mode == "RGBA" and not tags.opacity:
        return Layout(4, 3, EIGHT, hidden=True)
    return layout_of_mode(picture)


def samples_of(picture: ImageFile, file: BinaryIO, layout: Layout) -> Samples:
    """The samples of an opened file as Pillow yields them: it turns TIFF files upright itself.

    Args:
        picture: not loaded yet; it is changed.
        file: that it was opened from.
        layout: what ``layout_of`` says of it.
    """
    mode = _raw_mode(picture)
    if isinstance(picture, PpmImageFile) and _is_raw(picture):
        offset = picture.tile[0].offset
        return RawSamples(file, offset, ">u2", picture.size, layout)
    if mode == "LA;16B":
        # Pillow has no name for the lower bytes of two samples; as four of a byte it reads all.
        _rename(picture, "RGBA")
        picture.load()
        return LoadedSamples(picture, layout, paired=True)
    if _is_16(mode) and mode.startswith("RGB"):
        # Pillow keeps one byte of each sample, the one where it looks for the higher one.
        order = NATIVE if mode.endswith("N") else mode[-1]
        base = mode[:-4].replace("a", "A")  # else it would divide by the opacity
        file.seek(0)
        twin = Image.open(file)
        _rename(twin, f"{base};16{_OTHER[order]}")
        twin.load()
        file.seek(0)
        _rename(picture, f"{base};16{order}")
        picture.load()
        return LoadedSamples(picture, layout, low=twin)
    picture.load()
    return LoadedSamples(picture, layout)


def _colours(image: Image.Image) -> np.ndarray:
    """(h, w) or (h, w, bands) values of an image, palettes and the like as red, green and blue."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return np.asarray(image)
    if image.mode == "La":
        image = image.convert("LA")
    elif image.mode not in ("LA", "RGBA") and image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    return np.asarray(image)


def _joined(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    return high.astype(np.uint16) << 8 | low


def _raw_mode(picture: ImageFile) -> str:
    """What Pillow calls the form of the samples in the file; "" if it has no name for it."""
    arguments = picture.tile[0].args if picture.tile else ""
    mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return mode if isinstance(mode, str) else ""


def _rename(picture: ImageFile, mode: str) -> None:
    """Let a picture be decoded as if its samples had this form."""
    picture.tile = [
        tile._replace(args=mode if isinstance(tile.args, str) else (mode, *tile.args[1:]))
        for tile in picture.tile
    ]


def _is_16(mode: str) -> bool:
    return mode.endswith((";16B", ";16L", ";16N"))


def _maxval(picture: PpmImageFile) -> int:
    arguments = picture.tile[0].args
    if isinstance(arguments, tuple) and len(arguments) == 2:
        return arguments[1]
    return 65535 if picture.mode == "I" else 255


def _is_raw(picture: PpmImageFile) -> bool:
    """Whether the values lie there in two bytes each."""
    binary = picture.tile[0].codec_name != "ppm_plain"
    return binary and picture.mode in ("I", "RGB") and _maxval(picture) > 255
