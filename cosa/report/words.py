"""What a report calls the scores, and how it writes numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

SCORES = {
    "miou": "label-free mIoU",
    "miou_label_filtered": "label-filtered mIoU",
    "cam_miou": "CAM mIoU at ξ",
    "aux_cam_miou": "auxiliary CAM mIoU at ξ†",
    "ensemble_cam_miou": "mIoU of both CAMs' mean",
    "cam_best_miou": "CAM mIoU at the best threshold for these masks",
    "boundary_f": "contour quality F",
    "jf": "J&F",
    "cmiou": "C-mIoU",
    "cam_cmiou": "CAM C-mIoU",
    "classification_map": "classification mAP",
    "classification_f1": "classification F1",
}
"""Key of a score -> its name."""

MEANINGS = {
    "miou": "mean over the classes of intersection over union; nothing but the image leads to the "
            "segmentation",
    "miou_label_filtered": "the same after all classes are removed that the image's true labels "
                           "exclude, as published figures of this method are",
    "cam_miou": "the class activation map as a pseudo-label, at the trained threshold; its classes "
                "are filtered by the labels",
    "aux_cam_miou": "the same of the auxiliary classifier's map",
    "ensemble_cam_miou": "the mean of both maps at the mean of both thresholds",
    "cam_best_miou": "the threshold was chosen on these very masks: a bound, not a result",
    "boundary_f": "how well contours match, label-free, over the classes but the background",
    "jf": "mean of the label-free mIoU and contour quality",
    "cmiou": "label-free mIoU over evaluate.coexistence_classes",
    "cam_cmiou": "the same of the class activation map",
    "classification_map": "mean average precision of which classes an image holds",
    "classification_f1": "mean F1 of the same",
}


def percent(share: float | None) -> str:
    """A share, or a dash where there is none."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.1f} %"


def first_score(scores: Mapping[str, Any]) -> str:
    """The key of the score: the label-free one, without masks that of the classification."""
    return "miou" if "miou" in scores else "classification_map"


def duration(seconds: float | None) -> str:
    """Seconds in the unit that suits them."""
    if seconds is None:
        return "not recorded"
    factor, unit = time_unit(seconds)
    return f"{seconds / factor:.1f} {unit}" if factor > 1 else f"{seconds:.0f} s"


def time_unit(seconds: float) -> tuple[float, str]:
    """Seconds of the unit that suits such a time, and the unit's name."""
    if seconds >= 2 * 3600:
        return 3600.0, "hours"
    return (60.0, "minutes") if seconds >= 120 else (1.0, "seconds")


def megabytes(size: float | None) -> str:
    """MiB in the unit that suits them."""
    if size is None:
        return "not recorded"
    return f"{size / 1024:.1f} GiB" if size >= 1024 else f"{size:.0f} MiB"
