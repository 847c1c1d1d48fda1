"""Inference measured: stage by stage, and overlapped as infer.py runs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cosa.benchmark.timings.clock import clock, spread
from cosa.benchmark.timings.memory import in_fresh_process, peak
from cosa.checkpoint import TrainedNetwork
from cosa.core.device import allow_tf32, choose_autocast, choose_device, memory_errors_as
from cosa.core.numbers import without_nan
from cosa.data.images import read_image
from cosa.data.masks import read_mask
from cosa.inference import outputs
from cosa.inference.finished import read_back
from cosa.inference.jobs import Job, Plan
from cosa.inference.outputs import Results
from cosa.inference.pipeline import segment_files
from cosa.inference.pixels import argmax_at_size
from cosa.inference.segmenter import Maps, Prepared, Segmenter
from cosa.inference.settings import Settings
from cosa.inference.task import load_network
from cosa.metrics import SegmentationMetrics
from cosa.network import CoSANetwork

STAGES = {"decode": "decode", "network": "network", "crf": "CRF", "argmax": "argmax",
          "write": "write"}


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    view: str
    """"single-scale" or "multi-scale"."""
    settings: Settings

    @property
    def label(self) -> str:
        """Its name in the table."""
        crf = self.settings.crf
        if crf is None:
            return self.view
        plural = "" if crf.iterations == 1 else "s"
        return f"{self.view}, CRF {crf.backend}, {crf.iterations} iteration{plural}"


@dataclass(frozen=True)
class Setup:
    """What all rows have in common."""

    weights: str
    device: str
    batch_size: int
    workers: int
    threads: int
    """Of PyTorch, on the CPU."""


def measure(
    setup: Setup, jobs: Plan, masks: Path | None, rows: Sequence[Row]
) -> list[dict[str, Any]]:
    """All rows: stages in this process, the pipeline and its memory in one for each row.

    Results lie below the folder ``jobs.output``.

    Raises:
        UserError: something cannot be read or written, or the memory is too small.
    """
    network, autocast, _ = load(setup)
    folder = jobs.output
    stages = time_stages(
        network, replace(jobs, output=folder / "stages"), rows, setup.batch_size, autocast
    )
    results = []
    for number, (row, seconds) in enumerate(zip(rows, stages, strict=True)):
        own = replace(jobs, output=folder / str(number))
        pipeline = in_fresh_process(run_pipeline, setup, own, row.settings)
        scores = score(own, masks, network.num_classes) if masks else None
        results.append(report_row(row, seconds, pipeline, scores))
    compare(results)
    return results


class _Stages:
    """Seconds of each stage, one value per image, with the device synchronised around it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}

    def time(self, stage: str, function: Callable[..., Any], *arguments: Any) -> Any:
        start = clock(self.device)
        result = function(*arguments)
        self.seconds[stage].append(clock(self.device) - start)
        return result


def time_stages(
    network: CoSANetwork,
    jobs: Sequence[Job],
    rows: Sequence[Row],
    batch_size: int,
    autocast: Callable[[], AbstractContextManager],
) -> list[dict[str, list[float]]]:
    """Seconds of each stage for each image, one stage after the other.

    For each batch the rows take their turns, so that whatever else the machine does falls on all
    alike. The network runs once for all rows of a view. The first batch runs twice, and counts
    the second time.

    Returns:
        For each row: stage -> one value per image; of "crf" none without a CRF.

    Raises:
        UserError: an image cannot be segmented, or the device's memory is too small.
    """
    device = next(network.parameters()).device
    segmenters = [
        Segmenter(network, row.settings, batch_size=batch_size, autocast=autocast) for row in rows
    ]
    measured = [_Stages(device) for _ in rows]
    for turn, start in enumerate([0, *range(0, len(jobs), batch_size)]):
        batch = [jobs[k] for k in range(start, min(start + batch_size, len(jobs)))]
        stages = measured if turn else [_Stages(device) for _ in rows]
        with memory_errors_as(segmenters[-1].out_of_memory):
            _time_batch(segmenters, batch, stages)
    return [stages.seconds for stages in measured]


