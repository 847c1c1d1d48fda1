"""The ablation's table, and how the cells of such tables are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cosa.benchmark.campaigns.peak import PEAK_EVALUATIONS
from cosa.benchmark.campaigns.statistics import (
    Results,
    known,
    mean_and_deviation,
    paired,
    percent,
    score_cell,
)
from cosa.benchmark.tables import NOTHING
from cosa.scores import CAM_THRESHOLDS


@dataclass(frozen=True)
class Line:
    """A line of the table. Heads that a row does not train have no score there."""

    row: str
    label: str
    trains_segmentation: bool = True
    trains_cams: bool = True


LINES = (
    Line("supervised", "fully supervised", trains_cams=False),
    Line("classification-only-end", "classification only, at the end", trains_segmentation=False),
    Line("classification-only-peak", "classification only, at its peak",
         trains_segmentation=False),
    Line("cosa", "CoSA"),
    Line("without-swapping", "without swapping"),
    Line("without-raw", "without RAW"),
    Line("without-csc", "without CSC"),
    Line("fixed-0.3", "fixed threshold 0.3"),
    Line("fixed-0.5", "fixed threshold 0.5"),
    Line("fixed-0.7", "fixed threshold 0.7"),
)

SEGMENTATION = {
    "miou": "mIoU", "share": "% of supervised", "miou_label_filtered": "mIoU filtered",
    "crf_miou": "mIoU with CRF", "boundary_f": "F", "jf": "J&F", "cmiou": "C-mIoU",
}
CAMS = {
    "cam_miou": "CAM at ξ", "cam_best_miou": "CAM best", "aux_cam_miou": "aux CAM at ξ†",
    "cam_cmiou": "CAM C-mIoU", "plain_cam_best_miou": "CAM best, not spread",
    "train_cam_miou": "CPL, training",
    "train_cam_best_miou": "CAM best, training", "train_aux_cam_miou": "aux CPL, training",
}
COSTS = {"training_seconds": "seconds", "peak_memory_mb": "peak MiB"}
NAMES = SEGMENTATION | CAMS | COSTS
"""Score -> its name at the head of a column."""

COLUMNS = ("miou", "share", "cam_miou", "cam_best_miou", "aux_cam_miou", "cmiou", "cam_cmiou",
           "miou_label_filtered", "training_seconds")

LEGEND = f"""\
All scores are in percent, mean ± standard deviation over the seeds, of the averaged (EMA) network.
`mIoU` is label-free: nothing but the image leads to the prediction. `mIoU filtered` leaves out the
classes that the image does not have, as published tables do. CAMs are always filtered so; `CAM at
ξ` uses the run's own threshold (classification alone adapts none and has no such score), `CAM
best` the best of {len(CAM_THRESHOLDS)} thresholds, chosen on the masks, hence an upper bound.
`C-mIoU` averages the coexistence classes. `seconds` is the training time without evaluations.
*At its peak* is the checkpoint with the best `CAM best` on the validation images, of about
{PEAK_EVALUATIONS} during the run, scored as the others are."""


def table(
    results: Results, lines: Sequence[Line] = LINES, columns: Sequence[str] = COLUMNS
) -> list[list[str]]:
    """Header and one list of cells for each line of the table that was run.

    Args:
        columns: keys of ``NAMES``.
    """
    rows = [["row", *(NAMES[key] for key in columns)]]
    for line in lines:
        if line.row in results:
            rows.append([line.label, *(_cell(results, line, key) for key in columns)])
    return rows


def _cell(results: Results, line: Line, key: str) -> str:
    if key in SEGMENTATION and not line.trains_segmentation:
        return NOTHING
    if key in CAMS and not line.trains_cams:
        return NOTHING
    if key == "share":
        pairs = paired(results, (line.row, "miou"), ("supervised", "miou"))
        if not pairs or not all(bound for _, bound in pairs):
            return NOTHING
        return percent(mean_and_deviation([x / bound for x, bound in pairs])[0])
    if key in COSTS:
        values = known(results[line.row], key)
        return f"{mean_and_deviation(values)[0]:.0f}" if values else NOTHING
    return score_cell(results[line.row], key)
