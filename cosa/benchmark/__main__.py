"""Benchmarks: `python -m cosa.benchmark COMMAND ...`, with --help after any command.

    ablation     train CoSA, its parts and its bounds; write the table and the verdicts
    regularizers train CoSA with each regularizer and with all; the same kind of table
    photographs  the same on real photographs: parts, bounds and regularizers, with CRF and CPL
    similarity   time the feature similarity loss against all pairs
    train        time training by phase, against the step as the released programs make it
    footprint    count the memory of a training step on a GPU, without one
    loader       time the training loader alone, by stage and with workers
    steps        time the training step of a configuration
    threshold    time the dynamic threshold against scikit-learn's mixture
    supervised   train one fully supervised bound, as the ablation does
    peak         score best.pth of a run on the test images, as the ablation does
    photograph_scores
                 score pseudo-labels and refined masks of a run, as photographs does
    review       compare measures of how certain a mask is with its true IoU
    inference    time inference by stage, with and without a CRF, with speed, memory and scores
    crf          time the dense CRF alone, PyTorch against pydensecrf
    channels     time the CRF's filter for many numbers of channels
    precision    compare losses and gradient of a training step in several precisions
    gpu          all that is to be measured on a CUDA device, in one command
    metrics      time mIoU and contour quality against the program that goes class by class
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from cosa.core.errors import run_program
from cosa.core.terminal import Parser

CAMPAIGNS = (
    "ablation", "regularizers", "photographs", "supervised", "peak", "photograph_scores",
    "review",
)
TIMINGS = (
    "similarity", "train", "footprint", "loader", "steps", "threshold", "inference", "crf",
    "channels", "precision", "gpu", "metrics",
)
COMMANDS = {
    name: f"cosa.benchmark.{wing}.{name}"
    for wing, names in (("campaigns", CAMPAIGNS), ("timings", TIMINGS)) for name in names
}
"""Command -> its module, which has a ``main(arguments)``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Hand the rest of the command line to the command's module; return its exit code."""
    parser = Parser(
        prog="python -m cosa.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS)
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = parser.parse_args(given[:1]).command
    return importlib.import_module(COMMANDS[command]).main(given[1:])


if __name__ == "__main__":
    run_program(main)
