"""What an evaluation leaves for a report beside its scores: counts, and images worth a look."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cosa.core.numbers import without_nan
from cosa.data import SegmentationDataset
from cosa.evaluate import Parts
from cosa.threshold import DynamicThreshold

OF_A_KIND = 3
"""Images of the best, of the median, of the worst ones."""

MOST_CLASSES = 24
"""Classes of which an image is shown: of more, the commonest ones."""

BINS = 50
"""Of the confidences that the thresholds are fitted to."""

SCORE_BINS = 20


@dataclass(frozen=True)
class Example:
    """An image of an evaluation, and why it is shown."""

    index: int
    """Its number in the data set."""
    score: float
    """Its label-free mean IoU; NaN without a mask."""
    kind: str
    """"best", "median", "worst" or "class"."""
    label: int = 0
    """The class that it is shown for, from 1."""


def choose_examples(parts: Parts, labels: np.ndarray) -> list[Example]:
    """Images to show of an evaluation, each once: by their scores, then one of each class.

    That of a class is the one in the middle, by score, of those that hold the class and are not
    shown for another reason.

    Args:
        labels: (N, C) image-level labels of the data set.
    """
    found = sorted(
        (score, index) for index, score in zip(parts.indices, parts.of_images, strict=True)
        if not math.isnan(score)
    )
    examples = _by_score(found)
    order = [index for _, index in found] or parts.indices
    score_of, taken = dict(zip(parts.indices, parts.of_images, strict=True)), set()
    taken.update(example.index for example in examples)
    counts = labels[parts.indices].sum(axis=0, dtype=np.int64)
    commonest = np.argsort(-counts, kind="stable")[:MOST_CLASSES]
    for label in sorted(commonest.tolist()):
        free = [index for index in order if labels[index, label] and index not in taken]
        if free:
            middle = free[len(free) // 2]
            taken.add(middle)
            examples.append(Example(middle, score_of[middle], "class", label + 1))
    return examples


def _by_score(found: Sequence[tuple[float, int]]) -> list[Example]:
    """The best, the median and the worst of the images, the lowest score first."""
    count = min(OF_A_KIND, math.ceil(len(found) / 3))
    best = found[::-1][:count]
    worst = [item for item in found[:count] if item not in best]
    rest = found[len(worst) : len(found) - len(best)]
    start = (len(rest) - min(count, len(rest))) // 2
    kinds = {"best": best, "median": rest[start : start + count][::-1], "worst": worst}
    return [Example(index, score, kind) for kind, some in kinds.items() for score, index in some]


def describe_parts(
    parts: Parts,
    dataset: SegmentationDataset,
    examples: Sequence[Example],
    files: Sequence[str],
) -> dict[str, Any]:
    """What details.json says of the images of an evaluation, as JSON holds it.

    Args:
        dataset: that they are of.
        files: of the examples' pictures.
    """
    scores = np.array(parts.of_images)
    counts, _ = np.histogram(scores[~np.isnan(scores)], bins=SCORE_BINS, range=(0, 1))
    return without_nan({
        "classes": ["background", *dataset.classes],
        "palette": dataset.palette,
        "images": len(parts.indices),
        **parts.counts,
        "image_scores": counts.tolist(),
        "examples": [
            {"name": dataset.names[example.index], "file": file, "score": example.score,
             "kind": example.kind, "label": example.label}
            for example, file in zip(examples, files, strict=True)
        ],
    })


def fitted_confidences(thresholds: Mapping[str, DynamicThreshold]) -> dict[str, list[int]]:
    """How many of the confidences that each threshold is fitted to are in each part of [0, 1].

    Raises:
        NotFiniteError: see ``DynamicThreshold.distribution``.
    """
    found = {}
    for key, threshold in thresholds.items():
        levels = threshold.distribution()
        place = np.arange(len(levels)) * BINS // len(levels)
        counts = np.bincount(place, weights=levels, minlength=BINS)
        found[key] = counts.astype(np.int64).tolist()
    return found
