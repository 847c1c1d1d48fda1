"""What benchmarks that train many runs share: command line, plan, execution and collection."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scipy.stats import t as student_t  # comes with scikit-learn

from cosa.benchmark import stamp, tables
from cosa.benchmark.campaigns.runner import Run, Runner
from cosa.benchmark.campaigns.statistics import Results
from cosa.benchmark.campaigns.verdicts import Verdict
from cosa.config import Config, load_config, settled, to_dict
from cosa.config.schedule import is_settled, settings
from cosa.core.device import choose_device
from cosa.core.errors import UserError
from cosa.core.files import PROJECT_FOLDER, write_atomically
from cosa.core.ranges import whole
from cosa.core.terminal import Parser, say
from cosa.core.text import aligned
from cosa.core.threads import core_count
from cosa.data import build_dataset
from cosa.data.order import trained_on
from cosa.training.run_folder import RunFolder

DEFAULT_CONFIG = "configs/demo.yaml"
DEFAULT_JOBS = 2

SPLIT_NOTES = {
    "test": "Training, validation and test scenes come from different splits and never share an "
            "image. Choices are made on validation scenes, the table is on test scenes.",
    "val": "This data set has no test split: choices and scores are on the same validation images.",
}
"""Split that was scored -> what a report must say about it."""

HELD_OUT_NOTE = (
    "Of the validation images, in the order of their names, choices are made on the first half "
    "and the table is on the second, which no choice has seen."
)
"""What it says instead of the first where the test images are held out (``data.hold_out``)."""

Rows = Mapping[str, Callable[[Config], list[str]]]
"""Name of a row -> what it changes in the configuration."""

Commands = Callable[[str, str, list[str]], tuple[tuple[str, ...], ...]]
"""(row, configuration file, overrides) -> programs and arguments that make a run."""


def train_commands(row: str, config: str, changes: list[str]) -> tuple[tuple[str, ...], ...]:
    """One run of train.py."""
    return ((sys.executable, str(PROJECT_FOLDER / "train.py"), config, *changes),)


def benchmark_command(*arguments: str) -> tuple[str, ...]:
    """One call of ``python -m cosa.benchmark``."""
    return (sys.executable, "-m", "cosa.benchmark", *arguments)


def plan(
    rows: Rows,
    commands: Commands,
    config: str,
    overrides: Sequence[str],
    chosen: Sequence[str],
    seeds: Sequence[int],
    output: str,
    workers: int,
    revision: stamp.Revision,
    details: Mapping[str, Any] | None = None,
) -> list[Run]:
    """All runs, seed by seed, so that an interrupted campaign has whole tables.

    Args:
        rows: all rows that there are; those ``chosen`` are run.
        workers: loader processes of each run, unless the configuration says how many.
        revision: of the program that makes all of them.
        details: see ``Run.details``.

    Raises:
        UserError: the configuration or an override is not usable.
    """
    base = load_config(config, overrides)
    runs = []
    for seed in seeds:
        for row in chosen:
            # Nobody looks at the pages of so many runs.
            changes = ["train.report=false", *overrides, *rows[row](base),
                       f"name={row}-seed{seed}", f"seed={seed}", f"output={json.dumps(output)}"]
            if base.data.workers < 0:
                changes.append(f"data.workers={workers}")
            runs.append(Run(row, load_config(config, changes), commands(row, config, changes),
                            revision, details or {}))
    return runs


def execute(
    started: stamp.Stamp,
    rows: Rows,
    given: argparse.Namespace,
    commands: Commands = train_commands,
    details: Mapping[str, Any] | None = None,
) -> tuple[list[Run], dict[str, Any]]:
    """Complete all runs that the command line asks for, all of one revision of the program.

    Args:
        started: when the benchmark started.
        given: what :func:`parse` returned.
        details: see ``Run.details``.

    Returns:
        The finished runs and the facts about them that a report must state.

    Raises:
        UserError: something is not usable, a run failed, or the program was changed meanwhile.
    """
    share = max(1, core_count() // given.jobs)
    runs = plan(rows, commands, given.config, given.overrides, given.rows, given.seeds,
                given.output, share - 1, started.revision, details)
    facts = started.facts(choose_device(runs[0].config.device))
    tables.read_report(given.report, started.topic)
    # Two at once would each delete the runs that the other has begun.
    with RunFolder(given.output).locked(), terminate_as_interrupt():
        Runner(given.jobs, share, started.require_unchanged, facts["machine"]).complete(runs)
    return runs, {
        **facts,
        "machine": machines_of(runs, facts["machine"]),
        "jobs": given.jobs,
        "threads": share,
        "config_file": given.config,
        "config": to_dict(load_config(given.config, given.overrides)),
        "seeds": given.seeds,
    }


def machines_of(runs: Sequence[Run], here: str) -> str:
    """The machines that have made the runs, each with how many if it was not one.

    Args:
        here: the present machine, for runs that do not tell.
    """
    made = Counter(run.made_on() or here for run in runs)
    if len(made) == 1:
        return next(iter(made))
    told = (f"{count} run{'s' * (count > 1)} on {name}" for name, count in made.most_common())
    return "; ".join(told)


def collect(runs: Sequence[Run]) -> Results:
    """The summaries of finished runs, with ``training_seconds`` added."""
    results: Results = {}
    for run in runs:
        folder = RunFolder(run.folder)
        summary = read_json(folder.summary)
        summary["training_seconds"] = summary["seconds"] - _evaluation_seconds(folder, summary)
        results.setdefault(run.row, {})[run.config.seed] = summary
    return results


def _evaluation_seconds(folder: RunFolder, summary: dict[str, Any]) -> float:
    """Seconds of the evaluations between iterations, which count as training time otherwise."""
    return sum(scores["seconds"] for scores in folder.read_evaluations()
               if scores["iteration"] < summary["iterations"])


def read_json(path: Path) -> dict[str, Any]:
    """A file that a run wrote.

    Raises:
        UserError: it is not there or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: delete the folder {path.parent} and start the "
                        "benchmark again") from error


