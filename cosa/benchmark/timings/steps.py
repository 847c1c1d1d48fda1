"""Time and memory of a training step, without the loading of images."""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cosa.benchmark.timings.clock import clock
from cosa.benchmark.timings.memory import peak, start_peak
from cosa.benchmark.timings.trainer import Trainer
from cosa.config import Config, load_config, to_yaml
from cosa.core.device import memory_errors_explained
from cosa.core.errors import UserError
from cosa.core.ranges import whole
from cosa.core.terminal import Parser
from cosa.data import build_dataset

WARM_UP = 2
"""Steps that are not timed: the first ones allocate."""


class Stepper(Trainer):
    """A training whose steps are made and timed one by one, on the same few batches.

    Args:
        config: its data set, network, losses and batch size are used.

    Raises:
        UserError: data, weights, device or crop are not usable.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config, build_dataset(config.data, "train"))
        self._batches = itertools.cycle(self.cached_batches())

    def step(self) -> float:
        """One step of targets, losses, backward, optimizer and average; return its seconds."""
        batch = next(self._batches)
        start = clock(self.device)
        self.train_on(batch)
        return clock(self.device) - start


def seconds_per_step(configs: Mapping[str, Config], rounds: int) -> dict[str, float]:
    """Median seconds of a step of each configuration, all in this process and in turn.

    In turn, so that whatever else the machine does falls on all alike.

    Raises:
        UserError: a configuration is not usable.
    """
    steppers = {}
    for name, config in configs.items():
        steppers[name] = Stepper(config)
        for _ in range(WARM_UP):
            steppers[name].step()
    spent: dict[str, list[float]] = {name: [] for name in steppers}
    for _ in range(rounds):
        for name, stepper in steppers.items():
            spent[name].append(stepper.step())
    return {name: statistics.median(values) for name, values in spent.items()}


def memory_of_steps(config: Config, folder: Path, rounds: int = 3) -> int:
    """Bytes that training steps need beyond what is there before the first one.

    Measured in a process of its own: the growth of its resident set on the CPU, of what PyTorch
    has allocated on CUDA. What the optimizer keeps from the first step on is part of it.

    Args:
        folder: for the file that tells the process what to run.

    Raises:
        UserError: the process failed.
    """
    file = folder / "steps.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    command = [sys.executable, "-m", "cosa.benchmark", "steps", str(file), "--rounds", str(rounds)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise UserError(f"measuring the memory of {config.name} failed: {reason}")
    return json.loads(done.stdout.splitlines()[-1])["memory_bytes"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Time the training step of a configuration; print seconds and memory as JSON."""
    parser = Parser(
        prog="python -m cosa.benchmark steps", description=main.__doc__
    )
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="over the YAML file")
    parser.add_argument("--rounds", type=whole(1, 10**6), default=10, help="steps to time")
    given = parser.parse_intermixed_args(arguments)
    with memory_errors_explained():
        stepper = Stepper(load_config(given.config, given.overrides))
        before = start_peak(stepper.device)
        for _ in range(WARM_UP):
            stepper.step()
        seconds = statistics.median(stepper.step() for _ in range(given.rounds))
    memory = peak(stepper.device) - before
    print(json.dumps({"seconds": seconds, "memory_bytes": memory}))
    return 0
