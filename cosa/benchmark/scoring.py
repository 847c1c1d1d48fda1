"""Scores of one network, computed as train.py computes its own."""

from __future__ import annotations

from typing import Any

from cosa.config import Config
from cosa.data import SegmentationDataset
from cosa.device import choose_autocast, choose_device
from cosa.evaluate import evaluate
from cosa.network import CoSANetwork


def score(
    network: CoSANetwork,
    config: Config,
    dataset: SegmentationDataset,
    thresholds: tuple[float, float],
) -> dict[str, Any]:
    """``cosa.evaluate.evaluate`` with the ``evaluate`` section of the configuration.

    Args:
        network: on the device that ``config.device`` chooses.
        thresholds: (xi, xi_aux), in [0, 1].
    """
    device, options = choose_device(config.device), config.evaluate
    return evaluate(
        network,
        dataset,
        thresholds=thresholds,
        image_size=options.image_size,
        scales=options.scales,
        flip=options.flip,
        batch_size=options.batch_size,
        coexistence_classes=options.coexistence_classes,
        device=device,
        autocast=choose_autocast(device, config.train.precision),
        max_images=options.max_images,
    )


def scored_split(config: Config) -> str:
    """Where final scores come from: only the generated scenes have test images of their own."""
    return "test" if config.data.name == "scenes" else "val"
