"""Score a network on a data set: segmentation, CAMs and classification in one pass.

The segmentation score ``miou`` is label-free: nothing but the image leads to the prediction.
Published figures of CoSA and its peers remove the classes that the validation images' labels
exclude; that score is ``miou_label_filtered`` and is never mixed up with the former.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cosa.cam import resize
from cosa.core import distributed
from cosa.core.device import weights_cast_once
from cosa.core.errors import UserError, nearest
from cosa.core.terminal import progress_bar
from cosa.data.datasets import SegmentationDataset
from cosa.data.images import network_input
from cosa.metrics import average_precision, f1_scores, mean_over_present
from cosa.pictures.panels import save_prediction_panel
from cosa.predict import Prediction, multi_scale, scaled_size
from cosa.scores import PixelScores, Seen

_READERS = 3


class EvaluationStopped(Exception):
    """``should_stop`` said so; there are no scores."""


def evaluate(
    network: nn.Module,
    dataset: SegmentationDataset,
    *,
    thresholds: tuple[float | None, float | None] = (0.5, 0.5),
    image_size: int = 448,
    scales: Sequence[float] = (1.0, 0.5, 1.5, 0.75, 1.25),
    flip: bool = True,
    batch_size: int = 4,
    coexistence_classes: Sequence[str] = (),
    device: torch.device | str = "cpu",
    panels_folder: str | Path | None = None,
    panels: int = 8,
    perplexity_alpha: float = 0.8,
    perplexity_beta: float = 1.0,
    epsilon: float = 1.0,
    autocast: Callable[[], AbstractContextManager] | None = None,
    max_images: int = 0,
    boundary: bool = True,
    progress: bool = True,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Score ``network`` on ``dataset``.

    Images are squashed to ``image_size`` squared; the maps are resized to each mask (bilinear).
    Several processes see a share of the images each, and all get the scores of all of them.

    Args:
        network: a ``CoSANetwork`` on ``device``; evaluated in eval mode, its mode is restored.
        dataset: images, image-level labels and, for all but the classification scores, masks.
        thresholds: (xi, xi_aux), in [0, 1]: where M' and the auxiliary M' become labels. None
            where training fitted none: the scores at that threshold are None then.
        scales, flip: of ``predict.multi_scale``.
        coexistence_classes: names of the classes that ``cmiou`` averages.
        panels_folder: where to write ``panels`` pictures, evenly spread over the data set.
        perplexity_alpha, perplexity_beta, epsilon: pseudo-labels of a perplexity (Eq. 4) above
            epsilon are hatched on the panels, which show M' at 0.5 where xi is None.
        autocast: makes the context in which the network runs; None for full precision.
        max_images: score only so many images, evenly spread; 0 for all.
        boundary: also compute the contour quality (``boundary_f``, ``jf``).
        progress: show a progress bar on stderr.
        should_stop: asked before each batch; it is enough if one process's says so.

    Returns:
        JSON-serialisable scores in [0, 1], None where undefined:
        ``miou``: label-free; ``miou_label_filtered``: with the absent classes' logits at -inf;
        ``boundary_f``, ``jf``: label-free contour quality, and its mean with ``miou``;
        ``cam_miou``, ``aux_cam_miou``: M' at xi and the auxiliary M' at xi_aux;
        ``ensemble_cam_miou``: the mean of both at the mean threshold;
        ``cam_best_miou`` at ``cam_best_threshold``: the best of ``CAM_THRESHOLDS`` for M', chosen
        on the masks, hence an upper bound and not a result;
        ``iou``, ``cam_iou``: per class name, of ``miou`` and ``cam_miou``;
        ``cmiou``, ``cam_cmiou``: their means over ``coexistence_classes``, if there are any;
        ``classification_map``, ``classification_f1``: macro averages over the classes that occur,
        of the logits at scale 1; ``images``; ``seconds``.
        All CAM scores filter by the image-level labels, as pseudo-labels do. Without masks only
        the last four are there.

    Raises:
        UserError: if a coexistence class is unknown.
        EvaluationStopped: ``should_stop`` returned True.
    """
    started = time.perf_counter()
    coexistence = class_indices(coexistence_classes, dataset.classes)
    indices = _spread(range(len(dataset)), max_images or len(dataset))
    shown = set(_spread(indices, panels)) if panels_folder is not None else set()
    pixels = PixelScores(len(dataset.classes), thresholds, boundary)
    autocast = autocast or nullcontext
    logits, stopped = [], False
    own = indices[distributed.rank() :: distributed.world()]
    whole_patches = scaled_size((image_size, image_size), 1.0, network.patch_size)
    bar = progress_bar(total=len(own), desc="evaluate", leave=False, disable=not progress)
    with bar, _eval_mode(network), torch.no_grad(), ThreadPoolExecutor(1) as counter:
        counting = counter.submit(_count, pixels, ())
        for batch in _batches(dataset, own, image_size, batch_size):
            stopped = should_stop is not None and should_stop()
            if stopped:
                break
            images = torch.stack([sample.image for sample in batch]).to(device)
            scored = [k for k, s in enumerate(batch) if s.mask is not None or s.index in shown]
            with autocast(), weights_cast_once(network):
                output = network(resize(images, whole_patches))
                if scored:
                    prediction = multi_scale(network, images[scored], scales=scales, flip=flip)
            logits.append(output.logits.float().cpu())
            seen = []
            for k, maps in zip(scored, _split(prediction) if scored else (), strict=True):
                sample = batch[k]
                labels = torch.from_numpy(np.asarray(dataset.labels[sample.index]))
                if sample.mask is not None:
                    size = sample.mask.shape
                    seen.append((pixels.look(maps, labels.to(device), size), sample.mask))
                if sample.index in shown:
                    save_prediction_panel(
                        Path(panels_folder) / f"{dataset.names[sample.index]}.png",
                        image=dataset.image(sample.index),
                        truth=sample.mask,
                        prediction=maps,
                        image_labels=labels,
                        threshold=0.5 if thresholds[0] is None else thresholds[0],
                        perplexity_alpha=perplexity_alpha,
                        perplexity_beta=perplexity_beta,
                        epsilon=epsilon,
                        classes=dataset.classes,
                        palette=dataset.palette,
                    )
            # The CPU counts one batch while the device works on the next.
            counting.result()
            counting = counter.submit(_count, pixels, seen)
            bar.update(len(batch))
        counting.result()

    if distributed.highest(stopped):
        raise EvaluationStopped
    pixels.add_up()
    scores = pixels.compute(dataset.classes, coexistence) if pixels.images else {}
    labels = np.asarray(dataset.labels)[indices]
    all_logits = _in_order(torch.cat(logits).numpy() if logits else labels[:0], len(indices))
    scores["classification_map"] = mean_over_present(average_precision(all_logits, labels))
    scores["classification_f1"] = mean_over_present(f1_scores(all_logits, labels))
    scores["images"] = len(indices)
    scores["seconds"] = round(time.perf_counter() - started, 3)
    return _without_nan(scores)


