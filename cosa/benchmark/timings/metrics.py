"""What J and F of a label map cost, against the usual program that goes class by class."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from scipy import ndimage

from cosa.benchmark import stamp
from cosa.benchmark.tables import (
    add_report_option,
    markdown,
    print_section,
    read_report,
    write_report,
)
from cosa.benchmark.timings.clock import cell, spread
from cosa.core import IGNORE
from cosa.core.ranges import whole
from cosa.core.terminal import Parser
from cosa.core.text import aligned
from cosa.data import voc
from cosa.metrics import BOUNDARY_TOLERANCE, SegmentationMetrics, iou_per_class, mean_over_present

TOPIC = "metrics"
SIZE = (375, 500)
"""Height and width of most photographs of PASCAL VOC."""
CLASSES = 1 + len(voc.CLASSES)
"""Of the label maps, background included."""
OBJECTS = (2, 5, len(voc.CLASSES))
"""Objects in an image, each of another class: few, several, and one of every class."""
OURS = "all classes at once (`cosa.metrics`)"

_CORNER = 64  # pixels that warm up

Dilate = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""A mask (H, W) bool and a neighbourhood (n, n) bool to the dilated mask (H, W) bool."""


class Scores(Protocol):
    """What is timed."""

    def update(self, prediction: np.ndarray, target: np.ndarray) -> None: ...

    def compute(self) -> dict[str, Any]: ...


class ClassByClass:
    """``SegmentationMetrics`` with contours, as DAVIS and hfpl compute them: mask by mask.

    Args:
        num_classes: K, background included.
        dilate: see ``Dilate``.
        skip_absent: whether classes that neither label map shows cost nothing.
    """

    def __init__(self, num_classes: int, dilate: Dilate, skip_absent: bool = False) -> None:
        self.dilate, self.skip_absent = dilate, skip_absent
        self.confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
        # Prediction and target by class: contour pixels, and those near the other's contour.
        self.contour = np.zeros((2, num_classes), dtype=np.int64)
        self.matched = np.zeros((2, num_classes), dtype=np.int64)

    def update(self, prediction: np.ndarray, target: np.ndarray) -> None:
        """Add an image: (H, W) labels in 0..K-1, in the target also ``IGNORE``."""
        classes = len(self.confusion)
        seen = target != IGNORE
        codes = classes * target[seen].astype(np.int64) + prediction[seen]
        self.confusion += np.bincount(codes, minlength=classes**2).reshape(classes, classes)
        target = np.where(seen, target, 0)
        radius = math.ceil(BOUNDARY_TOLERANCE * math.hypot(*target.shape))
        y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
        disk = y**2 + x**2 <= radius**2
        for label in range(classes):
            masks = prediction == label, target == label
            if self.skip_absent and not any(mask.any() for mask in masks):
                continue
            contours = [contour(mask) for mask in masks]
            for side, (own, other) in enumerate((contours, contours[::-1])):
                self.contour[side, label] += np.count_nonzero(own)
                self.matched[side, label] += np.count_nonzero(own & self.dilate(other, disk))

    def compute(self) -> dict[str, Any]:
        """``miou``, ``iou``, ``boundary_f``, ``boundary_f_classes`` and ``jf``, in [0, 1]."""
        scores = []
        for (found, there), (right, met) in zip(self.contour.T, self.matched.T, strict=True):
            precision, recall = (right / found if found else 1), (met / there if there else 1)
            total = precision + recall
            scores.append(2 * precision * recall / total if total else 0.0)
        iou, boundary = iou_per_class(self.confusion), float(np.mean(scores[1:]))
        miou = mean_over_present(iou)
        return {"miou": miou, "iou": iou.tolist(), "boundary_f_classes": scores,
                "boundary_f": boundary, "jf": (miou + boundary) / 2}


