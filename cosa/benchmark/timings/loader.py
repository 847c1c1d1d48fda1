"""What feeding a GPU costs: the training loader alone, against decoding in full to float views."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from cosa.benchmark import stamp
from cosa.benchmark.tables import (
    add_report_option,
    markdown,
    print_section,
    read_report,
    write_report,
)
from cosa.benchmark.timings import baseline_loader
from cosa.benchmark.timings.baseline_loader import Straightforward
from cosa.benchmark.timings.crf import size
from cosa.benchmark.timings.textures import QUALITY, textures
from cosa.config import Config, load_config, to_dict
from cosa.core.files import write_atomically
from cosa.core.ranges import WORKERS, whole
from cosa.core.terminal import Parser, say
from cosa.core.text import aligned
from cosa.data import SegmentationDataset, base, build_dataset, transforms
from cosa.data import batches as batching
from cosa.data.base import FileDataset
from cosa.data.batches import collate, to_device
from cosa.data.images import LazyFile, read_image
from cosa.data.loader import TrainingViews, training_loader, worker_count

TOPIC = "loader"
BEFORE, NOW = "straightforward", "loader"
TARGET = 60
"""Images per second and core that the loader must make."""
OTHER = "draws, labels"

STREAMS = {BEFORE: Straightforward, NOW: TrainingViews}
STAGES = {
    "decode": ((baseline_loader, "decoded"), (base, "open_image"), (LazyFile, "decode")),
    "crop, resize": ((baseline_loader, "crop"), (transforms, "crop")),
    "blur": ((baseline_loader, "blurred"), (transforms, "blurred")),
    "colour": ((baseline_loader, "apply_strong"), (transforms, "apply_strong")),
    "tensors": ((baseline_loader, "float_canvas"), (transforms, "pad")),
    "collate": ((batching, "default_collate"),),
}
"""Stage -> where the functions that make it up are looked up when they are called."""


class Clock:
    """Processor seconds of this process per stage; a stage within another counts once."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._within = [0.0]

    def wrapped(self, stage: str, function: Callable) -> Callable:
        """``function``, timed."""

        def timed(*args, **options):
            self._within.append(0.0)
            start = time.process_time()
            try:
                return function(*args, **options)
            finally:
                spent = time.process_time() - start
                self.seconds[stage] += spent - self._within.pop()
                self._within[-1] += spent

        return timed

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time all ``STAGES``; what is left of the block's time is ``OTHER``."""
        with ExitStack() as replaced:
            for stage, places in STAGES.items():
                for owner, name in places:
                    timed = self.wrapped(stage, getattr(owner, name))
                    replaced.enter_context(patch.object(owner, name, timed))
            self._within = [0.0]
            start = time.process_time()
            yield
            self.seconds[OTHER] += time.process_time() - start - self._within[0]


def measure(dataset: SegmentationDataset, config: Config, batches: int) -> dict[str, Any]:
    """Make the first batches of both streams in turn, in this process.

    Returns:
        ``milliseconds`` of processor time per image, stream -> stage -> mean; ``per_core``,
        stream -> images per second of processor time; ``ratio`` of these; ``to_device``,
        milliseconds per image of ``to_device`` on the CPU; ``megabytes`` of a batch per stream;
        ``apart``, the mean difference of the weak views in grey levels; ``batch_size``.
    """
    size = config.train.batch_size
    made = {
        name: kind(dataset, config.seed, **to_dict(config.augment))
        for name, kind in STREAMS.items()
    }
    clocks = {name: Clock() for name in STREAMS}
    moving, apart, megabytes = [], [], {}
    black = torch.zeros(3, 1, 1)
    for number in range(-1, batches):
        positions = range(max(number, 0) * size, (max(number, 0) + 1) * size)
        found = {}
        # Which one comes first changes, as the second finds the files in memory.
        for name in sorted(STREAMS, reverse=number % 2 == 1):
            # The first batch is not timed: memory is allocated and libraries are loaded.
            clock = clocks[name] if number >= 0 else Clock()
            with clock.running():
                found[name] = collate(made[name].__getitems__(positions))
            megabytes[name] = sum(value.nbytes for value in found[name].values()) / 1e6
        start = time.process_time()
        views = to_device(found[NOW], "cpu", black)["weak"]
        moving.append(time.process_time() - start)
        apart.append(grey_levels(views, found[BEFORE]["weak"], found[NOW]["valid"]))
    images = batches * size
    per_core = {name: images / sum(clock.seconds.values()) for name, clock in clocks.items()}
    return {
        "milliseconds": {
            name: {stage: 1e3 * clock.seconds[stage] / images for stage in (*STAGES, OTHER)}
            for name, clock in clocks.items()
        },
        "per_core": per_core,
        "ratio": per_core[NOW] / per_core[BEFORE],
        "to_device": 1e3 * float(np.median(moving)) / size,
        "megabytes": megabytes,
        "apart": float(np.mean(apart)),
        "batch_size": size,
    }


