"""Scores of a folder of images whose true masks are at hand."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from cosa.core import IGNORE, distributed
from cosa.core.errors import UserError
from cosa.core.numbers import percent, without_nan
from cosa.core.text import NAME, aligned, shown
from cosa.core.threads import parallel_map
from cosa.data.check import examine_masks
from cosa.data.images import image_size
from cosa.data.masks import MaskReader, open_masks
from cosa.data.masks.files import MasksBelow
from cosa.evaluate import class_indices
from cosa.inference.jobs import Job, Plan
from cosa.inference.labels import ImageLabels
from cosa.inference.outcome import Outcome
from cosa.metrics import SegmentationMetrics, mean_over_present

Scored = tuple[Outcome, UserError | None]
"""An outcome, and why it has no part in the scores though it was to have one."""


class Scorer:
    """Compares masks with the truth, one image at a time.

    Args:
        masks: the folder of the true masks, picture files with the relative path and stem of their
            images, or a COCO JSON file; see ``cosa.data.masks``.
        jobs: the images.
        classes: the C foreground classes of the weights.
        label_filtered: whether the masks hold no other classes than the image-level labels do;
            the scores have other names then.
        coexistence: names of the classes that ``cmiou`` averages.
        colors: the map of the masks' colours, if they have any; None: a labelmap.txt beside them.

    Raises:
        UserError: there are more classes than a mask can tell from ignored pixels, a coexistence
            class is none of them, or there are no masks.
    """

    def __init__(
        self,
        masks: str | Path,
        jobs: Plan,
        classes: Sequence[str],
        label_filtered: bool,
        coexistence: Sequence[str] = (),
        colors: str | None = None,
    ) -> None:
        if len(classes) >= IGNORE:
            raise UserError(
                f"--evaluate: the weights have {len(classes)} classes, but masks with the value "
                f"{IGNORE} for ignored pixels hold at most {IGNORE - 1}"
            )
        self.masks = _masks(Path(masks), jobs, classes, colors and Path(colors))
        self.path, self.jobs, self.classes = Path(masks), jobs, ("background", *classes)
        self.suffix = "_label_filtered" if label_filtered else ""
        self.metrics = SegmentationMetrics(len(self.classes), boundary=True)
        self.coexistence = [1 + index for index in class_indices(coexistence, classes)]
        self.images = 0

    def check(self, labels: ImageLabels | None = None) -> None:
        """Look for everything that would make the scores meaningless; tell what is merely odd.

        Args:
            labels: of the images, if they are at hand.

        Raises:
            UserError: no image has a mask, or the masks are none of these classes; see
                ``cosa.data.check``.
        """
        self.masks.prepare()
        names = [job.name for job in self.jobs]
        masked = [number for number, name in enumerate(names) if self.masks.has(name)]
        if not masked:
            raise UserError(
                f"--evaluate {self.path}: no mask belongs to an image; that of "
                f"{self.jobs[0].source} would be {self.masks.source(names[0])}"
            )
        report = examine_masks(
            self.classes[1:],
            masked,
            read=lambda number: self._read(self.jobs[number]),
            labels=lambda number: (labels.find if labels else self.masks.stated)(names[number]),
            source=lambda number: self.masks.source(names[number]),
        )
        report.require()
        report.tell(table=False)

    def _read(self, job: Job) -> np.ndarray:
        return self.masks.read(job.name, image_size(job.source), job.source)

    def update(self, outcome: Outcome) -> UserError | None:
        """Score the mask of an image; the reason if that is impossible."""
        job, (height, width) = outcome.job, outcome.mask.shape
        try:
            if not self.masks.has(job.name):
                raise UserError(f"{job.source} is not scored: there is no mask "
                                f"{self.masks.source(job.name)}")
            target = self.masks.read(job.name, (width, height), job.source)
        except UserError as error:
            return error
        try:
            self.metrics.update(outcome.mask, target)
        except MemoryError:
            return UserError(f"{outcome.job.source} is not scored: it is too large for the free "
                             "memory; lower --workers, or shrink the image and its mask")
        self.images += 1
        return None

    def add_up(self) -> None:
        """Add what the other processes scored."""
        distributed.add_up(*self.metrics.counts)
        self.images = sum(distributed.gather(self.images))

    def scores(self) -> dict[str, Any]:
        """``miou``, ``boundary_f``, ``jf`` and, by class name, ``iou`` and ``boundary_f_classes``.

        Also ``cmiou``, the mean of ``iou`` over the coexistence classes that occur, if there are
        any. In [0, 1], None where undefined; classes that occur nowhere, neither in the truth nor
        in the masks, have a ``boundary_f_classes`` of 1, which counts in ``boundary_f`` (the mean
        over the foreground classes), unless no image was scored. Label-filtered scores have the
        suffix ``_label_filtered``. ``images`` counts those that were scored.
        """
        scores = self._compute()
        for key in ("iou", "boundary_f_classes"):
            scores[key] = dict(zip(self.classes, scores[key], strict=True))
        named = {key + self.suffix: value for key, value in scores.items()}
        return without_nan({**named, "images": self.images})

    def _compute(self) -> dict[str, Any]:
        scores = self.metrics.compute()
        if not self.images:
            scores |= {"boundary_f": math.nan, "jf": math.nan,
                       "boundary_f_classes": [math.nan] * len(self.classes)}
        if self.coexistence:
            scores["cmiou"] = mean_over_present([scores["iou"][k] for k in self.coexistence])
        return scores

    def table(self) -> str:
        """The scores in percent, for people."""
        scores = self._compute()
        rows = zip(self.classes, scores["iou"], scores["boundary_f_classes"], strict=True)
        # Neither the truth nor the masks show the others.
        rows = [(n, j, f) for n, j, f in rows if not (math.isnan(j) and (f == 1 or math.isnan(f)))]
        cells = [[name, percent(j), percent(f)] for name, j, f in rows]
        lines = [aligned([["class", "  IoU", "    F"], *cells])]
        if len(rows) < len(self.classes):
            lines.append(f"({len(self.classes) - len(rows)} other classes occur nowhere)")
        kind = "filtered by image labels" if self.suffix else "label-free"
        lines += [
            "",
            f"mIoU (J)           {percent(scores['miou'])}  {kind}",
            f"contour quality F  {percent(scores['boundary_f'])}  mean of all "
            f"{len(self.classes) - 1} foreground classes; those that occur nowhere count as 100",
            f"J&F                {percent(scores['jf'])}",
        ]
        if self.coexistence:
            names = ", ".join(shown(self.classes[k], NAME) for k in self.coexistence)
            lines.append(f"C-mIoU             {percent(scores['cmiou'])}  of {names}")
        return "\n".join([*lines, f"{self.images} images scored"])


def _masks(
    path: Path, jobs: Plan, classes: Sequence[str], colors: Path | None
) -> MaskReader:
    """The true masks of the jobs' images, by their names."""
    if path.suffix.lower() == ".json":
        written = {**{os.path.splitext(file)[0]: file for file in jobs.files},
                   **{file: file for file in jobs.files}}
        return open_masks(path, written, classes, colors)
    if not path.is_dir():
        raise UserError(f"--evaluate {path} is no folder: give the one of the masks")
    # Not searched as a whole: of a million images each is asked for when its turn has come.
    return MasksBelow(path, classes, colors)


def scored(outcomes: Iterator[Outcome], scorer: Scorer | None, workers: int) -> Iterator[Scored]:
    """Outcomes, each with the reason why it could not be scored, if it was to be.

    Args:
        outcomes: closed at the end.
        scorer: None scores none.
        workers: threads that segment beside the one that scores.
    """

    def score(outcome: Outcome) -> Scored:
        if scorer is None or outcome.error is not None:
            return outcome, None
        if outcome.mask is None:
            return outcome, UserError(f"{outcome.job.source} is not scored: its mask is too large "
                                      "to be held; cut both into parts")
        return outcome, scorer.update(outcome)

    with closing(outcomes):
        if scorer is None:
            yield from map(score, outcomes)
        else:  # in a single thread: scores add up in order
            with closing(parallel_map(score, outcomes, 1, 2 * workers)) as results:
                yield from results
