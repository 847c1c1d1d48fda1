"""What is in a data set, counted: labels, sizes, values, and what masks hold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from cosa.core import IGNORE
from cosa.core.errors import UserError
from cosa.core.text import NAME, shown
from cosa.core.threads import in_threads
from cosa.data.base import SegmentationDataset
from cosa.data.images import Decoded, LazyImage

HEADERS, DECODED = 2000, 40
"""Images of which the size, and of which the values are looked at, at most."""

MOSTLY = 0.9
"""A mask is all but ignored if a larger share of it is 255."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Cases:
    """Images of one kind: how many there are, and one of them."""

    count: int = 0
    example: str = ""

    def and_one(self, example: str) -> Cases:
        """One more."""
        return Cases(self.count + 1, self.example or example)


@dataclass(frozen=True)
class Labels:
    """Image-level labels: images, those of each class, and those without a label."""

    images: int
    of_class: list[int]
    unlabelled: int


@dataclass(frozen=True)
class Images:
    """Sizes (width, height), ordered by area, and values in 0..255 of some images."""

    sized: int
    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    decoded: int
    lowest: int
    highest: int
    plain: Cases
    """Images of a single colour."""
    doubtful: Cases = field(default_factory=Cases)
    """Images whose values seem to be misread; the example says why."""


@dataclass(frozen=True)
class Border:
    """The value that fills most of the masks' borders.

    ``share`` of the border pixels, in [0, 1]; ``masks`` that hold it; ``beside`` another class.
    """

    value: int
    share: float
    masks: int
    beside: int


@dataclass(frozen=True)
class Masks:
    """What some masks hold; index c of a list is the mask value c, 0 being the background."""

    there: int
    """Masks of the data set, of which ``read`` were read."""
    read: int
    unreadable: Cases
    """Masks that could not be read; the example says why."""
    pixels: list[int]
    masks: list[int]
    """Masks that hold the value."""
    ignored_pixels: int
    ignored_masks: int
    """Masks that hold 255."""
    border: Border
    first: str
    """The first mask that was read."""
    known: Cases = field(default_factory=Cases)
    """Masks of images whose labels are known."""
    labelled: Cases = field(default_factory=Cases)
    """Masks of images whose labels name a class; so, too, the next two."""
    ignored_alone: Cases = field(default_factory=Cases)
    """They hold no class, but 255."""
    background_alone: Cases = field(default_factory=Cases)
    mostly_ignored: Cases = field(default_factory=Cases)
    comparable: Cases = field(default_factory=Cases)
    """Masks of images with known labels, where either names a class."""
    lacking: Cases = field(default_factory=Cases)
    """They do not hold all labelled classes."""
    unlabelled: Cases = field(default_factory=Cases)
    """They hold classes that the labels do not name."""
    disagreeing: Cases = field(default_factory=Cases)
    """One or both of the two before."""