def grey_levels(first: Tensor, second: Tensor, valid: Tensor) -> float:
    """Mean absolute difference, in 0..255, of images (B, 3, H, W) in [0, 1], where valid."""
    return float(255 * (first - second).abs().mean(dim=1)[valid].mean())


def with_workers(
    dataset: SegmentationDataset, config: Config, workers: int, batches: int, rounds: int
) -> dict[str, dict[str, float]]:
    """What arrives from worker processes, both streams in turn.

    Returns:
        stream -> ``rate``, images per second by the wall clock, the median of the rounds, and
        ``milliseconds`` of processor time per image, this process and the workers together. The
        rate does not count what lies ready when the clock starts: it starts after the batches that
        were ordered in advance, two of each worker.
    """
    size, ready = config.train.batch_size, 2 * workers
    rates, spent = {name: [] for name in STREAMS}, dict.fromkeys(STREAMS, 0.0)
    for _ in range(rounds):
        for name, kind in STREAMS.items():
            loaded = training_loader(
                dataset, batch_size=size, seed=config.seed, iterations=ready + batches,
                workers=workers, stream=kind, **to_dict(config.augment),
            )
            before = _processor_seconds()
            for number, _ in enumerate(loaded, start=1):
                if number == ready:
                    start = time.perf_counter()
            rates[name].append(batches * size / (time.perf_counter() - start))
            # The workers have ended, which is when their time is known.
            spent[name] += _processor_seconds() - before
    images = rounds * (ready + batches) * size
    return {
        name: {"rate": float(np.median(rates[name])), "milliseconds": 1e3 * spent[name] / images}
        for name in STREAMS
    }


