"""Scores of a trained network that only the benchmark on photographs has.

Beside what a training scores itself: the segmentation refined by a CRF, on the images of the final
scores, and the CAM's pseudo-labels on training images, which are what the segmentation learns from.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cosa.benchmark.campaigns.peak import load_of_run
from cosa.checkpoint import TrainedNetwork
from cosa.config import Config
from cosa.core.device import choose_autocast, memory_errors_explained
from cosa.core.files import write_atomically
from cosa.core.numbers import without_nan
from cosa.core.ranges import whole
from cosa.core.terminal import Parser, progress_bar
from cosa.crf import DEFAULT_PRESET
from cosa.data import SegmentationDataset, build_dataset
from cosa.data.subset import with_masks
from cosa.evaluate import spread
from cosa.inference.pixels import argmax_at_size
from cosa.inference.segmenter import Segmenter
from cosa.inference.settings import CrfSettings, Settings
from cosa.metrics import SegmentationMetrics
from cosa.training.evaluation import score

TRAIN_IMAGES = 160
"""How many training images are scored unless it is said."""


def scores_file(weights: Path) -> Path:
    """Where the scores of a file of weights go."""
    return weights.with_name(f"{weights.stem}-photographs.json")


def training_scores(
    network: TrainedNetwork, config: Config, dataset: SegmentationDataset, count: int
) -> dict[str, Any]:
    """Scores of ``cosa.evaluate.evaluate`` on training images, as ``train_*``, without contours.

    Of these, ``train_cam_miou`` is that of the CAM's pseudo-labels (CPL): M' at xi, filtered by
    the image-level labels.

    Args:
        count: of the images with a mask so many are scored, evenly spread, if there are as many.

    Returns:
        Nothing if no image has a mask, or none is to be scored.
    """
    masked = with_masks(dataset)
    if not len(masked) or not count:
        return {}
    options = replace(config, evaluate=replace(config.evaluate, max_images=count))
    scores = score(network, options, masked, network.thresholds, boundary=False)
    return {f"train_{key}": value for key, value in scores.items()}


def plain_scores(
    network: TrainedNetwork, config: Config, dataset: SegmentationDataset
) -> dict[str, Any]:
    """``plain_cam_best_miou``: the CAM's score at its best threshold where no map is spread."""
    steps = network.cam_steps, network.seg_steps
    network.cam_steps = network.seg_steps = 0
    try:
        scores = score(network, config, dataset, network.thresholds, boundary=False)
    finally:
        network.cam_steps, network.seg_steps = steps
    return {"plain_cam_best_miou": scores["cam_best_miou"]}


def crf_scores(
    network: TrainedNetwork, config: Config, dataset: SegmentationDataset
) -> dict[str, Any]:
    """Label-free scores of what ``infer.py --crf`` makes of the images, in [0, 1].

    Returns:
        ``crf_miou``, ``crf_boundary_f``, ``crf_jf``, ``crf_images`` and ``crf_seconds``.
    """
    started = time.perf_counter()
    options, device = config.evaluate, next(network.parameters()).device
    settings = Settings(
        size=options.image_size, scales=options.scales, flip=options.flip,
        crf=CrfSettings.of_preset(DEFAULT_PRESET), min_class_score=options.min_class_score,
    )
    segmenter = Segmenter(
        network, settings, batch_size=options.batch_size,
        autocast=choose_autocast(device, config.train.precision),
    )
    metrics = SegmentationMetrics(len(dataset.classes) + 1, boundary=True)
    masked = with_masks(dataset)
    indices = spread(range(len(masked)), options.max_images or len(masked))
    with progress_bar(total=len(indices), desc="CRF", leave=False) as bar:
        for start in range(0, len(indices), options.batch_size):
            batch = indices[start : start + options.batch_size]
            images = [segmenter.prepare(masked.image(index), None) for index in batch]
            for index, image, maps in zip(batch, images, segmenter.predict(images), strict=True):
                refined = segmenter.refine(maps, image.photo)
                metrics.update(argmax_at_size(refined.seg, image.size), masked.mask(index))
            bar.update(len(batch))
    found = metrics.compute()
    scores = {f"crf_{key}": found[key] for key in ("miou", "boundary_f", "jf")}
    seconds = round(time.perf_counter() - started, 3)
    return without_nan({**scores, "crf_images": len(indices), "crf_seconds": seconds})


def main(arguments: Sequence[str] | None = None) -> int:
    """Score weights of a run on training images, with --crf also their refined masks."""
    parser = Parser(
        prog="python -m cosa.benchmark photograph_scores", description=main.__doc__
    )
    parser.add_argument("weights", nargs="+", metavar="FILE",
                        help="best.pth, last.pth or supervised.pth in its run folder")
    parser.add_argument("--crf", action="store_true",
                        help="refine the segmentation of the images of the final scores")
    parser.add_argument("--plain-cam", action="store_true",
                        help="score the CAMs without spreading, too")
    parser.add_argument("--train-images", type=whole(0, 10**6), default=TRAIN_IMAGES, metavar="N",
                        help=f"training images, evenly spread, 0 for none; {TRAIN_IMAGES}")
    given = parser.parse_args(arguments)
    for weights in map(Path, given.weights):
        network, config = load_of_run(weights)
        scores: dict[str, Any] = {}
        with memory_errors_explained():
            if given.train_images:
                train_set = build_dataset(config.data, "train")
                scores |= training_scores(network, config, train_set, given.train_images)
            held_out = build_dataset(config.data, "test")
            if given.plain_cam:
                scores |= plain_scores(network, config, held_out)
            if given.crf:
                scores |= crf_scores(network, config, held_out)
        write_atomically(scores_file(weights), json.dumps(scores, indent=2) + "\n")
    return 0
