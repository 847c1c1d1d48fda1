"""Images that are never held in memory: which of them can be segmented, and how masks are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from cosa.core.errors import UserError
from cosa.core.files import replacement
from cosa.core.terminal import note
from cosa.data.layout import Clause
from cosa.data.raster import INSTALL, Ground, Raster, rasterio
from cosa.inference.geotiff import GeoTiffRows
from cosa.inference.jobs import Job
from cosa.inference.kinds import KINDS
from cosa.inference.outcome import Found, found
from cosa.inference.pixels import Size, Tally, labels_in_strips
from cosa.inference.segmenter import Maps
from cosa.inference.settings import Settings
from cosa.pictures.palette import Color
from cosa.pictures.png_rows import PngRows


class Rows(Protocol):
    """A file of a mask that is written from the top down."""

    def write(self, rows: np.ndarray) -> None:
        """Add rows (n, W) uint8 at the bottom."""


class Huge:
    """What is done, and told, in a run that meets images too large to be held.

    Args:
        settings: of the run.
        save: keys of ``KINDS``.
        scored: whether masks are compared with true ones.
    """

    def __init__(self, settings: Settings, save: Sequence[str], scored: bool) -> None:
        self._slide = settings.mode == "slide"
        self._reading, self._crf, self._scored = settings.reading, settings.crf, scored
        self._whole = [kind for kind in save if not KINDS[kind].by_rows]
        self._keeps_place = "geotiff" in save
        self._told: set[str] = set()

    def open(self, job: Job, what: str) -> Raster:
        """The image of a job.

        Args:
            job: whose image is too large.
            what: a clause that says so and names the image.

        Raises:
            UserError: what is asked for cannot be made of such an image, or it cannot be read by
                rows.
        """
        if not self._slide:
            raise UserError(f"{what}; segment it by windows, --mode slide, or shrink it, or cut "
                            "it into parts")
        needs = [("--crf", self._crf), ("--evaluate", self._scored),
                 *((_option(kind), True) for kind in self._whole)]
        option = next((option for option, given in needs if given), None)
        if option is not None:
            rows = ", ".join(kind for kind in KINDS if KINDS[kind].by_rows)
            raise UserError(f"{what}, and {option} needs all of it: leave that out (--save {rows} "
                            "do not), or shrink the image, or cut it into parts")
        return Raster(job.source, self._reading)

    def tell(self, job: Job, seen: Size, size: Size) -> None:
        """Say once in a run what may not be meant, of images that go by windows.

        Args:
            job: of the image.
            seen: (height, width) that windows see.
            size: of the image itself.
        """
        self._once("size", min(size) > 2 * min(seen), lambda: (
            f"{job.source} is seen at {seen[1]}x{seen[0]} of its {size[1]}x{size[0]} pixels: "
            "--max-size N is the longest side that is not shrunk"))
        if not self._keeps_place:
            with closing(Ground(job.source)) as ground:
                self._once("place", bool(ground.place), lambda: (
                    f"{job.source} has a georeference, which PNG files do not keep: --save "
                    "geotiff does"))

    def _once(self, key: str, true: bool, text: Callable[[], str]) -> None:
        if true and key not in self._told:
            self._told.add(key)
            note(f"{text()} (further images are not named)")


def _option(kind: str) -> str:
    also = {"regions": "--export", "certainty": "--review"}.get(kind)
    return f"{also}, or --save {kind}," if also else f"--save {kind}"


def write_rows(
    job: Job, maps: Maps, size: Size, palette: Sequence[Color], details: bool
) -> list[Found] | None:
    """Make the masks of an image out of its maps, and write them, a few rows at a time.

    Args:
        job: all of whose files are ``by_rows``.
        maps: read once.
        size: (height, width) of the image.
        palette: of the classes.
        details: whether to say what the mask holds.

    Returns:
        That, or None.

    Raises:
        OSError: a file cannot be written; none of them is there then.
        UserError: the image cannot be read any more.
    """
    tally = Tally(len(maps.classes)) if details else None
    labels = np.array(maps.classes, dtype=np.uint8)
    with ExitStack() as stack:
        files = [stack.enter_context(mask_file(kind, path, job.source, size, palette))
                 for kind, path in job.results.items()]
        for _, part, _ in labels_in_strips(maps.seg, size, maps.passes, tally):
            rows = labels[part.numpy()]
            for file in files:
                file.write(rows)
    return tally and found(maps.classes, tally.pixels, tally.probability)


@contextmanager
def mask_file(
    kind: str, path: Path, source: Path, size: Size, palette: Sequence[Color]
) -> Iterator[Rows]:
    """A mask that gets its name when all its rows are written.

    Args:
        kind: one of ``KINDS`` that is ``by_rows``.
        path: of the file, whose folder is there.
        source: the image.
        size: (height, width) of both.
        palette: of the classes.

    Raises:
        OSError: it cannot be written; nothing is left behind then.
    """
    with replacement(path) as new:
        if kind != "geotiff":
            rows = PngRows(new.file, size, None if kind == "index" else palette)
            yield rows
            rows.finish()
            return
        with closing(Ground(source)) as ground:
            with closing(GeoTiffRows(new.temporary, ground, size, palette)) as rows:
                yield rows
                rows.finish()


def require_rasterio(save: Sequence[str]) -> None:
    """Tell before any work that a kind of result needs a package.

    Raises:
        UserError: it is not installed.
    """
    if "geotiff" in save:
        try:
            rasterio()
        except Clause as error:
            raise UserError(f"--save geotiff needs a package: {INSTALL}") from error

