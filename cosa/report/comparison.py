"""Several runs on one page: their scores with the spread over seeds, and what differs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from cosa.core.text import NAME, shown
from cosa.pages.markup import Markup, element, joined, name, page
from cosa.pages.markup import table as table_of
from cosa.pages.style import STYLE
from cosa.report.charts import bars
from cosa.report.curves import compared
from cosa.report.reading import Run
from cosa.report.run_page import navigation, section
from cosa.report.settings import images_per_second, values
from cosa.report.summary import images_scored
from cosa.report.words import duration, megabytes, percent
from cosa.score_names import MEANINGS, NAMES

NO_SETTINGS = {
    "seed", "name", "output", "device", "data.workers", "data.root", "data.keep_decoded",
    "train.report", "train.tensorboard", "train.log_every", "train.checkpoint_every",
    "train.checkpoint_minutes", "train.keep_checkpoints", "evaluate.panels",
}
"""Options that make no other result: runs that differ in nothing else are repetitions."""

COMPARED = ("miou", "miou_label_filtered", "cam_miou", "classification_map")

MOST_BARS = 5
"""Groups whose classes are compared by bars."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone."""

    label: str
    runs: list[Run]


def comparison_page(runs: Sequence[Run]) -> str:
    """The whole page.

    Raises:
        UserError: matplotlib is not installed.
    """
    labels = distinct([run.name for run in runs], [str(run.folder.path) for run in runs])
    groups = grouped(runs, labels)
    charts = compared(runs, labels)
    sections = [
        section("scores", "Scores", _scores(groups)),
        section("curves", "Curves", charts and element("div", charts, class_="grid")),
        section("classes", "Classes", _classes(groups)),
        section("settings", "Differing settings", _settings(groups)),
        section("runs", "Runs", _runs(runs, labels)),
    ]
    problems = [element("p", problem, class_="warning") for run in runs for problem in run.problems]
    head = element(
        "header", element("h1", f"CoSA: {len(runs)} runs compared"),
        element("p", joined(*_between([name(_cut(label)) for label in labels])), class_="pale"),
        problems, navigation(sections),
    )
    return page("CoSA: runs compared", STYLE, head, [content for _, _, content in sections])


def distinct(names: Sequence[str], paths: Sequence[str]) -> list[str]:
    """The names, with the path behind those that occur twice."""
    return [label if names.count(label) == 1 else f"{label} ({path})"
            for label, path in zip(names, paths, strict=True)]


def grouped(runs: Sequence[Run], labels: Sequence[str]) -> list[Group]:
    """The runs by their settings, in order; each that cannot tell them is a group of its own."""
    found: dict[Any, list[tuple[Run, str]]] = {}
    for number, (run, label) in enumerate(zip(runs, labels, strict=True)):
        key: Any = number
        if run.config is not None:
            key = tuple(item for item in values(run.config).items() if item[0] not in NO_SETTINGS)
        found.setdefault(key, []).append((run, label))
    return [Group(", ".join(label for _, label in some), [run for run, _ in some])
            for some in found.values()]


def spread(shares: Sequence[float]) -> str:
    """The mean of some shares in percent, with their sample standard deviation if there are two."""
    if not shares:
        return "–"
    if len(shares) == 1:
        return percent(shares[0])
    return f"{100 * mean(shares):.1f} ± {100 * stdev(shares):.1f} %"


