"""Scores of segmentations, CAMs and image classification, all in [0, 1].

The pixel scores stream: they keep a confusion matrix and a few counts, whatever the number
of images. Inputs may be NumPy arrays or PyTorch tensors on any device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from cosa.core import IGNORE
from cosa.core.parts import parts

BOUNDARY_TOLERANCE = 0.008
"""Distance within which two contours match, as a share of the image diagonal (DAVIS)."""

_PIXELS_AT_ONCE = 2**22
"""Pixels whose labels are paired at once: that takes some 30 bytes each."""

_PLACES_AT_ONCE = 2**28
"""Bytes that mark where the contours of some classes are; one class needs at least its own."""


def iou_per_class(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union per class; NaN for a class that the targets never show.

    Args:
        confusion: (K, K) pixel counts, rows are targets and columns predictions.

    Returns:
        (K,) float64 in [0, 1] or NaN.
    """
    hits = np.diag(confusion).astype(np.float64)
    there, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    iou = np.full(len(confusion), np.nan)
    np.divide(hits, there + predicted - hits, out=iou, where=there > 0)
    return iou


def iou_of_image(confusion: np.ndarray) -> float:
    """Mean IoU of the classes that the target or the prediction of one image shows; NaN if none.

    Args:
        confusion: (K, K) pixel counts of the image.
    """
    hits = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    shown = union > 0
    return float((hits[shown] / union[shown]).mean()) if shown.any() else math.nan