def contour(mask: np.ndarray) -> np.ndarray:
    """Where a mask (H, W) bool differs from its neighbour east, south or south-east."""
    edges = np.zeros_like(mask)
    edges[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    edges[:-1] |= mask[:-1] ^ mask[1:]
    edges[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edges


def scipy_dilation(mask: np.ndarray, disk: np.ndarray) -> np.ndarray:
    """A ``Dilate``."""
    return ndimage.binary_dilation(mask, disk)


def opencv_dilation() -> Dilate | None:
    """A ``Dilate`` on one thread; None where OpenCV is not installed."""
    try:
        import cv2
    except ImportError:
        return None
    cv2.setNumThreads(1)
    return lambda mask, disk: cv2.dilate(mask.view(np.uint8), disk.view(np.uint8)).view(bool)


def programs(classes: int) -> dict[str, Callable[[], Scores]]:
    """Name -> a maker of what keeps the scores; ours comes first."""
    dilations = {"scipy.ndimage.binary_dilation": scipy_dilation, "cv2.dilate": opencv_dilation()}
    found: dict[str, Callable[[], Scores]] = {
        OURS: lambda: SegmentationMetrics(classes, boundary=True)
    }
    for name, dilate in dilations.items():
        if dilate is not None:
            for skip, told in ((False, "class by class"), (True, "class by class, present ones")):
                found[f"{told}, `{name}`"] = (
                    lambda dilate=dilate, skip=skip: ClassByClass(classes, dilate, skip)
                )
    return found


def label_maps(
    seed: int, objects: int, classes: int, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and target (H, W) uint8 of an image with ``objects`` lobed discs.

    Each is of another class; the target ignores their rims, as that of VOC does, and the prediction
    has them a little aside, rougher, and the first one as another class.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[:height, :width]
    prediction, target = np.zeros((2, height, width), np.uint8)
    names = 1 + rng.permutation(classes - 1)
    for number in range(objects):
        centre = rng.uniform(0.1, 0.9, 2) * size
        radius = rng.uniform(0.08, 0.3) * height
        lobes, phase = rng.integers(2, 6), rng.uniform(0, 2 * math.pi)
        for labels, shift, rough in ((target, 0.0, 0.0), (prediction, 3.0, 0.03)):
            dy, dx = y - centre[0] - shift, x - centre[1] + shift
            angle = np.arctan2(dy, dx)
            edge = 1 + 0.2 * np.sin(lobes * angle + phase) + rough * np.sin(25 * angle)
            distance = np.hypot(dy, dx) / (radius * edge)
            if labels is target:
                labels[distance < 1 + 4 / radius] = IGNORE
            labels[distance < 1] = names[number]
    prediction[prediction == names[0]] = names[-1]
    return prediction, target


def measure(
    makers: dict[str, Callable[[], Scores]],
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    repeats: int,
) -> tuple[dict[str, list[float]], dict[str, dict[str, Any]]]:
    """Seconds of the processor per image, and the scores of all images, of each program.

    The programs take their turns image by image, so that whatever else the machine does falls on
    all alike. A corner of the first image is run before, untimed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    scores: dict[str, dict[str, Any]] = {}
    for make in makers.values():
        make().update(*(labels[:_CORNER, :_CORNER] for labels in pairs[0]))
    for _ in range(repeats):
        kept = {name: make() for name, make in makers.items()}
        for pair in pairs:
            for name, metrics in kept.items():
                start = time.process_time()
                metrics.update(*pair)
                seconds[name].append(time.process_time() - start)
        scores = {name: metrics.compute() for name, metrics in kept.items()}
    return seconds, scores


def ratio(seconds: dict[str, list[float]], name: str) -> float:
    """The median, over images and repeats, of a program's time over ours for the same image."""
    return float(np.median(np.divide(seconds[name], seconds[OURS])))


def table(results: dict[int, dict[str, list[float]]]) -> list[list[str]]:
    """Header and a list of cells for each program; ``results`` by the number of objects."""
    cells = [["program", *(part for count in results for part in (f"{count} objects", "ratio"))]]
    for name in next(iter(results.values())):
        line = [name]
        for seconds in results.values():
            line += [cell(spread(seconds[name])), f"{ratio(seconds, name):.1f}"]
        cells.append(line)
    return cells


def main(arguments: Sequence[str] | None = None) -> int:
    """Time mIoU and contour quality of label maps against the program that goes class by class."""
    parser = Parser(
        prog=f"python -m cosa.benchmark {TOPIC}", description=main.__doc__
    )
    add = parser.add_argument
    add("--images", type=whole(1, 10**6), default=8, metavar="N", help="images; 8")
    add("--repeats", type=whole(1, 10**6), default=3, metavar="N", help="of each image; 3")
    add_report_option(parser)
    given = parser.parse_args(arguments)
    started = stamp.begin(TOPIC, arguments, given.report)
    read_report(given.report, TOPIC)
    makers, results, same = programs(CLASSES), {}, True
    for objects in OBJECTS:
        pairs = [label_maps(seed, objects, CLASSES, SIZE) for seed in range(given.images)]
        results[objects], scores = measure(makers, pairs, given.repeats)
        same &= all(agree(scores[OURS], other) for other in scores.values())
    cells = table(results)
    print_section(aligned(cells), told(same))
    head = stamp.heading(started.facts(torch.device("cpu")))
    section = ["## J and F", head, markdown(cells), explain(given), told(same)]
    write_report(given.report, "\n\n".join(section), TOPIC)
    return 0 if same else 1


def agree(ours: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether all scores are the same, to rounding."""
    return all(np.allclose(ours[key], other[key], rtol=0, atol=1e-12, equal_nan=True)
               for key in ours)


def told(same: bool) -> str:
    """A sentence on the scores."""
    if same:
        return "All programs yield the same scores."
    return "THE PROGRAMS YIELD DIFFERENT SCORES: one of them is wrong."


def explain(given: argparse.Namespace) -> str:
    """What was measured."""
    height, width = SIZE
    missing = "" if opencv_dilation() else " OpenCV (opencv-python-headless) is not installed."
    return (
        f"Milliseconds of the processor per image for J (mIoU) and F (contour quality) of label "
        f"maps of {width}x{height} pixels and {CLASSES} classes, with so many objects, each of "
        f"another class: median (interquartile range) over {given.images} generated images and "
        f"{given.repeats} repeats of each, all programs in turn. `ratio` is the median of a "
        "program's time over ours for the same image. The other programs make a mask of each "
        "class, its contour, and dilate that by a disk; *present ones* leaves out the classes that "
        f"neither label map shows.{missing}"
    )