@dataclass(frozen=True)
class Statistics:
    """What is known of one part of a data set; of what was not looked at, None."""

    split: str
    """"training", "validation", or "true" for masks alone."""
    classes: list[str]
    labels: Labels | None = None
    images: Images | None = None
    masks: Masks | None = None
    negatives: bool = False
    """Images without a label are trained on, as images that show none of the classes."""

    @property
    def shown(self) -> int:
        """Images with known labels: all of them, but for a training that leaves out the others."""
        left_out = self.split == "training" and not self.negatives
        return self.labels.images - (self.labels.unlabelled if left_out else 0)


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of the items, evenly spread, in order."""
    count = min(len(items), most)
    return [items[index * len(items) // count] for index in range(count)]


def count_labels(dataset: SegmentationDataset) -> Labels:
    """The image-level labels of all images."""
    table = np.asarray(dataset.labels)
    unlabelled = int((~table.any(axis=1)).sum())
    return Labels(len(dataset), table.sum(axis=0, dtype=np.int64).tolist(), unlabelled)


def measure_images(dataset: SegmentationDataset) -> Images:
    """Sizes of ``HEADERS`` images and values of ``DECODED`` ones, evenly spread.

    Raises:
        UserError: one cannot be read.
    """
    everything = range(len(dataset))
    sizes = in_threads(dataset.image_size, spread(everything, HEADERS))
    sizes = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    chosen = spread(everything, DECODED)

    def look(index: int) -> tuple[list[tuple[int, int]], str]:
        image = dataset.open_image(index)
        # JPEG files are decoded at an eighth of their size, which suffices.
        decoded = image.decode(16.0) if isinstance(image, LazyImage) else Decoded(image)
        doubt = decoded.extent.doubt if decoded.extent else ""
        return list(decoded.image.convert("RGB").getextrema()), doubt

    found, plain, doubtful = in_threads(look, chosen), Cases(), Cases()
    ranges = [bands for bands, _ in found]
    for index, (bands, doubt) in zip(chosen, found, strict=True):
        if all(low == high for low, high in bands):
            plain = plain.and_one(dataset.names[index])
        if doubt:
            doubtful = doubtful.and_one(f"{dataset.names[index]}: {doubt}")
    return Images(
        sized=len(sizes), smallest=sizes[0], median=sizes[len(sizes) // 2], largest=sizes[-1],
        decoded=len(chosen), lowest=min(low for bands in ranges for low, _ in bands),
        highest=max(high for bands in ranges for _, high in bands), plain=plain,
        doubtful=doubtful,
    )


def count_masks(
    classes: Sequence[str],
    indices: Sequence[int],
    there: int,
    read: Callable[[int], np.ndarray],
    labels: Callable[[int], Collection[int] | None],
    source: Callable[[int], str],
) -> Masks:
    """What the masks ``indices`` hold; one that cannot be read is counted, and left aside.

    Args:
        classes: the C foreground classes.
        there: how many masks the data set has.
        read: (H, W) uint8 of 0..C and 255.
        labels: the classes, counted from 1, that the image's labels name; None: unknown.
        source: the file, for people.
    """

    def counts(index: int) -> tuple[np.ndarray, np.ndarray] | UserError:
        try:
            mask = read(index)
        except UserError as error:
            return error
        sides = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        return _histogram(mask.ravel()), _histogram(sides)

    pixels, border, masks, beside = np.zeros((4, 256), np.int64)
    cases: dict[str, Cases] = {}
    unreadable, first = Cases(), ""
    for index, found in zip(indices, in_threads(counts, indices), strict=True):
        if isinstance(found, UserError):
            unreadable = unreadable.and_one(str(found))
            continue
        present = found[0] > 0
        is_class = present.copy()
        is_class[[0, IGNORE]] = False
        pixels += found[0]
        border += found[1]
        masks += present
        beside += present & (is_class.sum() - is_class > 0)
        named, file = labels(index), source(index)
        first = first or file
        for kind in _kinds(found[0], named):
            example = file
            if kind == "disagreeing":
                example += f" (labels: {_listed(classes, named)}; mask: " \
                           f"{_listed(classes, np.flatnonzero(is_class).tolist())})"
            cases[kind] = cases.get(kind, Cases()).and_one(example)
    value = int(border.argmax())
    return Masks(
        there=there, read=len(indices) - unreadable.count, unreadable=unreadable,
        pixels=pixels[: len(classes) + 1].tolist(), masks=masks[: len(classes) + 1].tolist(),
        ignored_pixels=int(pixels[IGNORE]), ignored_masks=int(masks[IGNORE]),
        border=Border(value, float(border[value] / max(1, border.sum())), int(masks[value]),
                      int(beside[value])),
        first=first, **cases,
    )


def _histogram(values: np.ndarray) -> np.ndarray:
    """(256,) how often each uint8 value occurs; in parts, for numpy makes them eightfold."""
    parts = np.array_split(values, 1 + values.size // 2**20)
    return sum(np.bincount(part, minlength=256) for part in parts)


def _kinds(counts: np.ndarray, labels: Collection[int] | None) -> Iterable[str]:
    """The lists of ``Masks`` that a mask with these pixel counts belongs to."""
    found = set(np.flatnonzero(counts).tolist()) - {0, IGNORE}
    if counts[IGNORE] > MOSTLY * counts.sum():
        yield "mostly_ignored"
    if labels:
        yield "labelled"
        if not found:
            yield "ignored_alone" if counts[IGNORE] else "background_alone"
    if labels is not None:
        yield "known"
    if labels is not None and (labels or found):
        yield "comparable"
        lacking, unlabelled = set(labels) - found, found - set(labels)
        if lacking:
            yield "lacking"
        if unlabelled:
            yield "unlabelled"
        if lacking or unlabelled:
            yield "disagreeing"


def _listed(classes: Sequence[str], values: Collection[int]) -> str:
    """The names of mask values."""
    return quoted(classes[value - 1] for value in values) or "none"


def quoted(names: Iterable[str], most: int = 4) -> str:
    """Names within a sentence, the first few of them."""
    names = [f"'{shown(name, NAME)}'" for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