def head(title: str, facts: dict[str, Any], results: Results) -> list[str]:
    """The first lines of a section: what was run, when, where and on which images."""
    split = next(iter(next(iter(results.values())).values()))["split"]
    seeds = ", ".join(map(str, facts["seeds"]))
    iterations = facts["config"]["train"]["iterations"]
    held_out = split == "test" and facts["config"]["data"]["hold_out"]
    return [
        f"## {title}",
        "",
        stamp.heading(
            facts,
            f"{facts['jobs']} runs at a time with {facts['threads']} thread(s) each",
            f"configuration {tables.code(facts['config_file'])}",
            f"training seeds {seeds}",
            f"every row on the same images and the same {iterations} iterations",
        ),
        HELD_OUT_NOTE if held_out else SPLIT_NOTES[split],
    ]


def publish(
    started: stamp.Stamp,
    given: argparse.Namespace,
    numbers: dict[str, Any],
    judged: Sequence[Verdict],
    cells: Sequence[list[list[str]]],
    section: str,
) -> None:
    """Write the numbers as JSON and the section into the report; print tables and verdicts.

    Args:
        started: see :func:`execute`.
        given: what :func:`parse` returned.
        numbers: everything measured, in plain types; the verdicts are added.
        cells: of each table, header first.
        section: Markdown.

    Raises:
        UserError: a file cannot be written, the report's markers are damaged, or the program was
            changed since the start.
    """
    started.require_unchanged()
    raw = Path(given.output) / f"{started.topic}.json"
    numbers = {**numbers, "verdicts": [vars(verdict) for verdict in judged]}
    write_atomically(raw, json.dumps(numbers, indent=2) + "\n")
    tables.write_report(given.report, section, started.topic)
    for table in cells:
        tables.print_section(aligned(table), "")
    say(*judged)
    say(f"numbers of every run are in {raw}, the report is {given.report}")


