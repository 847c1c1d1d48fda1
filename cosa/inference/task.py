"""What a run is to do, found out before it writes anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from cosa import checkpoint
from cosa.checkpoint import TrainedNetwork
from cosa.core import distributed
from cosa.core.device import choose_device, memory_errors_as
from cosa.core.errors import UserError
from cosa.core.files import remove_leftovers
from cosa.core.memory import require_memory
from cosa.export.annotations import Writer
from cosa.inference.choose_settings import choose_crf, choose_settings
from cosa.inference.command_line import Options
from cosa.inference.exports import choose_writers
from cosa.inference.finished import find_finished
from cosa.inference.gallery import check_gallery
from cosa.inference.huge import require_rasterio
from cosa.inference.jobs import Plan, plan
from cosa.inference.labels import ImageLabels, read_image_labels
from cosa.inference.record import Record
from cosa.inference.review import check_review
from cosa.inference.scoring import Scorer
from cosa.inference.settings import Settings
from cosa.inference.summary_path import check_json


@dataclass(frozen=True)
class Task:
    """What is to be done, known before anything is written."""

    options: Options
    jobs: Plan
    finished: list[bool]
    """For each job, whether its files are there and are to be kept."""
    network: TrainedNetwork
    settings: Settings
    labels: ImageLabels | None
    scorer: Scorer | None
    record: Record
    writers: list[Writer]
    """Of files for annotation tools."""

    @property
    def writing(self) -> bool:
        """Whether there is anything left to do."""
        pages = self.options.review or self.options.report
        return bool(self.writers or pages) or not all(self.finished)

    def start(self) -> None:
        """Note new results, if there are to be any, and sweep up what killed programs left.

        Raises:
            UserError: see ``Record.start``.
        """
        if self.writing:
            self.record.start()
        for folder in self.jobs.folders:
            remove_leftovers(folder)


@contextmanager
def look(options: Options) -> Iterator[Task]:
    """Read and check all that the options name; writes nothing.

    In the ``with`` block, other runs are kept out of the output folder.

    Raises:
        UserError: on entering, if what is asked for cannot be done.
    """
    jobs = distributed.from_main(
        lambda: plan(options.input, options.output, options.save, options.evaluate)
    )
    require_rasterio(options.save)
    if options.review:
        check_review(options, jobs)
    if options.report:
        check_gallery(options)
    device = choose_device(options.device, "--device ")
    crf = choose_crf(options)
    network = load_network(options.weights, device)
    labels = None
    if options.labels:
        images = {file: jobs.root / file for file in jobs.files}
        labels = read_image_labels(options.labels, network.classes, images)
    settings = choose_settings(options, network, crf, labels)
    check_memory(settings, min(options.batch_size, len(jobs)), device)
    scorer = None
    if options.evaluate:
        scorer = Scorer(
            options.evaluate, jobs, network.classes, label_filtered=labels is not None,
            coexistence=network.config.evaluate.coexistence_classes, colors=options.colors,
        )
        distributed.from_main(lambda: scorer.check(labels))
    if options.json:
        check_json(options, jobs)
    with Record(Path(options.output), network, settings, options.save) as record:
        writers = choose_writers(options, network, record.digest)
        record.begin(options.overwrite, jobs)
        # Masks that are not saved can only be scored by computing them again.
        afresh = options.overwrite or (scorer is not None and "mask" not in options.save)
        finished = distributed.from_main(
            lambda: [False] * len(jobs) if afresh else find_finished(jobs, options.workers)
        )
        yield Task(options, jobs, finished, network, settings, labels, scorer, record, writers)


def check_memory(settings: Settings, count: int, device: torch.device) -> None:
    """Refuse batches of squares that cannot fit; windows are no larger than the images.

    Raises:
        UserError: their pixels alone take more memory than there is.
    """
    side = settings.size * max(1, *settings.scales)
    if settings.mode == "whole":
        require_memory(
            int(12 * count * side**2), f"{count} float32 images of {side:.0f} pixels a side",
            "lower --batch-size, --size or --scales", device,
        )


def load_network(path: str, device: torch.device) -> TrainedNetwork:
    """Load weights that are finite and whose classes fit into a mask.

    Raises:
        UserError: they are not, or cannot be loaded; see ``cosa.checkpoint.load``.
    """
    with memory_errors_as(lambda: UserError(
        f"{path} takes more memory than {device} has free: end other programs, or choose another "
        "--device"
    )):
        network = checkpoint.load(path, device)
    checkpoint.check_finite(network, path)
    if network.num_classes > 255:
        raise UserError(f"{path} has {network.num_classes} classes: masks hold at most 255")
    return network
