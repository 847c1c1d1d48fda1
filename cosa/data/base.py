"""What a data set is to the rest of the program, and the parts that file-backed ones share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from cosa.core.errors import UserError
from cosa.core.foreign import open_regular
from cosa.core.terminal import note
from cosa.core.threads import in_threads
from cosa.data.images import LazyImage, image_size, open_image, read_image
from cosa.data.masks.reader import MaskReader
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
    """Images in files, and their masks.

    Args:
        classes: the C foreground class names.
        names: N unique names.
        labels: (N, C) image-level labels.
        image_paths: N files.
        masks: of the images, by their names; None: there are none.
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
        masks: MaskReader | None = None,
        verify_masks: bool = True,
    ) -> None:
        self.classes = tuple(classes)
        self.palette = voc_palette(len(self.classes) + 1)
        self.names = list(names)
        self.labels = np.asarray(labels, dtype=np.uint8)
        self.image_paths = list(image_paths)
        self.masks = masks
        self.verify_masks = verify_masks

    @cached_property
    def has_masks(self) -> bool:
        # Asked late: a training never does, and need not read a file of annotations for it.
        return self.masks is not None and any(map(self.masks.has, self.names))

    def image(self, index: int) -> Image.Image:
        return read_image(self.image_paths[index], self.reading)

    def open_image(self, index: int) -> Image.Image | LazyImage:
        return open_image(self.image_paths[index], self.reading)

    def image_size(self, index: int) -> tuple[int, int]:
        return image_size(self.image_paths[index], self.reading)

    def has_mask(self, index: int) -> bool:
        return self.masks is not None and self.masks.has(self.names[index])

    def mask(self, index: int) -> np.ndarray | None:
        if not self.has_mask(index):
            return None
        image = self.image_paths[index]
        return self.masks.read(self.names[index], self.image_size(index), image)

    def mask_source(self, index: int) -> str:
        return self.masks.source(self.names[index])

    def mask_size(self, index: int) -> tuple[int, int] | None:
        """(width, height) of mask ``index`` without reading it; None without a mask."""
        if not self.has_mask(index):
            return None
        image = self.image_paths[index]
        return self.masks.size(self.names[index], self.image_size(index), image)

    def check(self) -> None:
        """Check that every image opens and has an end, and that masks fit their images.

        Images are opened, and decoded only where they do not end as they should. For evaluation
        sets the sizes and the values of all masks are checked. Raises ``UserError`` naming the
        first bad file and counting the others.
        """
        super().check()
        if self.verify_masks and self.masks is not None:
            self.masks.prepare()
            masks = sum(map(self.masks.has, self.names))
            if masks > MANY_MASKS:
                note(f"checking the values of {masks} masks; 40,000 take about a minute")
        errors = [error for error in in_threads(self._error, range(len(self))) if error]
        if errors:
            others = len(errors) - 1
            more = f" ({others} more file{'s have' if others > 1 else ' has'} problems)"
            raise UserError(f"{errors[0]}{more if others else ''}")

    def _error(self, index: int) -> str | None:
        image = self.image_paths[index]
        try:
            size = self.image_size(index)
            check_end(image)
            if self.verify_masks and self.has_mask(index):
                self.masks.check(self.names[index], size, image)
        except UserError as error:
            return str(error)
        return None


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
