"""Look at a data set before anything is trained on it.

    python -m cosa.data configs/custom.yaml data.root=/data/pets

Prints how many images and masks each class has; a line for what is odd; and, for what would make a
training or a score meaningless, an error and exit code 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cosa.config import load_config
from cosa.core.errors import run_program
from cosa.core.terminal import Parser
from cosa.data import build_dataset, resolved
from cosa.data.check import examine


def main(arguments: Sequence[str] | None = None) -> int:
    """Look at the training and validation images of a configuration."""
    parser = Parser(prog="python -m cosa.data", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="CONFIG|key=value",
                        help="a YAML file, and what is to be different")
    words = parser.parse_args(arguments).words
    path = None if "=" in words[0] else words.pop(0)
    data = load_config(path, words).data
    training = build_dataset(data, "train")
    validation = build_dataset(resolved(data, training), "val")
    for dataset in (training, validation):
        dataset.check()
    report = examine(training, validation, data.negatives)
    report.tell()
    report.require()
    return 0


if __name__ == "__main__":
    run_program(main)
