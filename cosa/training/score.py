"""An evaluation as the configuration describes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cosa.config import Config
from cosa.core.device import choose_autocast
from cosa.data import SegmentationDataset
from cosa.evaluate import evaluate
from cosa.network import CoSANetwork


def score(
    network: CoSANetwork,
    config: Config,
    dataset: SegmentationDataset,
    thresholds: tuple[float | None, float | None],
    panels_folder: Path | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """``cosa.evaluate.evaluate`` with the ``evaluate`` section of the configuration.

    Args:
        network: evaluated on the device where it is.
        thresholds: (xi, xi_aux), in [0, 1] or None.
        panels_folder: where to write pictures.
    """
    options, method = config.evaluate, config.method
    device = next(network.parameters()).device
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
        panels_folder=panels_folder if options.panels else None,
        panels=options.panels,
        perplexity_alpha=method.perplexity_alpha,
        perplexity_beta=method.perplexity_beta,
        epsilon=method.csc_epsilon,
        autocast=choose_autocast(device, config.train.precision),
        max_images=options.max_images,
        should_stop=should_stop,
    )


def scored_split(config: Config) -> str:
    """Where final scores come from: only the generated scenes have test images of their own."""
    return "test" if config.data.name == "scenes" else "val"
