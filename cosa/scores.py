"""The scores of an evaluation: what the maps and masks of its images add up to, and as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cosa.cam import filter_by_labels, strips
from cosa.core.numbers import percent
from cosa.core.text import aligned
from cosa.metrics import CamMetrics, SegmentationMetrics, iou_of_image, mean_over_present
from cosa.predict import Prediction, believed, strongest
from cosa.score_names import NAMES

CAM_THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Where ``cam_best_miou`` looks: 0.05, 0.10 .. 0.95."""


_AT_ONCE = 2**25
"""Resized values held at once (134 MB): all of usual images, parts of large ones."""


@dataclass(frozen=True)
class Decided:
    """What the scores need to know of the maps of an image, (H, W) arrays of main memory."""

    seg: np.ndarray
    """uint8, the label-free segmentation."""
    filtered: np.ndarray
    """uint8, the segmentation in classes that the image's labels allow."""
    cam: np.ndarray
    """int32, the codes of ``CamMetrics`` of M'."""
    aux_cam: np.ndarray
    """int32, those of the auxiliary M'."""
    ensemble: np.ndarray
    """int32, those of the mean of both."""


class PixelScores:
    """All scores that need masks.

    Args:
        num_foreground: number of classes without the background.
        thresholds: (xi, xi_aux) in [0, 1]; None where there is none, its scores are NaN.
        boundary: whether contours are compared, too.
        min_class_score: of ``cosa.evaluate.evaluate``.
    """

    def __init__(
        self,
        num_foreground: int,
        thresholds: tuple[float | None, float | None],
        boundary: bool,
        min_class_score: float = 0.0,
    ):
        classes = num_foreground + 1
        self.min_class_score = min_class_score
        # A threshold of NaN has scores of NaN.
        self.threshold, self.aux_threshold = (
            math.nan if value is None else float(value) for value in thresholds
        )
        self.ensemble_threshold = (self.threshold + self.aux_threshold) / 2
        self.seg = SegmentationMetrics(classes, boundary=boundary)
        self.filtered = SegmentationMetrics(classes)
        self.cam = CamMetrics(classes, (*CAM_THRESHOLDS, self.threshold))
        self.aux_cam = CamMetrics(classes, (self.aux_threshold,))
        self.ensemble = CamMetrics(classes, (self.ensemble_threshold,))
        self.images = np.zeros((), np.int64)
        self.images_of = np.zeros(classes, np.int64)

    def look(self, maps: Prediction, image_labels: Tensor, size: tuple[int, int]) -> Decided:
        """Reduce an image's maps to what is counted, on their device.

        Args:
            maps: of a batch of 1.
            image_labels: (C,), positive means present.
            size: height and width of the mask.
        """
        seen = believed(maps.logits[0], self.min_class_score)
        labels, classes = maps.seg.shape[1], maps.cam.shape[1]
        decided = Decided(
            *(np.empty(size, np.uint8) for _ in range(2)),
            *(np.empty(size, np.int32) for _ in range(3)),
        )
        together = torch.cat([maps.seg[0], maps.cam[0], maps.aux_cam[0]])
        for rows, values in strips(together, size, _AT_ONCE):
            seg, cam, aux_cam = values.split([labels, classes, classes])
            cam, aux_cam = filter_by_labels(
                torch.stack([cam, aux_cam]), image_labels.expand(2, -1)
            )
            decided.seg[rows] = _label_map(strongest(seg, seen))
            decided.filtered[rows] = _label_map(strongest(seg, image_labels > 0))
            decided.cam[rows] = self.cam.code(cam)
            decided.aux_cam[rows] = self.aux_cam.code(aux_cam)
            decided.ensemble[rows] = self.ensemble.code((cam + aux_cam) / 2)
        return decided

    def count(self, seen: Decided, mask: np.ndarray) -> float:
        """Add one image with its mask, (H, W) uint8; on the CPU.

        Returns:
            The label-free mean IoU of this image alone, over the classes that mask or segmentation
            show; NaN for a mask that is ignored all over.
        """
        before = self.seg.confusion.copy()
        self.seg.update(seen.seg, mask)
        own = self.seg.confusion - before
        self.filtered.update(seen.filtered, mask)
        self.cam.count(seen.cam, mask)
        self.aux_cam.count(seen.aux_cam, mask)
        self.ensemble.count(seen.ensemble, mask)
        self.images += 1
        self.images_of += own.any(axis=1)
        return iou_of_image(own)

    @property
    def counts(self) -> tuple[np.ndarray, ...]:
        """The int64 arrays behind all scores; those of several sets of images add up in place."""
        metrics = (self.seg, self.filtered, self.cam, self.aux_cam, self.ensemble)
        arrays = (array for each in metrics for array in each.counts)
        return (self.images, self.images_of, *arrays)

    def compute(self, names: Sequence[str], coexistence: Sequence[int]) -> dict[str, Any]:
        """The scores of ``cosa.evaluate.evaluate`` that need masks.

        Args:
            names: of the foreground classes.
            coexistence: 0-based positions among them of the classes of C-mIoU.
        """
        seg = self.seg.compute()
        cam_iou = self.cam.iou(self.threshold)
        best = max(CAM_THRESHOLDS, key=self.cam.miou)
        scores: dict[str, Any] = {
            "miou": seg["miou"],
            "miou_label_filtered": self.filtered.compute()["miou"],
        }
        scores.update({key: seg[key] for key in ("boundary_f", "jf") if key in seg})
        scores.update(
            cam_miou=self.cam.miou(self.threshold),
            aux_cam_miou=self.aux_cam.miou(self.aux_threshold),
            ensemble_cam_miou=self.ensemble.miou(self.ensemble_threshold),
            cam_best_miou=self.cam.miou(best),
            cam_best_threshold=best,
        )
        if coexistence:
            chosen = [1 + index for index in coexistence]
            scores["cmiou"] = mean_over_present(np.array(seg["iou"])[chosen])
            scores["cam_cmiou"] = mean_over_present(cam_iou[chosen])
        names = ("background", *names)
        scores["iou"] = dict(zip(names, seg["iou"], strict=True))
        scores["cam_iou"] = dict(zip(names, cam_iou.tolist(), strict=True))
        return scores

    def parts(self) -> dict[str, Any]:
        """What the scores are made of, as JSON holds it, the background first among the classes.

        ``confusion``: (C + 1, C + 1) pixels of the label-free segmentation, rows are true classes;
        ``images_of_class``: how many masks show each; ``confidences``: pixels by the confidence
        of M', where the mask has the ``background`` and where it has a class, between ``edges``
        of which the threshold is one.
        """
        edges, background, foreground = self.cam.distribution()
        return {
            "confusion": self.seg.confusion.tolist(),
            "images_of_class": self.images_of.tolist(),
            "confidences": {"edges": edges, "background": background.tolist(),
                            "foreground": foreground.tolist()},
        }


def _label_map(labels: Tensor) -> np.ndarray:
    # Masks are uint8 files: at most 255 classes.
    return labels.to(torch.uint8).cpu().numpy()


def format_table(scores: dict[str, Any]) -> str:
    """The result of ``evaluate`` as an aligned table in percent, for people."""
    lines = []
    if "iou" in scores:
        rows = [[name, percent(iou), percent(scores["cam_iou"][name])]
                for name, iou in scores["iou"].items()]
        lines += [aligned([["class", "seg", "CAM"], *rows]), ""]
    rows = [(text, scores[key]) for key, text in NAMES.items() if key in scores]
    width = max(len(text) for text, _ in rows)
    lines += [f"{text:<{width}}  {percent(value)}" for text, value in rows]
    if "cam_best_threshold" in scores:
        lines.append(f"{'best threshold':<{width}}  {scores['cam_best_threshold']:5.2f}")
    lines.append(f"{scores['images']} images in {scores['seconds']:.1f} s")
    return "\n".join(lines)