def _scores(groups: Sequence[Group]) -> Markup:
    keys = [key for key in COMPARED if any((run.scores or {}).get(key) is not None
                                           for group in groups for run in group.runs)]
    rows = []
    for group in groups:
        cells = []
        for key in keys:
            known = [(run.scores or {}).get(key) for run in group.runs]
            cells.append(spread([value for value in known if value is not None]))
        rows.append((name(_cut(group.label)), len(group.runs), _seeds(group), *cells))
    what = [element("li", element("b", NAMES[key]), ": ", MEANINGS[key]) for key in keys]
    scored = [*dict.fromkeys(images_scored(run) for group in groups for run in group.runs)]
    if len(scored) == 1:
        told = element("p", f"Scores on {scored[0]}.")
    else:
        told = element("p", "The runs were scored on different images, so that their scores cannot "
                            f"be compared as they are: {'; '.join(scored)}.", class_="warning")
    unfinished = [run.name for group in groups for run in group.runs if run.summary is None]
    return element(
        "div", told,
        element("p", "Not trained to the end, scores so far: ",
                *_between([name(_cut(one)) for one in unfinished]), class_="warning")
        if unfinished else None,
        table_of(("settings", "runs", "seeds", *(NAMES[key] for key in keys)), rows),
        element("p", "Runs that differ in their seed alone are one row: the mean, ± the sample "
                     "standard deviation over the seeds.", class_="pale"),
        element("ul", what, class_="pale"),
    )


def _seeds(group: Group) -> str:
    return ", ".join(str(run.config.seed) if run.config else "?" for run in group.runs)


def _between(parts: Sequence[Markup]) -> list[Any]:
    """The parts with commas between them."""
    return [item for part in parts for item in (", ", part)][1:]


def _settings(groups: Sequence[Group]) -> Markup:
    """Options in which the groups differ; those that cannot tell have dashes."""
    options = [values(group.runs[0].config) if group.runs[0].config else {} for group in groups]
    keys = [*dict.fromkeys(key for some in options for key in some if key not in NO_SETTINGS)]
    rows = [
        (key, *(some.get(key, "–") for some in options)) for key in keys
        if len({some[key] for some in options if key in some}) > 1
    ]
    if not rows:
        return element("p", "The runs differ in their seeds at most.", class_="pale")
    return table_of(("option", *(name(_cut(group.label)) for group in groups)), rows, "words")


def _classes(groups: Sequence[Group]) -> Markup | None:
    """Bars of the IoU of each class, means of each group."""
    known = [
        (group.label, [run.scores["iou"] for run in group.runs
                       if run.scores and run.scores.get("iou")])
        for group in groups
    ]
    known = [(label, some) for label, some in known if some][:MOST_BARS]
    if not known:
        return None
    names = [*known[0][1][0]]
    if any([*iou] != names for _, some in known for iou in some):
        return element("p", "The runs have different classes.", class_="warning")
    names = [*names[1:], names[0]]  # the background last: it is no class of the data set
    means = {
        label: [_mean([iou[one] for iou in some]) for one in names] for label, some in known
    }
    left_out = len(groups) - len(known)
    note = (f"{left_out} more row{'s' if left_out > 1 else ''} of the table not drawn"
            if left_out else None)
    return bars("Label-free IoU of each class", [str(one) for one in names], means, "IoU in %",
                note)


def _mean(shares: Sequence[float | None]) -> float:
    known = [share for share in shares if share is not None]
    return mean(known) if known else math.nan


def _runs(runs: Sequence[Run], labels: Sequence[str]) -> Markup:
    """One row for each run."""
    rows = []
    for run, label in zip(runs, labels, strict=True):
        scores, speed = run.scores or {}, images_per_second(run)
        rows.append((
            name(_cut(label)), run.config.seed if run.config else "–", run.iteration,
            *(percent(scores.get(key)) for key in COMPARED),
            duration((run.summary or {}).get("seconds", run.seconds_at(run.iteration))),
            "–" if speed is None else f"{speed:.1f}",
            megabytes((run.summary or {}).get("peak_memory_mb")),
            run.starts[-1]["revision"] if run.starts else "not recorded",
        ))
    header = ("run", "seed", "iterations", *(NAMES[key] for key in COMPARED), "time",
              "images a second", "memory", "program")
    return table_of(header, rows)


def _cut(label: object) -> str:
    return shown(label, NAME)
