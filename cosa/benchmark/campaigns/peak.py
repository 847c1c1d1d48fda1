"""The peak of a run: its best network on the validation images, scored on the test images.

CAMs of a network that learns classification alone get worse when it trains on. Against its last
CAMs CoSA would look too good; the fair rival is the run's peak. train.py keeps it as best.pth,
chosen by ``cam_best_miou`` on the validation images where no segmentation is trained.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cosa import checkpoint
from cosa.checkpoint import TrainedNetwork
from cosa.config import Config, load_config
from cosa.core.device import allow_tf32, choose_device
from cosa.core.files import write_atomically
from cosa.core.terminal import Parser
from cosa.data import build_dataset
from cosa.training.evaluation import score, scored_split
from cosa.training.run_folder import RunFolder

PEAK_FILE = "peak.json"
PEAK_EVALUATIONS = 12
"""How often classification alone is evaluated: its peak must not be missed."""


def peak_iteration(evaluations: Sequence[dict[str, Any]]) -> int:
    """Iteration of the first highest ``cam_best_miou`` of a run's evaluations; 0 without any."""
    known = [scores for scores in evaluations if scores.get("cam_best_miou") is not None]
    return max(known, key=lambda scores: scores["cam_best_miou"])["iteration"] if known else 0


def load_of_run(weights: Path) -> tuple[TrainedNetwork, Config]:
    """A network of a run folder, on the run's device, and the run's configuration.

    Raises:
        UserError: a file is missing or damaged, or there is no such device.
    """
    network = checkpoint.load(weights)
    config = load_config(RunFolder(weights.parent).config)
    allow_tf32(config.train.tf32)
    return network.to(choose_device(config.device)), config


def main(arguments: Sequence[str] | None = None) -> int:
    """Score best.pth of a classification-only run on the test images; write peak.json."""
    parser = Parser(
        prog="python -m cosa.benchmark peak", description=main.__doc__
    )
    parser.add_argument("folder", help="run folder of train.py")
    run = RunFolder(parser.parse_args(arguments).folder)
    network, config = load_of_run(run.best)
    scores = score(network, config, build_dataset(config.data, "test"), network.thresholds)
    scores |= {"split": scored_split(config), "iteration": peak_iteration(run.read_evaluations())}
    write_atomically(run.path / PEAK_FILE, json.dumps(scores, indent=2) + "\n")
    return 0
