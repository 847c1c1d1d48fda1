"""Files for annotation tools, made at the end of a run out of the regions of all its images."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Collection, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import numpy as np

from cosa.checkpoint import TrainedNetwork
from cosa.core.errors import UserError
from cosa.core.signals import Interrupts
from cosa.core.terminal import note, progress_bar, say
from cosa.core.threads import parallel_map
from cosa.export.annotations import FORMATS, MODEL, Picture, Target, Writer, from_arrays
from cosa.inference.command_line import Options
from cosa.inference.jobs import Job, Plan
from cosa.inference.places import spare_inputs

_DIGITS = 12
"""Of the weights' digest, that tell one model from another."""


def choose_writers(options: Options, network: TrainedNetwork, digest: str) -> list[Writer]:
    """The writers of the formats that are asked for, which can write.

    Args:
        digest: of the weights.

    Raises:
        UserError: a file of another program would be replaced, or one that the options name.
    """
    target = Target(
        Path(options.output), tuple(network.classes), network.palette,
        model=f"{MODEL} {digest[:_DIGITS]}", tolerance=options.simplify,
        prefix=options.image_prefix, overwrite=options.overwrite,
    )
    writers = [FORMATS[name](target) for name in options.export]
    spare_inputs(options, export_places(options), "--export")
    for writer in writers:
        writer.check()
    return writers


def export_places(options: Options) -> list[Path]:
    """The files and folders that are written for annotation tools."""
    return [Path(options.output, place) for name in options.export
            for place in FORMATS[name].PLACES]


def export(
    writers: Sequence[Writer], jobs: Plan, failed: Collection[str], options: Options,
    stop: Interrupts,
) -> tuple[int, bool]:
    """Write all formats, from the files of regions; of an image at a time.

    Args:
        jobs: of all images.
        failed: names of the images that have no regions of this run.

    Returns:
        How many images failed further, each of which is told, and whether a signal came; nothing
        that is about all images is written then.

    Raises:
        UserError: a file cannot be written.
    """
    good = jobs.only(file not in failed for file in jobs.files)
    pictures = parallel_map(
        partial(_picture, options.min_area), good, options.workers, 2 * options.workers)
    broken = 0
    with ExitStack() as stack:
        for writer in writers:
            stack.enter_context(writer)
        stack.enter_context(closing(pictures))
        bar = stack.enter_context(progress_bar(total=len(good), unit="image", disable=None))
        try:
            for picture in stop.awaiting(pictures):
                bar.update()
                if isinstance(picture, UserError):
                    broken += 1
                    say(f"failed: {picture}", error=True)
                    continue
                for writer in writers:
                    writer.add(picture)
        except KeyboardInterrupt:
            return broken, True
        if broken < len(good):
            for writer in writers:
                writer.finish()
    for name, writer in zip(options.export, writers, strict=True):
        if writer.kept:
            note(f"--export {name}: {writer.kept} of the files that are there would be written "
                 "otherwise now, and stay as they are, since somebody may have corrected them; "
                 "delete them to have them made anew")
    return broken, False


def _picture(least: int, job: Job) -> Picture | UserError:
    """An image with its regions of at least so many pixels, or why they cannot be read."""
    path = job.results["regions"]
    try:
        with np.load(path) as arrays:
            regions, size = from_arrays(arrays)
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        return UserError(f"{path} cannot be read ({error}); delete it, or use --overwrite")
    return Picture(job.name, job.source, size, [r for r in regions if r.area >= least])
