"""A training step in the precision of a GPU against the same step in float32."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cosa.benchmark import stamp
from cosa.benchmark.tables import REPORT, print_section
from cosa.benchmark.timings.train import choose_dataset
from cosa.benchmark.timings.trainer import Trainer
from cosa.config import load_config
from cosa.core.device import memory_errors_explained
from cosa.core.files import write_atomically
from cosa.core.terminal import Parser
from cosa.core.text import aligned

TOPIC = "precision"
STEPS = 4
"""Made with the same batch and the same weights: the first ones record the CUDA graphs."""
WAYS = {
    "float32": ["train.precision=fp32", "train.tf32=false", "train.compile=false",
                "train.cuda_graphs=false"],
    "float32, TensorFloat-32": ["train.precision=fp32", "train.compile=false",
                                "train.cuda_graphs=false"],
    "as trained, without graphs": ["train.compile=false", "train.cuda_graphs=false"],
    "as trained, with graphs": ["train.compile=false"],
}
"""Name -> overrides; the first one is what the others are compared with."""


def measure(config_file: str, overrides: Sequence[str], ways: dict[str, list[str]] = WAYS
            ) -> dict[str, dict[str, Any]]:
    """For each way the ``terms`` of a step, and by how much its gradient differs from the first's.

    ``gradient`` is the norm of the difference over the norm of the first.
    """
    found, reference = {}, None
    with tempfile.TemporaryDirectory() as folder:
        for name, options in ways.items():
            config = load_config(config_file, [
                *overrides, "model.pretrained=false", "threshold.dynamic=false", *options])
            trainer = Trainer(config, choose_dataset(config, Path(folder)))
            terms, gradient = _step(trainer)
            reference = gradient if reference is None else reference
            difference = (gradient - reference).norm() / reference.norm()
            found[name] = {"terms": terms, "gradient": difference.item()}
            del trainer
    return found


def _step(trainer: Trainer) -> tuple[dict[str, float], torch.Tensor]:
    """Terms and gradient of the last of some equal steps, after which no weight moves."""
    cotraining, batch = trainer.cotraining, trainer.cached_batches()[0]
    last = trainer.config.train.iterations - 1
    for _ in range(STEPS):
        trainer.optimizer.zero_grad()
        loss, terms = cotraining.step(batch, last)
        loss.backward()
        loss = loss.detach()
    grads = [p.grad.flatten() for p in cotraining.online.parameters() if p.grad is not None]
    values = {name: value.item() for name, value in terms.items()}
    return values, torch.cat(grads).double()


def table(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Header and a row for each way."""
    terms = list(next(iter(found.values()))["terms"])
    rows = [["step in", *terms, "gradient's difference"]]
    for name, result in found.items():
        values = [f"{result['terms'][term]:.5f}" for term in terms]
        rows.append([name, *values, f"{100 * result['gradient']:.2f} %"])
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the losses and the gradient of one training step in several precisions.

    Random weights, a fixed threshold, one batch; on a CUDA device the last two are as trained.
    """
    parser = Parser(prog=f"python -m cosa.benchmark {TOPIC}", description=main.__doc__)
    parser.add_argument("--config", default="configs/voc.yaml", help="YAML file; configs/voc.yaml")
    parser.add_argument("--json", metavar="FILE", help="write the figures here, too")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="over the YAML file")
    given = parser.parse_intermixed_args(arguments)
    started = stamp.begin(TOPIC, arguments, REPORT)
    with memory_errors_explained():
        found = measure(given.config, given.overrides)
    print_section(aligned(table(found)))
    if given.json:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        facts = {**started.facts(device), "ways": found}
        write_atomically(given.json, json.dumps(facts, indent=2) + "\n")
    return 0
