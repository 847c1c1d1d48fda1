"""The look at a whole data set: what was counted, what that means, and how it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cosa.core import IGNORE
from cosa.core.errors import UserError
from cosa.core.terminal import note, say, warn
from cosa.core.text import aligned
from cosa.data.base import SegmentationDataset
from cosa.data.check.rules import Finding, judged
from cosa.data.check.statistics import (
    Images,
    Masks,
    Statistics,
    count_labels,
    count_masks,
    measure_images,
    spread,
)
from cosa.data.subset import Subset

MASKS = 200
"""Masks that are looked at first; all of them if these look wrong."""

MOST_CLASSES = 24
"""Of more classes, the table shows the commonest and the rarest."""


@dataclass(frozen=True)
class Report:
    """What was found in the parts of a data set."""

    parts: list[Statistics]
    findings: list[Finding]

    def require(self) -> None:
        """Raise ``UserError`` if a training or a score would mean nothing."""
        errors = [f.sentence for f in self.findings if f.severity == "error"]
        if errors:
            more = f" (and {len(errors) - 1} more such findings)" if len(errors) > 1 else ""
            raise UserError(errors[0] + more)

    def tell(self, table: bool = True) -> None:
        """Print the table, and one line for all that is merely odd."""
        if table:
            say(*self.table().split("\n"))
        for finding in self.findings:
            if finding.severity == "warning":
                warn(finding.sentence)

    def tree(self) -> dict[str, Any]:
        """All of it as plain values, for a JSON file."""
        return {
            **{part.split: asdict(part) for part in self.parts},
            "findings": [asdict(finding) for finding in self.findings],
        }

    def table(self) -> str:
        """Counts of images and masks by class, and what else was looked at, for people."""
        classes = self.parts[0].classes
        shown = self._shown(len(classes))
        left_out = len(classes) - len(shown)
        rows = [["class"], ["background"], *([classes[k]] for k in shown),
                *[[f"({left_out} other classes)"]] * bool(left_out),
                [f"{IGNORE}, not counted"], ["no label"], ["looked at"]]
        for part in self.parts:
            for column in _columns(part, shown, bool(left_out)):
                for row, cell in zip(rows, column, strict=True):
                    row.append(cell)
        lines = [line.rstrip() for line in aligned(rows).split("\n")]
        return "\n".join([*lines, *(_images_line(p) for p in self.parts if p.images)])

    def _shown(self, count: int) -> list[int]:
        """Indices of the classes in the table."""
        labels = self.parts[0].labels
        if count <= MOST_CLASSES or labels is None:
            return list(range(count))
        order = sorted(range(count), key=lambda k: -labels.of_class[k])
        half = MOST_CLASSES // 2
        return sorted(order[:half] + order[-half:])


def _columns(part: Statistics, shown: Sequence[int], gap: bool) -> list[list[str]]:
    """Cells below each other, header first: of images, and of masks where there are any."""
    found, labels, masks = [], part.labels, part.masks
    dots = [""] * gap
    if labels is not None:
        found.append([f"{part.split} images", "", *(str(labels.of_class[k]) for k in shown), *dots,
                      "", str(labels.unlabelled), str(labels.images)])
    if masks is not None:
        total = max(1, sum(masks.pixels) + masks.ignored_pixels)
        read = str(masks.read) if masks.read == masks.there else f"{masks.read} of {masks.there}"
        counts = [masks.masks[0], *(masks.masks[k + 1] for k in shown)]
        pixels = [masks.pixels[0], *(masks.pixels[k + 1] for k in shown)]
        found.append([f"{part.split} masks", *map(str, counts), *dots, str(masks.ignored_masks),
                      "", read])
        found.append(["of pixels", *(f"{n / total:.1%}" for n in pixels), *dots,
                      f"{masks.ignored_pixels / total:.1%}", "", ""])
    return found


def _images_line(part: Statistics) -> str:
    """Sizes and values in one line."""
    images: Images = part.images
    sizes = sorted({images.smallest, images.largest}, key=lambda size: size[0] * size[1])
    told = " to ".join(f"{width}x{height}" for width, height in sizes)
    if len(sizes) > 1:
        told += f", median {images.median[0]}x{images.median[1]}"
    return (f"{part.split} images: {told} pixels ({images.sized} looked at), values "
            f"{images.lowest}..{images.highest} ({images.decoded} looked at)")


def examine(
    training: SegmentationDataset, validation: SegmentationDataset, negatives: bool = False
) -> Report:
    """Look at both parts of a data set, on which ``check`` was called; a sample where it is large.

    Masks of training images are not touched. Draws no random numbers.

    Args:
        negatives: training images without a label are trained on (``data.negatives``).

    Raises:
        UserError: an image cannot be read.
    """
    parts = [replace(_part("training", training), negatives=negatives),
             _part("validation", validation)]
    return Report(parts, [finding for part in parts for finding in judged(part)])


def _part(split: str, dataset: SegmentationDataset) -> Statistics:
    # What is left out of a part is wanted later, after hours of training.
    dataset = dataset.whole if isinstance(dataset, Subset) else dataset
    part = Statistics(split, list(dataset.classes), count_labels(dataset), measure_images(dataset))
    if split == "training" or not dataset.has_masks:
        return part
    return _with_masks(
        part,
        [index for index in range(len(dataset)) if dataset.has_mask(index)],
        dataset.mask,
        lambda index: (np.flatnonzero(dataset.labels[index]) + 1).tolist(),
        dataset.mask_source,
    )


def examine_masks(
    classes: Sequence[str],
    masked: Sequence[int],
    read: Callable[[int], np.ndarray],
    labels: Callable[[int], list[int] | None],
    source: Callable[[int], str],
) -> Report:
    """Look at true masks alone, ``masked`` being their indices; see ``count_masks``."""
    part = _with_masks(Statistics("true", list(classes)), masked, read, labels, source)
    return Report([part], judged(part))


def _with_masks(part: Statistics, masked: Sequence[int], *ways: Any) -> Statistics:
    """The part with what its masks hold: a sample of them, and all if that looks wrong."""

    def look(indices: Sequence[int]) -> Masks:
        return count_masks(part.classes, indices, len(masked), *ways)

    sample = spread(masked, MASKS)
    masks = look(sample)
    found = judged(Statistics(part.split, part.classes, masks=masks))
    if len(sample) < len(masked) and any(finding.severity == "error" for finding in found):
        note(f"{len(sample)} of {len(masked)} masks look wrong: looking at all of them")
        masks = look(masked)
    return replace(part, masks=masks)
