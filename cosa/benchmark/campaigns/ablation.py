"""The ablation: CoSA, each of its parts switched off, and its bounds, on the same budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cosa.benchmark import stamp, tables
from cosa.benchmark.campaigns import ablation_table, campaign
from cosa.benchmark.campaigns.peak import PEAK_EVALUATIONS, PEAK_FILE
from cosa.benchmark.campaigns.runner import Run
from cosa.benchmark.campaigns.statistics import Results
from cosa.benchmark.campaigns.verdicts import Verdict, verdicts
from cosa.config import load_config

TOPIC = "ablation"
SUPERVISED, CLASSIFICATION = "supervised", "classification-only"
ROWS: campaign.Rows = {
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


def commands(row: str, config: str, changes: list[str]) -> tuple[tuple[str, ...], ...]:
    """What makes a run of a row: train.py, but for the supervised bound."""
    if row == SUPERVISED:
        return (campaign.benchmark_command("supervised", config, *changes),)
    train = campaign.train_commands(row, config, changes)
    if row == CLASSIFICATION:
        done = load_config(config, changes)
        return *train, campaign.benchmark_command("peak", f"{done.output}/{done.name}")
    return train


def collect(runs: Sequence[Run]) -> Results:
    """Scores of finished runs; classification alone gives two rows, its end and its peak."""
    results = campaign.collect(runs)
    if CLASSIFICATION in results:
        results[f"{CLASSIFICATION}-end"] = results.pop(CLASSIFICATION)
        results[f"{CLASSIFICATION}-peak"] = {
            run.config.seed: campaign.read_json(run.folder / PEAK_FILE)
            for run in runs if run.row == CLASSIFICATION
        }
    return results


def make_section(facts: dict[str, Any], results: Results, judged: Sequence[Verdict]) -> str:
    """The Markdown of the report."""
    return "\n".join([
        *campaign.head("Ablation", facts, results),
        "",
        tables.markdown(ablation_table.table(results)),
        "",
        ablation_table.LEGEND,
        "",
        *campaign.verdict_lines(judged),
    ])


def main(arguments: Sequence[str] | None = None) -> int:
    """Train all rows of the ablation, print its table, and write it into the report.

    Finished runs are kept: started again, an interrupted ablation goes on.
    """
    given = campaign.parse(TOPIC, main.__doc__, ROWS, arguments)
    campaign.settle(given)
    started = stamp.begin(TOPIC, arguments, given.report)
    runs, facts = campaign.execute(started, ROWS, given, commands)
    results = collect(runs)
    judged = verdicts(results)
    section = make_section(facts, results, judged)
    cells = [ablation_table.table(results)]
    campaign.publish(started, given, {**facts, "runs": results}, judged, cells, section)
    return 0
