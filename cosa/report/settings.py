"""How a run was made: configuration, program, machine, speed and memory."""

from __future__ import annotations

import json
from statistics import median
from typing import Any

from cosa.config import Config
from cosa.config.loading import each_option
from cosa.pages.markup import Markup, element, table
from cosa.report.reading import Run
from cosa.report.words import duration, megabytes


def settings_section(run: Run) -> Markup:
    """What differs from the defaults, and then everything."""
    if run.config is None:
        return element("p", "The configuration cannot be read.", class_="pale")
    options, defaults = values(run.config), values(Config())
    changed = [(key, value, defaults[key]) for key, value in options.items()
               if value != defaults[key]]
    return element(
        "div",
        element("p", f"{len(changed)} of {len(options)} options differ from the defaults, which "
                     "are the paper's on PASCAL VOC.", class_="pale"),
        table(("option", "value", "default"), changed, "words"),
        element("details", element("summary", "All options"),
                table(("option", "value"), options.items(), "words")),
    )


def values(config: Config) -> dict[str, str]:
    """Key -> value of each option, as it could be written in a YAML file."""
    return {key: written(value) for key, value, _ in each_option(config)}


def written(value: Any) -> str:
    """A value of an option as text."""
    if isinstance(value, str):
        return value or "''"
    return json.dumps(value, ensure_ascii=False, default=str)


def images_per_second(run: Run) -> float | None:
    """Training images in a second, the median between lines of metrics.jsonl; None if unknown.

    Evaluations fall into some of the intervals only.
    """
    points = [(line["iteration"], line.get("seconds")) for line in run.metrics]
    points = [(done, seconds) for done, seconds in points if seconds is not None]
    rates = [
        (later - done) / (then - seconds)
        for (done, seconds), (later, then) in zip(points, points[1:], strict=False)
        if then > seconds
    ]
    return median(rates) * run.config.train.batch_size if rates and run.config else None


def machine_section(run: Run) -> Markup:
    """Revision, versions, device, speed and memory."""
    speed, last = images_per_second(run), run.starts[-1] if run.starts else None
    summary, details = run.summary or {}, run.details or {}
    seconds = summary.get("seconds", run.seconds_at(run.iteration))
    memory = summary.get("peak_memory_mb", details.get("peak_memory_mb"))
    rows = [
        ("training time", f"{duration(seconds)}, evaluations on the way included"),
        ("speed", "not recorded" if speed is None else
            f"{speed:.1f} images a second, between evaluations"),
        ("peak memory", megabytes(memory)),
    ]
    if last is None:
        rows.append(("program and machine", "not recorded: the run is of an earlier version"))
    else:
        rows += [
            ("device", last["device"]),
            ("machine", last["machine"]),
            ("processes", last["processes"]),
            ("program", last["revision"]),
            ("versions", ", ".join(f"{key} {value}" for key, value in last["versions"].items())),
            ("begun", run.starts[0]["date"]),
        ]
        if len(run.starts) > 1:
            at = ", ".join(str(start["iteration"]) for start in run.starts[1:])
            rows.append(("resumed", f"{len(run.starts) - 1} times, at iteration {at}"))
    rows.append(("folder", run.folder.path))
    return table(("", ""), rows, "words")