def _time_batch(
    segmenters: Sequence[Segmenter], batch: Sequence[Job], measured: Sequence[_Stages]
) -> None:
    views: dict[tuple[Any, ...], tuple[list[Maps], float]] = {}
    for segmenter, stages in zip(segmenters, measured, strict=True):
        prepared = [stages.time("decode", decode, segmenter, job) for job in batch]
        view = segmenter.settings.scales, segmenter.settings.flip
        if view not in views:
            start = clock(segmenter.device)
            maps = list(segmenter.predict(prepared))
            views[view] = maps, (clock(segmenter.device) - start) / len(batch)
        maps, share = views[view]
        stages.seconds["network"] += len(batch) * [share]
        for job, ready, found in zip(batch, prepared, maps, strict=True):
            if segmenter.settings.crf:
                found = stages.time("crf", segmenter.refine, found, ready.photo)
            mask = stages.time("argmax", label, found, ready)
            results = Results(mask=mask)
            stages.time("write", outputs.write, job, results, segmenter.network.palette)


def decode(segmenter: Segmenter, job: Job) -> Prepared:
    """Read an image file and resize it for the network."""
    return segmenter.prepare(read_image(job.source), None)


def label(maps: Maps, prepared: Prepared) -> np.ndarray:
    """The mask, (H, W) uint8 of the image's size."""
    return np.array(maps.classes, dtype=np.uint8)[argmax_at_size(maps.seg, prepared.size).numpy()]


def load(
    setup: Setup,
) -> tuple[TrainedNetwork, Callable[[], AbstractContextManager], torch.device]:
    """Network, precision and device as infer.py has them.

    Raises:
        UserError: the weights or the device are not usable.
    """
    device = choose_device(setup.device, "--device ")
    torch.set_num_threads(setup.threads)
    network = load_network(setup.weights, device)
    training = network.config.train
    allow_tf32(training.tf32)
    return network, choose_autocast(device, training.precision), device


def run_pipeline(setup: Setup, jobs: Plan, settings: Settings) -> dict[str, float]:
    """All stages at once, as infer.py runs them; in a process of its own.

    One pass over the first batch goes before the one that is timed.

    Returns:
        ``images_per_second``; ``peak_bytes``, and ``loaded_bytes`` of them before the first
        image: the largest resident set of the process, on CUDA what PyTorch has allocated.

    Raises:
        UserError: an image cannot be segmented.
    """
    network, autocast, device = load(setup)
    loaded = peak(device)

    def run(some: Plan) -> None:
        for outcome in segment_files(
            network, some, settings, batch_size=setup.batch_size, workers=setup.workers,
            autocast=autocast,
        ):
            if outcome.error is not None:
                raise outcome.error

    run(first(jobs, setup.batch_size))
    start = clock(device)
    run(jobs)
    seconds = clock(device) - start
    return {"images_per_second": len(jobs) / seconds, "peak_bytes": peak(device),
            "loaded_bytes": loaded}


def score(jobs: Plan, masks: Path, classes: int) -> dict[str, float | None]:
    """``miou``, ``boundary_f`` and ``jf`` of the mask files of finished jobs.

    In [0, 1], None where the true masks ignore every pixel.
    """
    metrics = SegmentationMetrics(classes + 1, boundary=True)
    for outcome in read_back(jobs, classes):
        if outcome.error is not None:
            raise outcome.error
        metrics.update(outcome.mask, read_mask(truth(masks, outcome.job), classes))
    scores = metrics.compute()
    return without_nan({key: scores[key] for key in ("miou", "boundary_f", "jf")})


def truth(masks: Path, job: Job) -> Path:
    """The file of an image's true mask."""
    return masks / (os.path.splitext(job.name)[0] + ".png")


def first(jobs: Plan, number: int) -> Plan:
    """At most so many jobs."""
    return replace(jobs, files=jobs.files[:number])


def report_row(
    row: Row,
    seconds: Mapping[str, Sequence[float]],
    pipeline: Mapping[str, float],
    scores: Mapping[str, float | None] | None,
) -> dict[str, Any]:
    """All about a row but what compares it with others."""
    images = len(seconds["write"])
    return {
        "label": row.label,
        "view": row.view,
        "scales": list(row.settings.scales),
        "flip": row.settings.flip,
        "crf": row.settings.crf and asdict(row.settings.crf),
        "milliseconds": {
            stage: spread(seconds[stage]) if seconds[stage] else None for stage in STAGES
        },
        "images_per_second": images / sum(map(sum, seconds.values())),
        "overlapped": dict(pipeline),
        "scores": scores and dict(scores),
    }


def compare(results: Sequence[dict[str, Any]]) -> None:
    """Add to each row its ``slowdown``, in sequence and overlapped, against no CRF in its view."""
    plain_rows = {row["view"]: row for row in results if row["crf"] is None}
    for row in results:
        for found, other in ((row, plain_rows[row["view"]]),
                             (row["overlapped"], plain_rows[row["view"]]["overlapped"])):
            found["slowdown"] = other["images_per_second"] / found["images_per_second"]
