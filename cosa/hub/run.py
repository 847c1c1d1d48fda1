"""What of a run folder goes to the hub: one network, and the scores that are of this very one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosa import checkpoint
from cosa.checkpoint import TrainedNetwork
from cosa.config import Config, load_saved
from cosa.core.declared import Misfit, check
from cosa.core.errors import UserError
from cosa.core.foreign import MEGABYTE, read_bytes, read_json
from cosa.score_names import Scores, Summary
from cosa.training.evaluation import validation_score
from cosa.training.run_folder import RunFolder

MOST_PANELS = 24
MOST_PANEL = 20 * MEGABYTE
"""Bytes of one."""

_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Trained:
    """A network of a run, and what is known of it."""

    network: TrainedNetwork
    config: Config
    """Of the training, with the places of its files."""
    iterations: int | None
    """Of training that it has had; None where the run does not say."""
    scores: Scores | None
    """Of this very network; None: there are none."""
    split: str
    """Whose images these are of: val, or test where no choice was made on them."""
    evaluations: int
    """Among so many the network was chosen by these scores; 0: it was not chosen by them."""
    panels: list[bytes]
    """PNG files that show what this network makes of images."""
    seconds: float | None = None
    """That the training took, evaluations included."""
    peak_memory_mb: float | None = None
    """Of its device, in MiB."""


def read_run(folder: str | Path, best: bool = False, panels: bool = True) -> Trained:
    """The final network of a run, from last.pth, or the best, from best.pth.

    Args:
        panels: take the pictures of the last evaluations, if these were of this very network.

    Raises:
        UserError: the folder holds no such network, or a file of it is damaged.
    """
    run = RunFolder(folder)
    file = run.best if best else run.last
    if not run.config.is_file() or not file.is_file():
        missing = file if run.config.is_file() else run.config
        other = "" if best or not run.best.is_file() else ", or push best.pth: --best"
        raise UserError(f"{run.path} holds no run to push, {missing.name} is missing: give a "
                        f"folder that train.py made{other}")
    network = checkpoint.load(file)
    checkpoint.check_finite(network, str(file))
    config = load_saved(run.config, [])
    found = _of_the_best(run, config) if best else _of_the_last(run)
    of_this_network = not best and found["scores"] is not None
    pictures = _read_panels(run) if panels and of_this_network else []
    return Trained(**{"network": network, "config": config, "panels": pictures, **found})


def _of_the_last(run: RunFolder) -> dict[str, Any]:
    """What is known of the network in last.pth."""
    iterations = checkpoint.read(run.last).get("state", {}).get("iteration")
    if type(iterations) is not int:
        raise UserError(f"{run.last} does not say how long it was trained: give an unaltered run")
    known = {"iterations": iterations, "scores": None, "split": "val", "evaluations": 0}
    if not run.summary.is_file():
        return known
    scores = read_json(run.summary, "the summary", Summary)
    if scores.get("iterations") != iterations:  # it was resumed, and not to its end
        return known
    return known | {"scores": scores, "split": scores.get("split", "val"),
                    **{key: scores.get(key) for key in ("seconds", "peak_memory_mb")}}


def _of_the_best(run: RunFolder, config: Config) -> dict[str, Any]:
    """What is known of the network in best.pth: the first row with the highest score is its own."""
    rows = run.read_evaluations()
    try:
        for row in rows:
            check(Scores, row)
        values = [validation_score(config.loss, row) for row in rows]
    except (Misfit, KeyError) as error:
        raise UserError(f"{run.evaluations} is damaged ({error}): push the final network, without "
                        "--best") from error
    known = {"iterations": None, "scores": None, "split": "val", "evaluations": len(rows)}
    defined = [value for value in values if value is not None]
    if not defined:
        return known
    row = rows[values.index(max(defined))]
    return known | {"scores": row, "iterations": row["iteration"]}


def _read_panels(run: RunFolder) -> list[bytes]:
    """The pictures of the last evaluations, at most ``MOST_PANELS``, by sorted name.

    Raises:
        UserError: one is no PNG file, or too large.
    """
    paths = sorted(path for path in run.panels.rglob("*.png") if path.is_file())
    pictures = []
    for path in paths[:MOST_PANELS]:
        content = read_bytes(path, "the picture", most=MOST_PANEL)
        if not content.startswith(_PNG):
            raise UserError(f"{path} is no PNG file: delete it, or leave the pictures out: "
                            "--no-panels")
        pictures.append(content)
    return pictures
