"""The ablation: CoSA, each of its parts switched off, and its bounds, on the same budget."""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cosa.benchmark import report
from cosa.benchmark.peak import PEAK_FILE
from cosa.benchmark.runner import Run, Runner
from cosa.benchmark.verdicts import Results, Verdict, verdicts
from cosa.config import Config, load_config, to_dict
from cosa.device import choose_device
from cosa.errors import UserError
from cosa.files import write_atomically
from cosa.run_folder import RunFolder
from cosa.weights import PROJECT_FOLDER

DEFAULT_CONFIG = "configs/demo.yaml"
DEFAULT_JOBS = 2
PEAK_EVALUATIONS = 12
"""How often classification alone is evaluated: its peak must not be missed."""

SUPERVISED, CLASSIFICATION = "supervised", "classification-only"
ROWS: dict[str, Callable[[Config], list[str]]] = {
    SUPERVISED: lambda base: [],
    CLASSIFICATION: lambda base: [
        "loss.c2s=0", "loss.c2s_aux=0", "loss.s2c=0", "loss.csc=0",
        f"train.evaluate_every={max(1, base.train.iterations // PEAK_EVALUATIONS)}",
    ],
    "cosa": lambda base: [],
    "without-swapping": lambda base: ["loss.s2c=0"],
    "without-raw": lambda base: ["method.raw=false"],
    "without-csc": lambda base: ["loss.csc=0"],
    "fixed-0.3": lambda base: ["threshold.dynamic=false", "threshold.fixed=0.3"],
    "fixed-0.5": lambda base: ["threshold.dynamic=false", "threshold.fixed=0.5"],
    "fixed-0.7": lambda base: ["threshold.dynamic=false", "threshold.fixed=0.7"],
}
"""Name -> what a row changes in the configuration."""


def plan(
    config: str,
    overrides: Sequence[str],
    rows: Sequence[str],
    seeds: Sequence[int],
    output: str,
    workers: int,
) -> list[Run]:
    """All runs, seed by seed, so that an interrupted ablation has whole tables.

    Args:
        workers: loader processes of each run, unless the configuration says how many.

    Raises:
        UserError: the configuration or an override is not usable.
    """
    base = load_config(config, overrides)
    runs = []
    for seed in seeds:
        for row in rows:
            changes = [*overrides, *ROWS[row](base), f"name={row}-seed{seed}", f"seed={seed}",
                       f"output={json.dumps(output)}"]
            if base.data.workers < 0:
                changes.append(f"data.workers={workers}")
            runs.append(Run(row, load_config(config, changes), _commands(row, config, changes)))
    return runs


def _commands(row: str, config: str, changes: list[str]) -> tuple[tuple[str, ...], ...]:
    benchmark = (sys.executable, "-m", "cosa.benchmark")
    if row == SUPERVISED:
        return ((*benchmark, "supervised", config, *changes),)
    train = (sys.executable, str(PROJECT_FOLDER / "train.py"), config, *changes)
    if row == CLASSIFICATION:
        done = load_config(config, changes)
        return train, (*benchmark, "peak", f"{done.output}/{done.name}")
    return (train,)


def collect(runs: Sequence[Run]) -> Results:
    """Scores of finished runs; classification alone gives two rows, its end and its peak."""
    results: Results = {}
    for run in runs:
        folder, seed = RunFolder(run.folder), run.config.seed
        summary = _read(folder.summary)
        summary["training_seconds"] = summary["seconds"] - _evaluation_seconds(folder, summary)
        if run.row == CLASSIFICATION:
            results.setdefault(f"{run.row}-end", {})[seed] = summary
            results.setdefault(f"{run.row}-peak", {})[seed] = _read(folder.path / PEAK_FILE)
        else:
            results.setdefault(run.row, {})[seed] = summary
    return results


def _evaluation_seconds(folder: RunFolder, summary: dict[str, Any]) -> float:
    """Seconds of the evaluations between iterations, which count as training time otherwise."""
    return sum(scores["seconds"] for scores in folder.read_evaluations()
               if scores["iteration"] < summary["iterations"])


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: delete the folder {path.parent} and start the "
                        "ablation again") from error


