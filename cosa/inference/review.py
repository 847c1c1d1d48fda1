"""What a person should look at first: a table of how certain masks are, and a contact sheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from cosa.checkpoint import TrainedNetwork
from cosa.core.errors import UserError
from cosa.core.files import write_atomically, writing
from cosa.core.signals import Interrupts
from cosa.core.terminal import progress_bar, say
from cosa.core.threads import parallel_map
from cosa.data.images import read_image
from cosa.data.masks import read_mask
from cosa.data.reading import Reading
from cosa.inference.command_line import Options
from cosa.inference.jobs import Job, Plan
from cosa.inference.kinds import SHEET
from cosa.inference.outputs import read_certainty
from cosa.inference.places import check_places
from cosa.inference.settings import Settings
from cosa.pictures.palette import save_image
from cosa.pictures.sheet import Entry, contact_sheet, entry

Shown = TypeVar("Shown")

TABLE = "review.csv"
HEAD = ("image", "certainty", "error")
"""Columns of the table: a row for each image, the least certain first, those that failed last."""


def review_places(options: Options) -> list[Path]:
    """The files that are written for a review."""
    return [Path(options.output, name) for name in (TABLE, SHEET)] if options.review else []


def check_review(options: Options, jobs: Plan) -> None:
    """Raise ``UserError`` if a review would be in the way of another file, or it of the review."""
    places = review_places(options)
    sheet = places[1]
    if jobs.overwritten(sheet.parent, [SHEET]):
        raise UserError(f"an image would become {sheet}, where --review puts its contact sheet: "
                        "rename the image")
    check_places(options, places, "--review", _is_own)


def review(
    jobs: Plan, failures: Mapping[str, str], options: Options, network: TrainedNetwork,
    settings: Settings, stop: Interrupts,
) -> tuple[dict[str, str], bool]:
    """Write the table of all images, and the sheet of the ``options.review`` least certain.

    Args:
        jobs: of all images.
        failures: names of the images that have no mask of this run, and why.

    Returns:
        Names of the images that failed further, each of which is told, and why; and whether a
        signal came: nothing is written then.

    Raises:
        UserError: a file cannot be written.
    """
    good, broken = jobs.only(file not in failures for file in jobs.files), {}
    try:
        known = certainties(good, options.workers, broken, stop)
        least = [(good[place], value) for value, place in known[: options.review]]
        # One at a time: these are whole images.
        make = partial(_entry, network.num_classes, settings.reading)
        entries = look_at(make, least, 1, broken, stop)
    except KeyboardInterrupt:
        return broken, True
    errors = {**failures, **broken}
    rows = [(good.files[place], f"{value:.6f}", errors.pop(good.files[place], ""))
            for value, place in known]
    table, sheet = review_places(options)
    # The table first, since the sheet is known by it.
    write_atomically(table, _text([*rows, *((name, "", errors[name]) for name in sorted(errors))]))
    with writing(sheet):
        if entries:
            save_image(sheet, contact_sheet(entries, network.classes, network.palette))
        else:
            sheet.unlink(missing_ok=True)
    return broken, False


def certainties(
    jobs: Plan, workers: int, broken: dict[str, str], stop: Interrupts
) -> list[tuple[float, int]]:
    """The certainty of each image and its place in ``jobs``, sorted; ``broken`` gets the others."""
    known = []
    with closing(parallel_map(_certainty, jobs, workers, 2 * workers)) as found:
        for place, value in enumerate(stop.awaiting(found)):
            if isinstance(value, UserError):
                fail(jobs.files[place], value, broken)
            else:
                known.append((value, place))
    return sorted(known)


def look_at(
    make: Callable[[tuple[Job, float]], Shown | UserError], least: Sequence[tuple[Job, float]],
    workers: int, broken: dict[str, str], stop: Interrupts,
) -> list[Shown]:
    """What is made of each image and its certainty; ``broken`` gets those that cannot be shown.

    Args:
        workers: images that are held at a time.
    """
    shown = []
    found = parallel_map(make, least, workers, 2)
    bar = progress_bar(total=len(least), unit="image", disable=None)
    with bar, closing(found):
        for (job, _), made in zip(least, stop.awaiting(found), strict=True):
            bar.update()
            if isinstance(made, UserError):
                fail(job.name, made, broken)
            else:
                shown.append(made)
    return shown


def fail(name: str, error: UserError, broken: dict[str, str]) -> None:
    """Tell that an image cannot be shown, and why."""
    broken[name] = str(error)
    say(f"failed: {error}", error=True)


def _certainty(job: Job) -> float | UserError:
    try:
        return read_certainty(job.results["certainty"])
    except UserError as error:
        return UserError(f"{error}; delete it, or use --overwrite")


def _entry(num_classes: int, reading: Reading, found: tuple[Job, float]) -> Entry | UserError:
    """An image on the sheet, or why it cannot be shown."""
    job, value = found
    try:
        image, mask = read_pair(job, num_classes, reading)
    except UserError as error:
        return error
    return entry(job.name, f"certainty {value:.2f}", image, mask)


def read_pair(job: Job, num_classes: int, reading: Reading) -> tuple[Image.Image, np.ndarray]:
    """An image and its mask, (H, W) uint8.

    Raises:
        UserError: they cannot be read, do not fit into the memory, or are of different sizes.
    """
    try:
        image = read_image(job.source, reading)
        mask = read_mask(job.results["mask"], num_classes)
    except MemoryError as error:
        raise UserError(f"{job.source} is not shown: it is too large for the free memory") from (
            error)
    if mask.shape != (image.height, image.width):
        raise UserError(f"{job.source} changed while it was segmented; run again")
    return image, mask


def _is_own(table: Path) -> bool:
    """Whether the file is a table of this program; it may have been opened with a spreadsheet."""
    try:
        with open(table, encoding="utf-8-sig", errors="replace") as file:
            return file.readline(100).strip().replace('"', "") == ",".join(HEAD)
    except OSError:
        return False


def _text(rows: list[tuple[str, str, str]]) -> str:
    """The table; of a name that is no Unicode, an escape stands for it, as in classes.csv."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(HEAD)
    table.writerows(rows)
    return text.getvalue().encode(errors="backslashreplace").decode()