def mean_over_present(values: Sequence[float] | np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN if there is none."""
    values = np.asarray(values, dtype=np.float64)
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else math.nan


class SegmentationMetrics:
    """Region similarity J (mean IoU) and, on request, contour quality F of label maps.

    Args:
        num_classes: number of classes K, the background (class 0) included; at least 2.
        boundary: also compute the contour quality F of "High-fidelity Pseudo-labels for
            Boosting Weakly-Supervised Segmentation", after the DAVIS benchmark.
        ignore_index: value of target pixels that count for nothing in J. F has no such
            notion: there these pixels are background of the target.
    """

    def __init__(self, num_classes: int, boundary: bool = False, ignore_index: int = IGNORE):
        if num_classes < 2:
            raise ValueError(f"num_classes counts the background and is at least 2: {num_classes}")
        if 0 <= ignore_index < num_classes:
            raise ValueError(f"ignore_index {ignore_index} is one of the {num_classes} classes")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
        self._contours = _ContourCounts(num_classes) if boundary else None

    def update(self, prediction: np.ndarray | torch.Tensor, target: np.ndarray | torch.Tensor):
        """Add one image.

        Args:
            prediction: (H, W) integers in 0..K-1; at ignored pixels also ``ignore_index``.
            target: (H, W) integers in 0..K-1 or ``ignore_index``.

        Raises:
            ValueError: for other shapes, types or labels.
        """
        prediction, target = _label_map(prediction, "prediction"), _label_map(target, "target")
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction {prediction.shape} and target {target.shape} differ in shape"
            )
        confusion = np.zeros_like(self.confusion)
        for rows in parts(len(target), _PIXELS_AT_ONCE // target.shape[1]):
            confusion += self._confusion(prediction[rows], target[rows])
        self.confusion += confusion
        if self._contours is not None:
            ignored = target == self.ignore_index
            # With bytes, the search for contours is faster than with 64 bits a pixel.
            dtype = np.uint8 if self.num_classes <= 256 else np.int64
            target = np.where(ignored, 0, target).astype(dtype, copy=False)
            prediction = np.where(prediction == self.ignore_index, 0, prediction)
            self._contours.update(prediction.astype(dtype, copy=False), target)

    @property
    def counts(self) -> tuple[np.ndarray, ...]:
        """The int64 arrays behind all scores; those of several sets of images add up in place."""
        if self._contours is None:
            return (self.confusion,)
        return self.confusion, self._contours.contour, self._contours.unmatched

    def compute(self) -> dict[str, float | list[float]]:
        """Scores of all images so far.

        Returns:
            ``iou``: K values, NaN for classes that the targets never show; ``miou``: the mean
            of the others. With ``boundary``: ``boundary_f_classes``: K values, 1 for a class
            that neither side shows; ``boundary_f``: their mean over the foreground classes
            1..K-1; ``jf``: the mean of ``miou`` and ``boundary_f``.
        """
        iou = iou_per_class(self.confusion)
        scores: dict[str, float | list[float]] = {
            "miou": mean_over_present(iou),
            "iou": iou.tolist(),
        }
        if self._contours is not None:
            contour = self._contours.f_measure()
            scores["boundary_f_classes"] = contour.tolist()
            scores["boundary_f"] = float(contour[1:].mean())
            scores["jf"] = (scores["miou"] + scores["boundary_f"]) / 2
        return scores

    def _confusion(self, prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
        """(K, K) pixel counts; see :meth:`update`."""
        seen = target != self.ignore_index
        self._check_range(target[seen], "target")
        self._check_range(prediction[seen | (prediction != self.ignore_index)], "prediction")
        pairs = target[seen].astype(np.int64) * self.num_classes + prediction[seen]
        return np.bincount(pairs, minlength=self.confusion.size).reshape(self.confusion.shape)

    def _check_range(self, labels: np.ndarray, what: str) -> None:
        if labels.size and (labels.min() < 0 or labels.max() >= self.num_classes):
            raise ValueError(
                f"{what} holds labels {labels.min()}..{labels.max()}; expected "
                f"0..{self.num_classes - 1}, or {self.ignore_index} where the target is ignored"
            )


class _ContourCounts:
    """Contour pixels and matches per class, summed over the data set."""

    def __init__(self, num_classes: int):
        # [0]: of the prediction (precision), [1]: of the target (recall)
        self.contour = np.zeros((2, num_classes), dtype=np.int64)
        self.unmatched = np.zeros((2, num_classes), dtype=np.int64)

    def update(self, prediction: np.ndarray, target: np.ndarray) -> None:
        """Add one pair of (H, W) label maps in 0..K-1."""
        counts = np.bincount(prediction.ravel()), np.bincount(target.ravel())
        classes = np.union1d(*(np.flatnonzero(count) for count in counts))
        radius = math.ceil(BOUNDARY_TOLERANCE * math.hypot(*target.shape))
        # No two pixels of an image are further apart along a side than that is long.
        margins = min(radius, target.shape[0] - 1), min(radius, target.shape[1] - 1)
        stride = target.shape[1] + 2 * margins[1]
        plane = stride * (target.shape[0] + 2 * margins[0])
        steps = _disk(radius, margins, stride)
        found = [_contours(labels, classes, margins) for labels in (prediction, target)]
        for part in parts(len(classes), _PLACES_AT_ONCE // plane):
            start, end = part.start * plane, part.stop * plane
            some = [x[(x >= start) & (x < end)] - start for x in found]
            self._match(classes[part], some, plane, steps)

    def _match(
        self, classes: np.ndarray, found: list[np.ndarray], plane: int, steps: np.ndarray
    ) -> None:
        """Add the contours of some classes, by their indices into so many planes."""
        there = np.zeros((2, len(classes) * plane), dtype=bool)
        for side, pixels in enumerate(found):
            there[side, pixels] = True
        for side, (pixels, other) in enumerate(zip(found, there[::-1], strict=True)):
            self._add(self.contour[side], classes, pixels // plane)
            for step in steps:
                pixels = pixels[~other[pixels + step]]
                if not pixels.size:
                    break
            self._add(self.unmatched[side], classes, pixels // plane)

    @staticmethod
    def _add(total: np.ndarray, classes: np.ndarray, positions: np.ndarray) -> None:
        total[classes] += np.bincount(positions, minlength=len(classes))

    def f_measure(self) -> np.ndarray:
        """(K,) F; 1 where neither side has a contour, 0 where one side alone has."""
        share = np.ones(self.contour.shape)
        np.divide(self.contour - self.unmatched, self.contour, out=share, where=self.contour > 0)
        precision, recall = share
        total = precision + recall
        return np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)


def _contours(labels: np.ndarray, classes: np.ndarray, margins: tuple[int, int]) -> np.ndarray:
    """Contours of all classes at once, as DAVIS defines them.

    A pixel lies on the contour of a class if the class mask is not constant over the pixel and
    its neighbours east, south and south-east. So the classes of a pixel's contours are just
    the labels of the four, where these are not all equal. The image's border is no contour.

    Returns:
        Flat indices, each once, into planes (len(classes), H + 2 * margins[0], W + 2 * margins[1]).
    """
    (height, width), (above, beside) = labels.shape, margins
    padded = np.pad(labels, ((0, 1), (0, 1)), mode="edge")
    corners = [padded[y : y + height, x : x + width] for y in (0, 1) for x in (0, 1)]
    edge = corners[1] != corners[0]
    for corner in corners[2:]:
        edge |= corner != corners[0]
    rows, columns = np.divmod(np.flatnonzero(edge), width)
    places = (rows + above) * (width + 2 * beside) + columns + beside
    plane = (height + 2 * above) * (width + 2 * beside)
    found, before = [], []
    for corner in corners:
        own = corner[rows, columns]
        new = np.ones(len(own), dtype=bool)
        for other in before:
            new &= own != other
        found.append(places[new] + plane * np.searchsorted(classes, own[new]))
        before.append(own)
    return np.concatenate(found)


def _disk(radius: int, margins: tuple[int, int], stride: int) -> np.ndarray:
    """Flat index steps to all pixels within ``radius`` and ``margins``, nearest first."""
    above, beside = margins
    y, x = np.mgrid[-above : above + 1, -beside : beside + 1].reshape(2, -1)
    distance = y**2 + x**2
    order = np.argsort(distance, kind="stable")[: np.count_nonzero(distance <= radius**2)]
    return (y * stride + x)[order]


class CamMetrics:
    """Mean IoU of CAM pseudo-labels at many thresholds in one pass.

    A pixel's label at threshold t is its strongest class if that class's activation is at
    least t and above 0, else background (Eq. 3 of CoSA). It is therefore enough to count
    (target, strongest class, number of thresholds reached) once; the confusion matrix of each
    threshold is a sum over that histogram.

    Args:
        num_classes: number of classes K, the background included.
        thresholds: activations in [0, 1], in any order; NaN is left out.
        ignore_index: value of target pixels that do not count.
    """

    def __init__(self, num_classes: int, thresholds: Sequence[float], ignore_index: int = IGNORE):
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.thresholds = tuple(t for t in thresholds if not math.isnan(t))
        self._sorted = torch.tensor(sorted(self.thresholds), dtype=torch.float32)
        bins = len(self.thresholds) + 1
        self._histogram = np.zeros((num_classes, num_classes - 1, bins), dtype=np.int64)

    def update(self, cam: torch.Tensor, target: np.ndarray | torch.Tensor) -> None:
        """Add one image.

        Args:
            cam: (K-1, H, W) activations in [0, 1] of the foreground classes, already filtered
                by the image's labels.
            target: (H, W) integers in 0..K-1 or ``ignore_index``.

        Raises:
            ValueError: for other shapes or labels.
        """
        self.count(self.code(cam), target)

    def code(self, cam: torch.Tensor) -> np.ndarray:
        """All that is to be known of ``cam``, see :meth:`update`, in one number a pixel: (H, W).

        The part of :meth:`update` that works on the CAM's device.

        Raises:
            ValueError: for another number of classes.
        """
        if cam.dim() != 3 or len(cam) != self.num_classes - 1:
            raise ValueError(f"cam {tuple(cam.shape)} should be ({self.num_classes - 1}, H, W)")
        confidence, strongest = cam.detach().float().max(dim=0)
        reached = torch.bucketize(confidence, self._sorted.to(cam.device), right=True)
        reached = reached.masked_fill(confidence <= 0, 0)
        return (strongest * self._histogram.shape[-1] + reached).to(torch.int32).cpu().numpy()

    def count(self, code: np.ndarray, target: np.ndarray | torch.Tensor) -> None:
        """Add one image by what :meth:`code` made of its CAM: the other part of :meth:`update`.

        Raises:
            ValueError: for other shapes or labels.
        """
        target = _label_map(target, "target")
        if code.shape != target.shape:
            raise ValueError(f"cam {code.shape} and target {target.shape} differ in size")
        histogram = np.zeros_like(self._histogram)
        for rows in parts(len(target), _PIXELS_AT_ONCE // target.shape[1]):
            histogram += self._counted(code[rows], target[rows])
        self._histogram += histogram

    def _counted(self, code: np.ndarray, target: np.ndarray) -> np.ndarray:
        """What some rows add to the histogram; see :meth:`count`."""
        seen = target != self.ignore_index
        target = target[seen].astype(np.int64)
        if target.size and (target.min() < 0 or target.max() >= self.num_classes):
            raise ValueError(f"target holds labels outside 0..{self.num_classes - 1}")
        code = target * self._histogram[0].size + code[seen]
        counts = np.bincount(code, minlength=self._histogram.size)
        return counts.reshape(self._histogram.shape)

    @property
    def counts(self) -> tuple[np.ndarray, ...]:
        """The int64 arrays behind all scores; those of several sets of images add up in place."""
        return (self._histogram,)

    def distribution(self) -> tuple[list[float], np.ndarray, np.ndarray]:
        """How confident the CAM is where the target shows the background, and where a class.

        Returns:
            The edges 0, the thresholds, 1, increasing; and two (n,) int64 arrays of pixels, with n
            one less than there are edges.
        """
        edges = [0.0, *sorted(self.thresholds), 1.0]
        pixels = self._histogram.sum(axis=1)
        return edges, pixels[0], pixels[1:].sum(axis=0)

    def confusion(self, threshold: float) -> np.ndarray:
        """(K, K) pixel counts at one of the thresholds given at construction."""
        first = sorted(self.thresholds).index(threshold) + 1
        below = self._histogram[..., :first].sum(axis=(1, 2))
        above = self._histogram[..., first:].sum(axis=2)
        return np.concatenate((below[:, None], above), axis=1)

    def iou(self, threshold: float) -> np.ndarray:
        """(K,) IoU at one of the thresholds, NaN for classes that the targets never show.

        At a threshold of NaN, one that is not known, all are NaN.
        """
        if math.isnan(threshold):
            return np.full(self.num_classes, math.nan)
        return iou_per_class(self.confusion(threshold))

    def miou(self, threshold: float) -> float:
        """Mean IoU of the classes that occur in the targets, at one of the thresholds."""
        return mean_over_present(self.iou(threshold))


def average_precision(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Average precision per class: the sum of precision times the step in recall.

    Images of equal score are ranked together, so that their order does not matter.

    Args:
        scores: (N, C) float, any monotonous score.
        labels: (N, C) 0 or 1.

    Returns:
        (C,) float64 in [0, 1]; NaN for a class without positives.
    """
    scores, labels = _check_pair(scores, labels)
    result = np.full(scores.shape[1], np.nan)
    for index in np.flatnonzero(labels.any(axis=0)):
        order = np.argsort(-scores[:, index], kind="stable")
        ranked = scores[order, index]
        hits = np.cumsum(labels[order, index])
        last_of_ties = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        precision = hits[last_of_ties] / (last_of_ties + 1)
        recall_steps = np.diff(hits[last_of_ties], prepend=0) / hits[-1]
        result[index] = (precision * recall_steps).sum()
    return result


def f1_scores(scores: np.ndarray, labels: np.ndarray, threshold: float = 0.0) -> np.ndarray:
    """F1 per class of ``scores > threshold``; 0 is the threshold of logits.

    Args:
        scores: (N, C) float.
        labels: (N, C) 0 or 1.

    Returns:
        (C,) float64 in [0, 1]; NaN for a class without positives.
    """
    scores, labels = _check_pair(scores, labels)
    predicted = scores > threshold
    hits = (predicted & labels).sum(axis=0)
    total = predicted.sum(axis=0) + labels.sum(axis=0)
    result = np.full(scores.shape[1], np.nan)
    return np.divide(2 * hits, total, out=result, where=labels.any(axis=0))


def _check_pair(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} should both be (N, C)")
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN")
    return scores, labels.astype(bool)


def _label_map(labels: np.ndarray | torch.Tensor, what: str) -> np.ndarray:
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu().numpy()
    labels = np.asarray(labels)
    if labels.ndim != 2 or not labels.size:
        raise ValueError(f"{what} should be one (H, W) map of labels, got shape {labels.shape}")
    if labels.dtype.kind not in "iub":
        raise ValueError(f"{what} should hold integers, got {labels.dtype}")
    return labels.astype(np.uint8 if labels.dtype in (np.uint8, bool) else np.int64, copy=False)
