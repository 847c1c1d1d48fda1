"""Curves of one run or of several: what changed over iterations, and over time."""

from __future__ import annotations

from collections.abc import Sequence

from cosa.pages.markup import Markup
from cosa.report.charts import Line, colored, lines
from cosa.report.reading import Run
from cosa.report.words import time_unit
from cosa.score_names import NAMES

NO_TERMS = {"iteration", "loss", "xi", "xi_aux", "lr", "seconds"}
"""Of a line of metrics.jsonl, what is no term of the loss."""

DRAWN = ("miou", "miou_label_filtered", "cam_miou", "aux_cam_miou", "classification_map")
"""Scores that are drawn over the training."""


def curves(run: Run) -> list[Markup]:
    """Charts of a run's losses, thresholds, learning rate, and scores, as far as it has them."""
    found = [
        _metrics(run, "Loss", ["loss"], note="weighted sum of the terms"),
        _metrics(run, "Terms of the loss", _terms(run), log=True, note="each without its weight"),
        _metrics(run, "Thresholds", ["xi", "xi_aux"], named={"xi": "ξ", "xi_aux": "ξ†, auxiliary"},
                 limits=(0, 1), note="above it, a CAM's pixel becomes a class"),
        _metrics(run, "Learning rate", ["lr"], note="of the encoder"),
    ]
    for time in (False, True):
        series = [
            line for key, color in colored(DRAWN).items()
            if (line := score_line(run, key, NAMES[key], color, time)) is not None
        ]
        if series:
            title = "Scores over time" if time else "Scores over iterations"
            alone = f"{series[0].label} " if len(series) == 1 else ""  # which has no legend
            note = f"{alone}on the images scored, by which best.pth is chosen"
            found.append(_over(title, [run], series, time, note))
    return [chart for chart in found if chart is not None]


def _terms(run: Run) -> list[str]:
    """The terms of the loss, in the order in which they began."""
    return [*dict.fromkeys(key for line in run.metrics for key in line if key not in NO_TERMS)]


def _metrics(
    run: Run, title: str, keys: Sequence[str], named: dict[str, str] | None = None,
    log: bool = False, limits: tuple[float, float] | None = None, note: str = "",
) -> Markup | None:
    """A chart of some keys of metrics.jsonl over the iterations."""
    series = [
        line for key, color in colored(keys).items()
        if (line := metric_line(run, key, (named or {}).get(key, key), color)) is not None
    ]
    if not series:
        return None
    return lines(title, series, "iteration", log=log, limits=limits, note=note)


def metric_line(run: Run, key: str, label: str, color: str, style: str = "-") -> Line | None:
    """A key of metrics.jsonl over the iterations; None if no line has it."""
    points = [(line["iteration"], line[key]) for line in run.metrics if line.get(key) is not None]
    if not points:
        return None
    return Line(label, *zip(*points, strict=True), color, style)


def score_line(
    run: Run, key: str, label: str, color: str, time: bool, style: str = "-"
) -> Line | None:
    """A score of the evaluations over iterations or seconds; None if there is none."""
    points = []
    for scores in run.evaluations:
        at = scores["iteration"]
        if time:
            at = scores.get("training_seconds", run.seconds_at(at))
        if at is not None and scores.get(key) is not None:
            points.append((at, 100 * scores[key]))
    return Line(label, *zip(*points, strict=True), color, style, points=True) if points else None


def _over(title: str, runs: Sequence[Run], series: list[Line], time: bool, note: str) -> Markup:
    """A chart of scores in percent."""
    x = "iteration"
    if time:
        factor, unit = time_unit(max(max(line.x) for line in series))
        series = [
            Line(line.label, [at / factor for at in line.x], line.y, line.color, line.style, True)
            for line in series
        ]
        x = f"{unit} of training, evaluations included"
    return lines(title, series, x, "%", note=note)


def compared(runs: Sequence[Run], labels: Sequence[str]) -> list[Markup]:
    """Charts of several runs over each other, each run a colour.

    Args:
        labels: of the runs, no two alike.
    """
    colors, found = colored(labels), []

    def of_all(make) -> list[Line]:
        made = (make(run, label, colors[label]) for run, label in zip(runs, labels, strict=True))
        return [line for line in made if line is not None]

    for time in (False, True):
        for key in ("miou", "classification_map") if not time else ("miou",):
            series = of_all(lambda run, label, color, key=key, time=time:
                            score_line(run, key, label, color, time))
            if series:
                over = "time" if time else "iterations"
                title = NAMES[key][0].upper() + NAMES[key][1:]
                found.append(_over(f"{title} over {over}", runs, series, time,
                                   "on the validation images"))
    for key, title in (("loss", "Loss"), ("xi", "Threshold ξ"), ("lr", "Learning rate")):
        series = of_all(lambda run, label, color, key=key: metric_line(run, key, label, color))
        if series:
            found.append(lines(title, series, "iteration", limits=(0, 1) if key == "xi" else None))
    return found
