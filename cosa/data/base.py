"""What a data set is to the rest of the program, and the parts that file-backed ones share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cosa.core import IGNORE
from cosa.core.errors import UserError
from cosa.core.foreign import open_regular
from cosa.core.terminal import note
from cosa.core.threads import in_threads
from cosa.data.images import LazyFile, LazyImage, image_size, open_image, read_image
from cosa.data.reading import BY_DEPTH, Reading
from cosa.pictures.palette import voc_palette

# The masks of evaluation sets above this size take so long to check that the user is told.
MANY_MASKS = 2000
# How files of JPEG and PNG start, and how whole ones end; padding may follow.
END_MARKERS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PN": b"IEND\xaeB`\x82"}


class SegmentationDataset:
    """Images with image-level labels and, for evaluation, pixel masks.

    Attributes:
        classes: the C foreground class names; the background is implied and never among them.
        palette: C + 1 colours (r, g, b) in 0..255; entry 0 is the background.
        names: N unique names, relative paths without suffix, in "/" notation.
        labels: (N, C) uint8, 1 where the class is in the image.
        has_masks: whether at least one image has a mask.
    """

    classes: tuple[str, ...]
    palette: list[tuple[int, int, int]]
    names: list[str]
    labels: np.ndarray
    has_masks: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Image.Image:
        """Image ``index`` as an RGB picture; raises ``UserError`` if it cannot be read."""
        raise NotImplementedError

    def open_image(self, index: int) -> Image.Image | LazyImage:
        """Image ``index``, perhaps not decoded yet; raises ``UserError`` if it cannot be read."""
        return self.image(index)

    def image_size(self, index: int) -> tuple[int, int]:
        """(width, height) of image ``index``, without decoding it where that is possible."""
        return self.image(index).size

    def has_mask(self, index: int) -> bool:
        """Whether image ``index`` has a mask, without opening it."""
        return self.has_masks

    def mask(self, index: int) -> np.ndarray | None:
        """Mask of image ``index``: (H, W) uint8, 0 background, 1..C classes, 255 ignored.

        None if the image has no mask. Training never calls this.
        """
        return None

    def mask_source(self, index: int) -> str:
        """Where mask ``index``, which exists, comes from, for people."""
        return self.names[index]

    def check(self) -> None:
        """Look for everything that would fail later; raises ``UserError`` naming the file."""
        if len(self) == 0:
            raise UserError("the data set holds no image; check data.root and the split names")


class FileDataset(SegmentationDataset):
    """Images and PNG masks in files.

    Args:
        classes: the C foreground class names.
        names: N unique names.
        labels: (N, C) image-level labels.
        image_paths: N files.
        mask_paths: N files, or None for an image without a mask; None alone: no masks at all.
        verify_masks: whether ``check`` looks at the masks. Training sets leave them untouched.

    Attributes:
        reading: what becomes of the values in the image files; masks are read as they are.
    """

    reading: Reading = BY_DEPTH

    def __init__(
        self,
        classes: Sequence[str],
        names: Sequence[str],
        labels: np.ndarray,
        image_paths: Sequence[Path],
        mask_paths: Sequence[Path | None] | None = None,
        verify_masks: bool = True,
    ) -> None:
        self.classes = tuple(classes)
        self.palette = voc_palette(len(self.classes) + 1)
        self.names = list(names)
        self.labels = np.asarray(labels, dtype=np.uint8)
        self.image_paths = list(image_paths)
        self.mask_paths = list(mask_paths or [None] * len(self.names))
        self.has_masks = any(path is not None for path in self.mask_paths)
        self.verify_masks = verify_masks

    def image(self, index: int) -> Image.Image:
        return read_image(self.image_paths[index], self.reading)

    def open_image(self, index: int) -> Image.Image | LazyImage:
        return open_image(self.image_paths[index], self.reading)

    def image_size(self, index: int) -> tuple[int, int]:
        return image_size(self.image_paths[index], self.reading)

    def has_mask(self, index: int) -> bool:
        return self.mask_paths[index] is not None

    def mask(self, index: int) -> np.ndarray | None:
        path = self.mask_paths[index]
        return None if path is None else read_mask(path, len(self.classes))

    def mask_source(self, index: int) -> str:
        path = self.mask_paths[index]
        shared = path.suffix.lower() != ".png"  # a file of several images' masks
        return f"{path}, image {self.names[index]}" if shared else str(path)

    def mask_size(self, index: int) -> tuple[int, int] | None:
        """(width, height) of mask ``index`` without decoding it; None without a mask."""
        path = self.mask_paths[index]
        return None if path is None else image_size(path)

    def check(self) -> None:
        """Check that every image opens and has an end, and that masks fit their images.

        Images are opened, and decoded only where they do not end as they should. For evaluation
        sets the sizes and the values of all masks are checked. Raises ``UserError`` naming the
        first bad file and counting the others.
        """
        super().check()
        masks = sum(path is not None for path in self.mask_paths) if self.verify_masks else 0
        if masks > MANY_MASKS:
            note(f"checking the values of {masks} masks; 40,000 take about a minute")
        errors = [error for error in in_threads(self._error, range(len(self))) if error]
        if errors:
            more = f" ({len(errors) - 1} more files have problems)" if len(errors) > 1 else ""
            raise UserError(f"{errors[0]}{more}")

    def _error(self, index: int) -> str | None:
        try:
            size = self.image_size(index)
            check_end(self.image_paths[index])
            if self.verify_masks and self.has_masks:
                self._check_mask(index, size)
        except UserError as error:
            return str(error)
        return None

    def _check_mask(self, index: int, size: tuple[int, int]) -> None:
        mask_size = self.mask_size(index)
        if mask_size is not None and mask_size != size:
            raise UserError(
                f"{self.mask_paths[index]}: the mask is {mask_size[0]}x{mask_size[1]} pixels but "
                f"{self.image_paths[index]} is {size[0]}x{size[1]}; they must have one size"
            )
        if mask_size is not None:
            self.check_mask_values(index)

    def check_mask_values(self, index: int) -> None:
        """Raise ``UserError`` if mask ``index``, which exists, cannot be read."""
        self.mask(index)


def read_mask(path: Path, num_classes: int) -> np.ndarray:
    """Read a mask of class indices (palette or grey PNG).

    Returns (H, W) uint8 with 0 background, 1..num_classes, 255 ignored, upright as the image;
    raises ``UserError`` naming the file if it is unreadable, a colour picture, or holds another
    value.
    """
    values = LazyFile(path).values()
    if values.ndim != 2 or values.dtype.kind == "f":
        raise UserError(
            f"{path}: a mask must hold one class index per pixel, this is a colour picture or "
            "one of fractions"
        )
    if values.dtype != np.uint8:
        values = values.astype(np.int64)
    unknown = values[((values < 0) | (values > num_classes)) & (values != IGNORE)]
    if unknown.size:
        raise UserError(
            f"{path}: the mask holds the value {unknown[0]}; allowed are 0 (background), "
            f"1..{num_classes} (the classes) and {IGNORE} (ignored)"
        )
    return values.astype(np.uint8)


def check_end(path: Path) -> None:
    """Raise ``UserError`` if a JPEG or PNG file was cut off, as by a copy that was stopped.

    Only the last bytes are read. A file that ends otherwise is decoded: cameras append films and
    other things to photographs.
    """
    with open_regular(path) as file:
        marker = END_MARKERS.get(file.read(3))
        file.seek(max(0, os.fstat(file.fileno()).st_size - 256))
        end = file.read()
    if marker is not None and not end.rstrip(b"\0\r\n ").endswith(marker):
        read_image(path)


def label_rows(labels: Iterable[Iterable[int]], num_classes: int) -> np.ndarray:
    """(N, num_classes) uint8 from N collections of class indices counted from 0."""
    rows = [list(indices) for indices in labels]
    table = np.zeros((len(rows), num_classes), dtype=np.uint8)
    for row, indices in zip(table, rows, strict=True):
        row[indices] = 1
    return table


def expanded(path: str | Path) -> Path:
    """``path`` with a leading ``~`` replaced by the home folder."""
    return Path(os.path.expanduser(path))


def existing_folder(path: Path, key: str) -> Path:
    """``path``, or a ``UserError`` naming the config key if it is not a folder."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; set {key} to where it is")
    return path
