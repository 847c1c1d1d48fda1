"""The regularizers: each alone and all together, against plain CoSA on the same budget."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from cosa.benchmark import stamp, tables
from cosa.benchmark.campaigns import campaign
from cosa.benchmark.campaigns.runner import Run
from cosa.benchmark.campaigns.statistics import Results, paired, percent, score_cell
from cosa.benchmark.campaigns.verdicts import FAILS, HOLDS, Verdict, difference, judge
from cosa.benchmark.timings.steps import memory_of_steps, seconds_per_step
from cosa.config import Config, load_config, settled, to_dict
from cosa.config.regularizers import RegularizersConfig
from cosa.core.files import PROJECT_FOLDER
from cosa.core.terminal import note

TOPIC = "regularizers"
PLAIN, ALL = "cosa", "all"
LABELS = {
    PLAIN: "CoSA", "isl": "+ ISL", "fsl": "+ FSL", "plda": "+ PLDA", "csd": "+ CSD",
    "plca": "+ PLCA", "dense_energy": "+ dense energy", ALL: "+ all",
}
"""Row -> its name in the table; all but the first are files in ``EXAMPLES``."""

EXAMPLES = PROJECT_FOLDER / "configs" / "regularizers"
SCORES = {"miou": "mIoU", "boundary_f": "F", "jf": "J&F", "cmiou": "C-mIoU", "cam_miou": "CAM at ξ"}
JUDGED = {"miou": "mIoU", "jf": "J&F", "cmiou": "C-mIoU"}
MOST_TIME = 2.0
"""All regularizers together should cost at most so many times the plain step."""

ROUNDS = 8
"""Steps of each row whose time is taken."""

LEGEND = """\
All scores are in percent, mean ± standard deviation over the seeds, of the averaged (EMA) network,
label-free but for the CAM's. `F` is the contour quality, `J&F` its mean with `mIoU`; `Δ` is the
mean difference to plain CoSA, paired by seed, ± its standard error. `time` is the median time of a
training step (without the loading of images) over that of the plain step, all rows in turn in one
process with all cores; `memory` is what steps need beyond what is there before the first."""


def changes_of(row: str) -> list[str]:
    """The overrides that switch a row's regularizers on, from its example file."""
    return [] if row == PLAIN else overrides_of(load_config(EXAMPLES / f"{row}.yaml").regularizers)


def overrides_of(regularizers: RegularizersConfig) -> list[str]:
    """The overrides by which the defaults become these regularizers."""
    default = to_dict(RegularizersConfig())
    return [
        f"regularizers.{name}.{key}={json.dumps(value)}"
        for name, options in to_dict(regularizers).items() if options["weight"] > 0
        for key, value in options.items() if value != default[name][key]
    ]


def fitted(example: Config, base: Config) -> RegularizersConfig:
    """The regularizers of ``example`` for the schedule and the crops of ``base``.

    Starts keep their place in the schedule, of which the start of Seg2CAM is the measure. Dense
    energy keeps its reach as a share of the crop, and its weight in proportion to the other terms:
    the energy grows with the fourth power of the crop's side.
    """
    example = in_iterations_of(base, example)
    later = base.method.s2c_start / example.method.s2c_start
    larger = base.augment.crop_size / example.augment.crop_size
    options = {
        item.name: replace(section, start=round(section.start * later))
        for item in fields(example.regularizers)
        for section in (getattr(example.regularizers, item.name),)
    }
    energy = options["dense_energy"]
    options["dense_energy"] = replace(
        energy, weight=energy.weight / larger**4, sigma_xy=energy.sigma_xy * larger
    )
    return RegularizersConfig(**options)


def in_iterations_of(base: Config, example: Config) -> Config:
    """``example`` with what it gives as shares of the training as iterations of ``base``."""
    length = replace(example.train, iterations=base.train.iterations, passes=0.0)
    return settled(replace(example, train=length), images=0)


ROWS: campaign.Rows = {row: lambda base, row=row: changes_of(row) for row in LABELS}


