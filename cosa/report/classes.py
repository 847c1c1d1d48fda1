"""What became of each class: its IoU, what it is taken for, and how confident its CAM is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cosa.core.text import NAME, shown
from cosa.pages.markup import Markup, element, joined, name, table
from cosa.report.charts import COLORS, Mark, bars, histogram, matrix
from cosa.report.reading import Run
from cosa.report.words import percent

CONFUSIONS = 8
"""Of the commonest ones in the table."""


def images_of_class(run: Run) -> list[int] | None:
    """How many scored images show each class, the background first; None if nothing tells."""
    scores, details = run.scores, run.details
    if details and details.get("images_of_class") and _told(run):
        return details["images_of_class"]
    if scores and scores.get("split", "val") == "val" and run.data:
        labels = (run.data.get("validation") or {}).get("labels")
        return labels and [labels["images"], *labels["of_class"]]
    return None


def _told(run: Run) -> bool:
    """Whether the details are of the evaluation that the scores are of."""
    split = (run.scores or {}).get("split", "val")
    return bool(run.details) and run.details.get("split") == split


def per_class(run: Run) -> Markup | None:
    """Bars of the IoU of each class, and a table; None without masks."""
    scores = run.scores
    if not scores or not scores.get("iou"):
        return None
    cam, counts = scores.get("cam_iou", {}), images_of_class(run)
    rows = []
    for number, (label, iou) in enumerate(scores["iou"].items()):
        many = counts[number] if counts and number < len(counts) else None
        rows.append((label, _number(iou), _number(cam.get(label)), many))
    first, *rest = rows
    rest.sort(key=lambda row: -row[1] if not math.isnan(row[1]) else 1)
    rows = [*rest, first]  # the background last: it is no class of the data set
    names = [_counted(row[0], row[3]) for row in rows]
    note = "in brackets: images whose mask shows the class" if counts else None
    if any(math.isnan(row[1]) for row in rows):
        note = joined(note and f"{note}; ", "without a bar: no mask shows the class")
    chart = bars(
        "IoU of each class", names,
        {"segmentation, label-free": [row[1] for row in rows],
         "CAM at ξ, filtered by the labels": [row[2] for row in rows]},
        "IoU in %", note,
    )
    cells = [(name(_cut(label)), "–" if many is None else many, percent(iou), percent(cam_iou))
             for label, iou, cam_iou, many in rows]
    numbers = element("figure", element("h3", "The same in numbers"),
                      table(("class", "images", "segmentation", "CAM"), cells))
    return element("div", chart, numbers, class_="grid")


def _counted(label: Any, many: int | None) -> str:
    return shown(label, 22) + ("" if many is None else f" ({many})")


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def confusion(run: Run) -> Markup | None:
    """What pixels of each true class are taken for; None if it was not recorded."""
    details = run.details
    if not details or not details.get("confusion") or not _told(run):
        return None
    counts = np.array(details["confusion"], dtype=float)
    shares = np.divide(counts, counts.sum(axis=1, keepdims=True), out=np.zeros_like(counts),
                       where=counts.sum(axis=1, keepdims=True) > 0)
    names = details["classes"]
    chart = matrix("Confusion matrix", names, shares,
                   "a row is a true class, its numbers the shares in % of its pixels")
    mistaken = counts - np.diag(np.diag(counts))
    order = np.argsort(-mistaken, axis=None, kind="stable")[:CONFUSIONS]
    rows = [
        (joined(name(_cut(names[true])), " → ", name(_cut(names[taken]))),
         percent(shares[true, taken]), percent(mistaken[true, taken] / counts.sum()))
        for true, taken in zip(*np.unravel_index(order, counts.shape), strict=True)
        if mistaken[true, taken]
    ]
    common = element(
        "figure",
        element("h3", "Commonest mistakes"),
        table(("truth → segmented as", "of its pixels", "of all pixels"), rows),
    )
    return element("div", chart, common, class_="grid")


def _cut(label: Any) -> str:
    return shown(label, NAME)


def confidences(run: Run) -> list[Markup]:
    """Distributions of the CAMs' confidences with the thresholds on them."""
    details, found = run.details, []
    if not details:
        return found
    xi, xi_aux = details.get("xi", (None, None))
    named = {"cam": "CAM", "aux_cam": "auxiliary CAM"}
    fitted = {named.get(key, key): many for key, many in details.get("fitted", {}).items()
              if sum(many)}
    lengths = {len(many) for many in fitted.values()}
    if len(lengths) == 1:
        marks = [
            Mark(label, value, color, style)
            for label, value, color, style in (
                (f"ξ = {_told_number(xi)}", xi, COLORS[0], "-"),
                (f"ξ† = {_told_number(xi_aux)}", xi_aux, COLORS[1], "--"))
            if value is not None
        ]
        edges = np.linspace(0, 1, lengths.pop() + 1)
        found.append(histogram(
            "Confidences in training", edges, fitted, "confidence", marks,
            "of the last batches: what the thresholds are fitted to"))
    seen = details.get("confidences")
    if seen:
        counts = {"true background": seen["background"], "true class": seen["foreground"]}
        marks = [] if xi is None else [Mark(f"ξ = {_told_number(xi)}", xi, "#d62728")]
        found.append(histogram(
            "Confidences of the CAM, by truth", seen["edges"], counts, "confidence", marks,
            "pixels of the scored images; ξ is to part the two"))
    if details.get("image_scores") and sum(details["image_scores"]):
        edges = np.linspace(0, 1, len(details["image_scores"]) + 1)
        found.append(histogram(
            "mIoU of single images", edges, {"images": details["image_scores"]}, "label-free mIoU",
            note="of the classes that mask or segmentation of an image show", y="images"))
    return found


def _told_number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