@dataclass
class _Sample:
    index: int
    image: Tensor  # (3, S, S) float32 in [0, 1]
    mask: np.ndarray | None  # (H, W) uint8


def _batches(
    dataset: SegmentationDataset, indices: Sequence[int], size: int, batch_size: int
) -> Iterator[list[_Sample]]:
    """Batches in order, read ahead by a few threads (decoding releases the interpreter lock)."""

    def read(index: int) -> _Sample:
        mask = dataset.mask(index) if dataset.has_masks else None
        return _Sample(index, network_input(dataset.image(index), size), mask)

    with ThreadPoolExecutor(_READERS) as pool:
        waiting: deque = deque()
        batch: list[_Sample] = []
        for position, index in enumerate(indices, start=1):
            waiting.append(pool.submit(read, index))
            last = position == len(indices)
            while waiting and (last or len(waiting) > 2 * batch_size):
                batch.append(waiting.popleft().result())
                if len(batch) == batch_size or (last and not waiting):
                    yield batch
                    batch = []


def _count(pixels: PixelScores, seen: Iterable[tuple[Seen, np.ndarray]]) -> None:
    for maps, mask in seen:
        pixels.count(maps, mask)


def _split(prediction: Prediction) -> Iterator[Prediction]:
    """The images of a batch, one by one."""
    maps = zip(prediction.cam, prediction.aux_cam, prediction.seg, strict=True)
    return (Prediction(cam=c[None], aux_cam=a[None], seg=s[None]) for c, a, s in maps)


def _in_order(own: np.ndarray, count: int) -> np.ndarray:
    """The rows of all processes, (count, C), from those of each, which has every world()-th."""
    rows = np.zeros((count, *own.shape[1:]), np.float32)
    parts = distributed.gather(own)
    for number, part in enumerate(parts):
        rows[number :: len(parts)] = part
    return rows


def _spread(items: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of the items, evenly spread, in order."""
    count = min(count, len(items))
    return [items[(2 * k + 1) * len(items) // (2 * count)] for k in range(count)]


def class_indices(names: Sequence[str], classes: Sequence[str]) -> list[int]:
    """0-based positions of the names of ``evaluate.coexistence_classes`` in the data set's.

    Raises:
        UserError: there is no such class.
    """
    for name in names:
        if name not in classes:
            raise UserError(
                f"evaluate.coexistence_classes: the data set has no class '{name}'"
                f"{nearest(name, classes)}"
            )
    return [list(classes).index(name) for name in names]


@contextmanager
def _eval_mode(network: nn.Module) -> Iterator[None]:
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def _without_nan(value: Any) -> Any:
    """NaN to None, which JSON knows."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
