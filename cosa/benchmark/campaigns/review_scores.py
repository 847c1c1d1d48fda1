"""How well measures of certainty order images as their true IoU does, for one network."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import spearmanr  # comes with scikit-learn

from cosa.benchmark.campaigns.review_measures import MEASURES, see
from cosa.benchmark.timings.clock import clock
from cosa.cam import resize
from cosa.checkpoint import TrainedNetwork
from cosa.core import IGNORE
from cosa.core.terminal import progress_bar
from cosa.crf import DEFAULT_PRESET
from cosa.data import SegmentationDataset
from cosa.data.subset import with_masks
from cosa.inference.certainty import certainty
from cosa.inference.pixels import argmax_at_size
from cosa.inference.segmenter import CELLS, Segmenter
from cosa.inference.settings import CrfSettings, Settings

SHARE = 5
"""One in so many images is looked at first."""


@dataclass(frozen=True)
class Scores:
    """Of one network, on one half of the images."""

    iou: list[float]
    """Of each image."""
    crf_iou: list[float]
    """The same with a CRF; empty where it was not asked for."""
    measures: dict[str, list[float]]
    """Row -> the measure of each image."""

    def correlation(self, row: str, refined: bool = False) -> float:
        """Spearman's; NaN if the measure, or the IoU, is the same for all images."""
        values, truth = self.measures[row], self.crf_iou if refined else self.iou
        if len(set(values)) < 2 or len(set(truth)) < 2:
            return float("nan")
        return float(spearmanr(values, truth).statistic)

    def looked_at(self, row: str) -> tuple[float, float, float]:
        """Mean IoU of the ``1 / SHARE`` least certain images, of all, and of as many worst ones."""
        count = max(1, len(self.iou) // SHARE)
        iou = np.array(self.iou)
        first = np.argsort(self.measures[row], kind="stable")[:count]
        return float(iou[first].mean()), float(iou.mean()), float(np.sort(iou)[:count].mean())


def image_iou(mask: np.ndarray, truth: np.ndarray) -> float:
    """The mean IoU over the classes that the mask or the truth holds, 0 the background included.

    Args:
        mask, truth: (H, W) uint8; where the truth is ``IGNORE``, nothing counts.
    """
    mask, truth = mask[truth != IGNORE], truth[truth != IGNORE]
    classes = np.union1d(mask, truth)
    return float(np.mean([
        np.sum((mask == k) & (truth == k)) / np.sum((mask == k) | (truth == k)) for k in classes
    ])) if len(classes) else float("nan")


@torch.inference_mode()
def score(network: TrainedNetwork, dataset: SegmentationDataset, crf: bool, name: str) -> Scores:
    """All measures, and the IoU, of all images that have a mask."""
    settings = Settings(
        size=network.image_size, crf=CrfSettings.of_preset(DEFAULT_PRESET) if crf else None)
    segmenter, masked = Segmenter(network, settings, cam=True), with_masks(dataset)
    threshold = network.thresholds[0] if network.thresholds[0] is not None else 0.5
    found = Scores([], [], {row: [] for row in MEASURES})
    for index in progress_bar(iterable=range(len(masked)), desc=name, leave=False):
        prepared, truth = segmenter.prepare(masked.image(index), None), masked.mask(index)
        (maps,) = segmenter.predict([prepared])
        found.iou.append(image_iou(argmax_at_size(maps.seg, truth.shape).numpy(), truth))
        if crf:
            refined = segmenter.refine(maps, prepared.photo)
            found.crf_iou.append(
                image_iou(argmax_at_size(refined.seg, truth.shape).numpy(), truth))
        seen = see(network, maps, prepared.pixels.to(segmenter.device), threshold)
        for row, measure in MEASURES.items():
            found.measures[row].append(measure(seen))
    return found


def cost(network: TrainedNetwork) -> tuple[float, float]:
    """Milliseconds of an image: of a pass of the network at its size, and of the certainty."""
    side, device = network.image_size, next(network.parameters()).device
    cells, classes = side // network.stride * CELLS, network.num_classes + 1
    image = torch.rand(1, 3, side, side, device=device)
    # As the pipeline has them: at the size of the image that the network sees.
    maps, presence = (torch.rand(size, device=device) for size in ((classes, side, side), classes))

    @torch.inference_mode()
    def milliseconds(function: Callable[[], object]) -> float:
        spent = []
        for _ in range(12):
            started = clock(device)
            function()
            spent.append(1e3 * (clock(device) - started))
        return statistics.median(spent[2:])

    return (milliseconds(lambda: network(image)),
            milliseconds(lambda: certainty(resize(maps[None], (cells, cells))[0], presence)))
