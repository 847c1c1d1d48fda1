"""What the numbers of a campaign say about each claim, without anyone's wishes in between.

Runs are paired by seed: both see the same batches. The noise of a mean difference is its standard
error over the seeds; a difference of less than two of them is noise.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from cosa.benchmark.campaigns.statistics import Results, mean_and_deviation, paired, percent

HOLDS, FAILS, NOISE, OPEN = "holds", "does not hold", "within noise", "not measured"
STANDARD_ERROR = " (SE)"


@dataclass(frozen=True)
class Verdict:
    """One claim and what became of it."""

    claim: str
    status: str
    details: str

    def __str__(self) -> str:
        return f"{self.claim}: {self.status} ({self.details})"


def judge(differences: Sequence[float]) -> tuple[str, float, float]:
    """Status of "the differences are above 0", with their mean and its standard error.

    One value has no standard error (NaN), and decides nothing.
    """
    mean, deviation = mean_and_deviation(differences)
    error = deviation / math.sqrt(len(differences))
    if math.isnan(error):
        return f"{OPEN}, one seed shows no noise", mean, error
    if abs(mean) <= 2 * error:
        return NOISE, mean, error
    return (HOLDS if mean > 0 else FAILS), mean, error


def verdicts(results: Results) -> list[Verdict]:
    """All claims of the ablation; "not measured" where rows or scores are missing."""
    cosa = "cosa"
    return [
        share(results, 0.8, "CoSA reaches 80 % of the supervised bound"),
        share(results, 0.9, "CoSA reaches 90 % of the supervised bound (the aim)"),
        difference(
            results, "CoSA is 10 points above the CAMs of classification alone at their peak",
            (cosa, "miou"), ("classification-only-peak", "cam_best_miou"), margin=0.1,
            note="label-free against CAMs at their best threshold and with image labels",
        ),
        dynamic(results, "miou", "the dynamic threshold is at least as good as the best fixed one"),
        difference(results, "CSC helps coexistence classes (C-mIoU)",
                    (cosa, "cmiou"), ("without-csc", "cmiou")),
        difference(results, "CSC helps the CAMs of coexistence classes (CAM C-mIoU)",
                    (cosa, "cam_cmiou"), ("without-csc", "cam_cmiou")),
        difference(results, "swapping (Seg2CAM) helps (mIoU)",
                    (cosa, "miou"), ("without-swapping", "miou")),
        difference(results, "swapping (Seg2CAM) helps the CAMs (CAM mIoU)",
                    (cosa, "cam_miou"), ("without-swapping", "cam_miou")),
        difference(results, "RAW helps (mIoU)", (cosa, "miou"), ("without-raw", "miou")),
    ]


def difference(
    results: Results,
    claim: str,
    first: tuple[str, str],
    second: tuple[str, str],
    margin: float = 0.0,
    note: str = "",
) -> Verdict:
    """Whether the first (row, score) is more than ``margin`` above the second, seed by seed."""
    pairs = paired(results, first, second)
    if not pairs:
        rows = f"{first[0]} and {second[0].removesuffix('-peak')}"
        return Verdict(claim, OPEN, f"needs the score {first[1]} and the rows {rows}")
    status, mean, error = judge([x - y - margin for x, y in pairs])
    details = [f"difference {_points(mean + margin, error)}", f"{len(pairs)} seeds"]
    return Verdict(claim, status, "; ".join([*details, note] if note else details))


def reaches(results: Results, claim: str, score: tuple[str, str], target: float) -> Verdict:
    """Whether a (row, score) is more than ``target``."""
    values = [x for x, _ in paired(results, score, score)]
    if not values:
        return Verdict(claim, OPEN, f"needs the score {score[1]} and the row {score[0]}")
    status, mean, error = judge([x - target for x in values])
    reached = percent(mean + target, error, note=STANDARD_ERROR)
    return Verdict(claim, status, f"{reached} %; {len(values)} seeds")


def share(results: Results, target: float, claim: str) -> Verdict:
    """Whether CoSA's mIoU is more than that share, in [0, 1], of the supervised bound's."""
    pairs = paired(results, ("cosa", "miou"), ("supervised", "miou"))
    if not pairs or any(bound == 0 for _, bound in pairs):
        return Verdict(claim, OPEN, "needs the rows cosa and supervised")
    status, mean, error = judge([x / bound - target for x, bound in pairs])
    reached = percent(mean + target, error, note=STANDARD_ERROR)
    return Verdict(claim, status, f"{reached} %; {len(pairs)} seeds")


def dynamic(results: Results, key: str, claim: str) -> Verdict:
    """Whether CoSA's score ``key`` is above that of the fixed threshold that has the best."""
    fixed = {row: paired(results, ("cosa", key), (row, key))
             for row in results if row.startswith("fixed-")}
    fixed = {row: pairs for row, pairs in fixed.items() if pairs}
    if not fixed:
        return Verdict(claim, OPEN, f"needs the score {key}, the row cosa and rows fixed-*")
    best = max(fixed, key=lambda row: statistics.fmean(y for _, y in fixed[row]))
    pairs = fixed[best]
    status, mean, error = judge([x - y for x, y in pairs])
    deviations = [mean_and_deviation(values)[1] for values in zip(*pairs, strict=True)]
    pooled = math.sqrt(statistics.fmean(d * d for d in deviations))
    spread = "" if math.isnan(pooled) else f"; pooled std {percent(pooled)}"
    name = best.removeprefix("fixed-")
    return Verdict(claim, status, f"to {name}: {_points(mean, error)}{spread}; {len(pairs)} seeds; "
                   "the fixed one is picked by the scores shown here, in its favour")


def _points(mean: float, error: float) -> str:
    return f"{percent(mean, error, '+', STANDARD_ERROR)} points"