def make_section(facts: dict[str, Any], results: Results, judged: Sequence[Verdict]) -> str:
    """The Markdown of the report."""
    split = next(iter(next(iter(results.values())).values()))["split"]
    seeds = ", ".join(map(str, facts["seeds"]))
    return "\n".join([
        "## Ablation",
        "",
        f"`{facts['command']}`",
        "",
        f"{facts['date']}; {facts['machine']}; {facts['jobs']} runs at a time with "
        f"{facts['threads']} thread(s) each; configuration `{facts['config_file']}`; "
        f"training seeds {seeds}; every row on the same images and the same "
        f"{facts['config']['train']['iterations']} iterations.",
        report.SPLIT_NOTES[split],
        "",
        report.markdown(report.table(results)),
        "",
        report.LEGEND,
        "",
        "Verdicts, from differences paired by seed; *within noise* is a mean difference of at "
        "most two standard errors (SE):",
        "",
        *(f"- {v.claim}: **{v.status}** ({v.details})" for v in judged),
    ])


def main(arguments: Sequence[str] | None = None) -> int:
    """Train all rows of the ablation, print its table, and write it into the report.

    Finished runs are kept: started again, an interrupted ablation goes on.
    """
    given = _parse(arguments)
    if given.jobs < 1:
        raise UserError(f"--jobs is {given.jobs}: run at least one at a time")
    share = max(1, report.core_count() // given.jobs)
    runs = plan(given.config, given.overrides, given.rows, given.seeds, given.output, share - 1)
    device = choose_device(runs[0].config.device)
    report.read_report(Path(given.report))

    with _terminate_as_interrupt():
        Runner(given.jobs, share).complete(runs)

    results = collect(runs)
    judged = verdicts(results)
    command = list(sys.argv[1:] if arguments is None else arguments)
    facts = {
        "command": shlex.join(["python", "-m", "cosa.benchmark", "ablation", *command]),
        "date": datetime.date.today().isoformat(),
        "machine": report.machine(device),
        "jobs": given.jobs,
        "threads": share,
        "config_file": given.config,
        "config": to_dict(load_config(given.config, given.overrides)),
        "seeds": given.seeds,
    }
    numbers = {**facts, "runs": results, "verdicts": [vars(v) for v in judged]}
    raw = Path(given.output) / "ablation.json"
    write_atomically(raw, json.dumps(numbers, indent=2) + "\n")
    report.write_report(Path(given.report), make_section(facts, results, judged))
    print(report.plain(report.table(results)), *judged, sep="\n")
    print(f"numbers of every run are in {raw}, the report is {given.report}")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m cosa.benchmark ablation", description=main.__doc__
    )
    parser.add_argument("--config", default=DEFAULT_CONFIG, help=f"YAML file; {DEFAULT_CONFIG}")
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"], help="training seeds")
    parser.add_argument("--jobs", type=int, default=DEFAULT_JOBS,
                        help=f"runs at a time, sharing the cores; {DEFAULT_JOBS}")
    parser.add_argument("--output", default="runs/ablation", help="folder of the runs")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), metavar="ROW",
                        help=f"only these of: {', '.join(ROWS)}")
    parser.add_argument("--report", default="docs/benchmarks.md", help="Markdown file to update")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every run")
    given = parser.parse_intermixed_args(arguments)
    # An option with several values also swallows the overrides that follow it.
    for name in ("seeds", "rows"):
        values = getattr(given, name)
        given.overrides += [value for value in values if "=" in value]
        setattr(given, name, list(dict.fromkeys(v for v in values if "=" not in v)))
    for key, option in {"name": "--rows", "seed": "--seeds", "output": "--output"}.items():
        if any(item.partition("=")[0] == key for item in given.overrides):
            raise UserError(f"the ablation sets {key} itself: leave out {key}=..., use {option}")
    for row in given.rows:
        if row not in ROWS:
            raise UserError(f"--rows: there is no row '{row}': choose from {', '.join(ROWS)}")
    if not all(seed.isdecimal() for seed in given.seeds):
        raise UserError(f"--seeds must be whole numbers from 0 on, not {' '.join(given.seeds)}")
    given.seeds = [int(seed) for seed in given.seeds]
    if not given.rows or not given.seeds:
        raise UserError("--rows and --seeds must each name at least one")
    return given


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Make SIGTERM unwind as Ctrl-C does, so that the runs are stopped, too."""

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