def _processor_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def describe(dataset: SegmentationDataset, config: Config) -> str:
    """A clause about the images, for files with their mean size."""
    about = f"{len(dataset)} images of `{config.data.name}`"
    if not isinstance(dataset, FileDataset):
        return about
    some = range(0, len(dataset), max(1, len(dataset) // 100))
    kilobytes = np.mean([dataset.image_paths[index].stat().st_size for index in some]) / 1e3
    width, height = np.median([read_image(dataset.image_paths[i]).size for i in some], axis=0)
    return f"{about}, files of {kilobytes:.0f} kB in the mean, {width:.0f}x{height:.0f} pixels " \
           "in the median"


def main(arguments: Sequence[str] | None = None) -> int:
    """Time the training loader alone, stage by stage and with workers, against the plain way."""
    given = parse(arguments)
    started = stamp.begin(TOPIC, arguments, given.report)
    read_report(given.report, TOPIC)
    torch.set_num_threads(1)
    config = load_config(given.config, given.overrides)
    with tempfile.TemporaryDirectory() as folder:
        if config.data.name != "scenes" and not config.data.root:
            height, width = given.size
            dataset = textures(Path(folder), given.images, width, height)
            about = describe(dataset, config).replace(
                f"images of `{config.data.name}`", f"JPEG files of smooth noise (quality {QUALITY})"
            )
        else:
            dataset = build_dataset(config.data, "train")
            about = describe(dataset, config)
        batches = max(1, given.images * given.rounds // config.train.batch_size)
        alone = measure(dataset, config, batches)
        arriving = with_workers(dataset, config, given.workers, batches, given.rounds)
    facts = {
        **started.facts(torch.device("cpu")),
        "images": about,
        "augment": to_dict(config.augment),
        **alone,
        "workers": given.workers,
        "with_workers": arriving,
    }
    write_atomically(Path(given.output), json.dumps(facts, indent=2) + "\n")
    cells, told = table(facts), explain(facts)
    head = stamp.heading(facts, *describe_views(facts))
    section = ["## Loader", head, markdown(cells), *told]
    write_report(given.report, "\n\n".join(section), TOPIC)
    print_section(head, aligned(cells), *told)
    say(f"the numbers are in {given.output}, the report is {given.report}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="python -m cosa.benchmark loader", description=main.__doc__
    )
    add = parser.add_argument
    add("overrides", nargs="*", metavar="key=value",
        help="over the YAML file; with data.root the images are the data set's, else made here")
    add("--config", default="configs/voc.yaml", help="YAML file; configs/voc.yaml")
    add("--images", type=whole(1, 10**6), default=64, metavar="N", help="per round; 64")
    add("--rounds", type=whole(1, 10**6), default=3, metavar="N", help="over the images; 3")
    add("--size", type=size, default=(375, 500), metavar="WxH",
        help="of the images that are made, in pixels; 500x375")
    add("--workers", type=whole(1, WORKERS.high), default=max(1, worker_count(-1)), metavar="N",
        help="worker processes; default: as in training")
    add_report_option(parser)
    add("--output", default=f"runs/{TOPIC}/{TOPIC}.json", help="file of the numbers")
    return parser.parse_intermixed_args(arguments)


def table(facts: dict[str, Any]) -> list[list[str]]:
    """Header and one list of cells per stage, milliseconds per image, and the rates."""
    rows = [["", *STREAMS]]
    for stage in (*STAGES, OTHER):
        rows.append([stage, *(f"{facts['milliseconds'][name][stage]:.2f}" for name in STREAMS)])
    rows.append(["sum", *(f"{1e3 / facts['per_core'][name]:.2f}" for name in STREAMS)])
    rows.append(["images/s per core", *(f"{facts['per_core'][name]:.0f}" for name in STREAMS)])
    workers = [facts["with_workers"][name] for name in STREAMS]
    rows.append(["sum with workers", *(f"{worker['milliseconds']:.2f}" for worker in workers)])
    rows.append([
        f"images/s with {facts['workers']} worker(s)", *(f"{w['rate']:.0f}" for w in workers)
    ])
    rows.append(["MB per batch", *(f"{facts['megabytes'][name]:.1f}" for name in STREAMS)])
    return rows


def describe_views(facts: dict[str, Any]) -> list[str]:
    """Which images were read, and what was made of them."""
    augment = facts["augment"]
    return [
        facts["images"],
        f"crop {augment['crop_size']}, scale {augment['scale_min']} to {augment['scale_max']}, "
        f"batches of {facts['batch_size']}",
    ]


def explain(facts: dict[str, Any]) -> list[str]:
    """How to read the table, and the verdict, as paragraphs."""
    rate = facts["per_core"][NOW]
    return [
        "Milliseconds of processor time per image, in one process with one thread, both in turn. "
        f"`{BEFORE}` decodes in full, blurs by Pillow and makes float32 of both views where "
        f"they are made; `{NOW}` is what trains. `sum with workers` adds their start and the way "
        "to the main process. The rate with workers is by the wall clock: it alone is lowered by "
        "what else the machine does. Not counted is `to_device`, which makes float32 of the 8-bit "
        f"views on the training's device: {facts['to_device']:.2f} ms per image where that is one "
        f"core of this CPU. The weak views differ by {facts['apart']:.2f} grey levels in the "
        "mean, by the blur and where files are decoded at a fraction of their size.",
        f"- at least {TARGET} images/s per core: **{'holds' if rate >= TARGET else 'does not hold'}"
        f"** ({rate:.0f}; {facts['ratio']:.2f} times the straightforward way)",
    ]