def verdict_lines(judged: Sequence[Verdict]) -> list[str]:
    """The verdicts as a Markdown list, with the words that explain them."""
    return [
        "Verdicts, from differences paired by seed; *within noise* is a mean difference of at "
        "most two standard errors (SE):",
        "",
        *(f"- {v.claim}: **{v.status}** ({v.details})" for v in judged),
    ]


def changes_line(changes: Mapping[str, Sequence[str]]) -> str:
    """Name of a row -> its overrides, as a sentence."""
    told = [f"`{label}` is {' '.join(map(tables.code, items))}" for label, items in changes.items()]
    return f"{'; '.join(told)}; the rest at its defaults."


def chance_line(claims: int, seeds: int) -> str:
    """How many of so many verdicts on differences may be nothing but chance."""
    if seeds < 2:
        return "One seed does not tell what is chance."
    chance = 2 * student_t.sf(2, seeds - 1)
    return (f"Of differences between equals, {100 * chance:.0f} % exceed two standard errors with "
            f"{seeds} seeds: of {claims} claims, {chance * claims:.0f} may be chance, for good or "
            "ill.")


def parse(
    topic: str,
    description: str | None,
    rows: Rows,
    arguments: Sequence[str] | None,
    default_config: str = DEFAULT_CONFIG,
    add_options: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
) -> argparse.Namespace:
    """The command line of a campaign: config, seeds, jobs, output, rows, report, overrides.

    Args:
        add_options: adds what only this campaign has; its positional arguments come first.

    Raises:
        UserError: a row or a seed is none, or an override sets what the campaign sets itself.
    """
    parser = Parser(
        prog=f"python -m cosa.benchmark {topic}", description=description
    )
    add_options(parser)
    parser.add_argument("--config", default=default_config, help=f"YAML file; {default_config}")
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"], help="training seeds")
    parser.add_argument("--jobs", type=whole(1, 1024), default=DEFAULT_JOBS,
                        help=f"runs at a time, sharing the cores; {DEFAULT_JOBS}")
    parser.add_argument("--output", default=f"runs/{topic}", help="folder of the runs")
    parser.add_argument("--rows", nargs="+", default=list(rows), metavar="ROW",
                        help=f"only these of: {', '.join(rows)}")
    tables.add_report_option(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every run")
    given = parser.parse_intermixed_args(arguments)
    # An option with several values also swallows the overrides that follow it.
    for name in ("seeds", "rows"):
        values = getattr(given, name)
        given.overrides += [value for value in values if "=" in value]
        setattr(given, name, list(dict.fromkeys(v for v in values if "=" not in v)))
    for key, option in {"name": "--rows", "seed": "--seeds", "output": "--output"}.items():
        if any(item.partition("=")[0] == key for item in given.overrides):
            raise UserError(f"the benchmark sets {key} itself: leave out {key}=..., use {option}")
    for row in given.rows:
        if row not in rows:
            raise UserError(f"--rows: there is no row '{row}': choose from {', '.join(rows)}")
    if not all(seed.isdecimal() for seed in given.seeds):
        raise UserError(f"--seeds must be whole numbers from 0 on, not {' '.join(given.seeds)}")
    given.seeds = [int(seed) for seed in given.seeds]
    if not given.rows or not given.seeds:
        raise UserError("--rows and --seeds must each name at least one")
    return given


def settle(given: argparse.Namespace) -> None:
    """Give all runs one schedule: passes and shares become iterations, as overrides.

    Rows are made from these numbers, and may be trained on fewer images.

    Args:
        given: what :func:`parse` returned; its overrides grow.

    Raises:
        UserError: there are no images, or the configuration is not usable.
    """
    config = load_config(given.config, given.overrides)
    if not is_settled(config):
        labels = build_dataset(config.data, "train").labels
        images = len(trained_on(labels, config.data.negatives))
        given.overrides += settings(settled(config, images), config)


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Make SIGTERM unwind as Ctrl-C does, so that the runs are stopped, too."""

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