def costs(configs: dict[str, Config], rounds: int) -> dict[str, dict[str, float]]:
    """Row -> ``seconds`` and ``memory_bytes`` of a step, and ``time_ratio`` to the plain one."""
    seconds = seconds_per_step(configs, rounds)
    with tempfile.TemporaryDirectory() as folder:
        memory = {row: memory_of_steps(config, Path(folder)) for row, config in configs.items()}
    return {
        row: {"seconds": value, "memory_bytes": memory[row],
              "time_ratio": value / seconds[PLAIN] if PLAIN in seconds else math.nan}
        for row, value in seconds.items()
    }


def table(results: Results, cost: dict[str, dict[str, float]]) -> list[list[str]]:
    """Header and one list of cells for each row that was run."""
    rows = [["row", *SCORES.values(), "Δ mIoU", "Δ J&F", "time", "memory"]]
    for row, label in LABELS.items():
        if row in results:
            cells = [score_cell(results[row], key) for key in SCORES]
            changes = [_change(results, row, key) for key in ("miou", "jf")]
            memory = f"{cost[row]['memory_bytes'] / 2**20:.0f} MiB"
            rows.append([label, *cells, *changes, f"{cost[row]['time_ratio']:.2f}", memory])
    return rows


def _change(results: Results, row: str, key: str) -> str:
    pairs = paired(results, (row, key), (PLAIN, key))
    if row == PLAIN or not pairs:
        return tables.NOTHING
    _, mean, error = judge([x - y for x, y in pairs])
    return percent(mean, error, sign="+")


def verdicts(results: Results, cost: dict[str, dict[str, float]]) -> list[Verdict]:
    """Which regularizer helps what, and whether all together stay within their time."""
    judged = [
        difference(results, f"{label} helps ({name})", (row, key), (PLAIN, key))
        for row, label in LABELS.items() if row != PLAIN and row in results
        for key, name in JUDGED.items()
    ]
    if ALL in cost and PLAIN in cost:
        ratio = cost[ALL]["time_ratio"]
        judged.append(Verdict(
            f"all together cost at most {MOST_TIME:g} times the plain step",
            HOLDS if ratio <= MOST_TIME else FAILS, f"{ratio:.2f} times",
        ))
    return judged


def make_section(
    facts: dict[str, Any],
    results: Results,
    cost: dict[str, dict[str, float]],
    judged: Sequence[Verdict],
) -> str:
    """The Markdown of the report."""
    used = {LABELS[row]: changes_of(row) for row in LABELS if row in results and row != PLAIN}
    seconds = ""
    if PLAIN in cost:
        seconds = f" A plain step took {1e3 * cost[PLAIN]['seconds']:.0f} ms."
    return "\n".join([
        *campaign.head("Regularizers", facts, results),
        campaign.changes_line(used),
        "",
        tables.markdown(table(results, cost)),
        "",
        LEGEND + seconds,
        "",
        *campaign.verdict_lines(judged),
        "",
        campaign.chance_line(sum("helps" in v.claim for v in judged), len(facts["seeds"])),
    ])


def main(arguments: Sequence[str] | None = None) -> int:
    """Train CoSA with each regularizer alone and with all; write table and verdicts.

    Finished runs are kept: started again, an interrupted benchmark goes on. Times and memory of
    the steps are measured at the end, when nothing else of it runs.
    """
    given = campaign.parse(TOPIC, main.__doc__, ROWS, arguments)
    campaign.settle(given)
    started = stamp.begin(TOPIC, arguments, given.report)
    crop = load_config(given.config, given.overrides).augment.crop_size
    if crop != (usual := load_config(EXAMPLES / f"{ALL}.yaml").augment.crop_size):
        note(f"the rows' weights are those of the examples, chosen for crops of {usual}, not "
             f"{crop}: dense energy depends on that")
    runs, facts = campaign.execute(started, ROWS, given)
    results = campaign.collect(runs)
    cost = costs(first_configs(runs), ROUNDS)
    judged = verdicts(results, cost)
    section = make_section(facts, results, cost, judged)
    numbers = {**facts, "runs": results, "costs": cost}
    campaign.publish(started, given, numbers, judged, [table(results, cost)], section)
    return 0


def first_configs(runs: Sequence[Run]) -> dict[str, Config]:
    """The configuration of each row's first run."""
    configs: dict[str, Config] = {}
    for run in runs:
        configs.setdefault(run.row, run.config)
    return configs
