"""What the scores of an evaluation are called, what they mean, and which values they can have."""

from __future__ import annotations

from typing import Annotated, TypedDict

from cosa.core.declared import Within

NAMES = {
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
    "miou_label_filtered": "mIoU after all classes are removed that the image's true "
                           "labels exclude, as published figures of this method are",
    "cam_miou": "the class activation map as a pseudo-label, at the trained threshold; its classes "
                "are filtered by the labels",
    "aux_cam_miou": "the auxiliary classifier's map as a pseudo-label, likewise",
    "ensemble_cam_miou": "the mean of both maps at the mean of both thresholds",
    "cam_best_miou": "the threshold was chosen on these very masks: a bound, not a result",
    "boundary_f": "how well contours match, label-free, over the classes but the background",
    "jf": "mean of the label-free mIoU and contour quality",
    "cmiou": "label-free mIoU over evaluate.coexistence_classes",
    "cam_cmiou": "CAM mIoU over evaluate.coexistence_classes",
    "classification_map": "mean average precision of which classes an image holds",
    "classification_f1": "mean F1 of which classes an image holds",
}
"""Key of a score -> what it is."""

Share = Annotated[float, Within(0, 1)] | None
"""None: undefined, as where there are no masks."""


class Scores(TypedDict, total=False):
    """What ``cosa.evaluate.evaluate`` returns, and what a run adds to it."""

    miou: Share
    miou_label_filtered: Share
    boundary_f: Share
    jf: Share
    cmiou: Share
    cam_cmiou: Share
    cam_miou: Share
    aux_cam_miou: Share
    ensemble_cam_miou: Share
    cam_best_miou: Share
    cam_best_threshold: float
    classification_map: Share
    classification_f1: Share
    iou: dict[str, Share]
    cam_iou: dict[str, Share]
    images: int
    seconds: float
    training_seconds: float
    iteration: int


class Summary(Scores, total=False):
    """Of a run's summary.json."""

    split: str
    iterations: int
    xi: float | None
    xi_aux: float | None
    best_validation_score: float
    evaluation_seconds: float
    peak_memory_mb: float | None
