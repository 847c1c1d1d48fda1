"""An evaluation as the configuration describes it, its pictures included."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cosa.config import Config, LossConfig, MethodConfig
from cosa.core.device import choose_autocast
from cosa.core.errors import NotFiniteError
from cosa.core.files import writing
from cosa.data import SegmentationDataset
from cosa.data.subset import Subset
from cosa.evaluate import Parts, ShownImage, evaluate
from cosa.network import CoSANetwork, NetworkOutput
from cosa.pictures.panels import save_prediction_panel


def score(
    network: CoSANetwork,
    config: Config,
    dataset: SegmentationDataset,
    thresholds: tuple[float | None, float | None],
    panels_folder: Path | None = None,
    should_stop: Callable[[], bool] | None = None,
    boundary: bool = True,
    on_parts: Callable[[Parts], None] | None = None,
) -> dict[str, Any]:
    """``cosa.evaluate.evaluate`` with the ``evaluate`` section of the configuration.

    Args:
        network: evaluated on the device where it is.
        thresholds: (xi, xi_aux), in [0, 1] or None.
        panels_folder: where to write ``evaluate.panels`` pictures; None for none.
        should_stop, boundary, on_parts: of ``cosa.evaluate.evaluate``.

    Raises:
        UserError: a coexistence class is unknown.
        NotFiniteError: what the network says of an image is NaN or infinite.
        EvaluationStopped: ``should_stop`` returned True.
    """
    options = config.evaluate
    on_image = None
    if panels_folder is not None:
        on_image = panel_writer(
            panels_folder, dataset, thresholds[0], config.method, options.min_class_score
        )
    return _evaluate(
        network, config, dataset, thresholds, on_image=on_image, shown=options.panels,
        boundary=boundary, max_images=options.max_images, should_stop=should_stop,
        on_parts=on_parts, coexistence_classes=options.coexistence_classes,
    )


def draw_images(
    network: CoSANetwork,
    config: Config,
    dataset: SegmentationDataset,
    thresholds: tuple[float | None, float | None],
    indices: Sequence[int],
    paths: Sequence[Path],
    should_stop: Callable[[], bool] | None = None,
) -> None:
    """Draw some images as :func:`score` does, which takes as long as to score them.

    Args:
        network, dataset, thresholds, should_stop: as there.
        indices: of images of the data set, each once; in each process all of them.
        paths: of their PNG files, which must be in one folder.

    Raises:
        NotFiniteError, EvaluationStopped: as there.
    """
    if not indices:
        return
    some = Subset(dataset, indices)
    on_image = panel_writer(
        paths[0].parent, some, thresholds[0], config.method, config.evaluate.min_class_score,
        names=[path.stem for path in paths],
    )
    _evaluate(
        network, config, some, thresholds, on_image=on_image, shown=len(some), boundary=False,
        progress=False, should_stop=should_stop,
    )


def _evaluate(
    network: CoSANetwork,
    config: Config,
    dataset: SegmentationDataset,
    thresholds: tuple[float | None, float | None],
    **rest: Any,
) -> dict[str, Any]:
    """``cosa.evaluate.evaluate`` of maps as configured, which must be finite."""
    options, device = config.evaluate, next(network.parameters()).device
    with finite_output(network):
        return evaluate(
            network,
            dataset,
            thresholds=thresholds,
            image_size=options.image_size,
            scales=options.scales,
            flip=options.flip,
            batch_size=options.batch_size,
            min_class_score=options.min_class_score,
            device=device,
            autocast=choose_autocast(device, config.train.precision),
            **rest,
        )


@contextmanager
def finite_output(network: CoSANetwork) -> Iterator[None]:
    """Within the context, each pass of the network must yield numbers.

    Raises:
        NotFiniteError: scores, CAMs or segmentation of a batch are NaN or infinite.
    """

    def look(module: nn.Module, images: Any, output: NetworkOutput) -> None:
        maps = (output.logits, output.aux_logits, output.cam, output.aux_cam, output.seg)
        if not torch.isfinite(nn.utils.get_total_norm(maps, norm_type=float("inf"))):
            raise NotFiniteError("the output of the network is not finite")

    hook = network.register_forward_hook(look)
    try:
        yield
    finally:
        hook.remove()


def panel_writer(
    folder: Path,
    dataset: SegmentationDataset,
    threshold: float | None,
    method: MethodConfig,
    min_class_score: float = 0.0,
    names: Sequence[str] | None = None,
) -> Callable[[ShownImage], None]:
    """What draws images of an evaluation, each into ``folder`` under its name.

    Args:
        threshold: xi in [0, 1], where M' becomes a pseudo-label; None where training fitted none,
            it is drawn at 0.5 then.
        method: whose perplexity decides where the pseudo-label is hatched: above ``csc_epsilon``.
        min_class_score: of ``cosa.evaluate.evaluate``.
        names: of the pictures; None: those of the images in the data set.
    """
    names = dataset.names if names is None else names

    def write(shown: ShownImage) -> None:
        path, image = folder / f"{names[shown.index]}.png", dataset.image(shown.index)
        with writing(path):
            save_prediction_panel(
                path,
                image=image,
                truth=shown.mask,
                prediction=shown.prediction,
                image_labels=shown.image_labels,
                threshold=0.5 if threshold is None else threshold,
                perplexity_alpha=method.perplexity_alpha,
                perplexity_beta=method.perplexity_beta,
                epsilon=method.csc_epsilon,
                min_class_score=min_class_score,
                classes=dataset.classes,
                palette=dataset.palette,
            )

    return write


def scored_split(config: Config) -> str:
    """Where final scores come from: "test" where there are images that no choice is made on."""
    return "test" if config.data.name == "scenes" or config.data.hold_out else "val"


def validation_score(loss: LossConfig, scores: Mapping[str, Any]) -> float | None:
    """The one by which best.pth is chosen, in [0, 1]; None if it is undefined.

    It is the label-free mIoU; where no segmentation is trained the CAM's best mIoU, and without
    masks the classification's mean average precision.
    """
    name = "miou" if loss.c2s > 0 or loss.c2s_aux > 0 else "cam_best_miou"
    return scores.get(name, scores["classification_map"])
