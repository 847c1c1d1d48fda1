"""Score a network on a data set: segmentation, CAMs and classification in one pass.

The segmentation score ``miou`` is label-free: nothing but the image leads to the prediction.
Published figures of CoSA and its peers remove the classes that the validation images' labels
exclude; that score is ``miou_label_filtered`` and is never mixed up with the former.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cosa.cam import resize
from cosa.core import distributed
from cosa.core.device import memory_errors_as, weights_cast_once
from cosa.core.errors import UserError, did_you_mean
from cosa.core.numbers import without_nan
from cosa.core.terminal import progress_bar
from cosa.core.threads import parallel_map
from cosa.data.base import SegmentationDataset
from cosa.data.images import network_input
from cosa.metrics import average_precision, f1_scores, mean_over_present
from cosa.predict import Prediction, multi_scale, scaled_size
from cosa.scores import Decided, PixelScores

_READERS = 3
"""Threads that read images ahead; decoding releases the interpreter lock."""


class EvaluationStopped(Exception):
    """``should_stop`` said so; there are no scores."""


@dataclass(frozen=True)
class ShownImage:
    """What a picture of an image in an evaluation is made of."""

    index: int
    """Its number in the data set."""
    image_labels: Tensor
    """(C,) integers in main memory; positive means present."""
    mask: np.ndarray | None
    """(H, W) uint8; None if the data set has none of this image."""
    prediction: Prediction
    """Of a batch of 1, at the evaluation's ``image_size`` squared, on its device."""


@dataclass(frozen=True)
class Parts:
    """What the scores of an evaluation are made of."""

    indices: list[int]
    """The n images that were scored, by their numbers in the data set."""
    of_images: list[float]
    """The label-free mean IoU of each, in [0, 1] (``cosa.metrics.iou_of_image``); NaN without a
    mask."""
    counts: dict[str, Any]
    """``PixelScores.parts``; empty without masks."""


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
    autocast: Callable[[], AbstractContextManager] | None = None,
    max_images: int = 0,
    boundary: bool = True,
    min_class_score: float = 0.0,
    progress: bool = True,
    should_stop: Callable[[], bool] | None = None,
    on_image: Callable[[ShownImage], None] | None = None,
    shown: int = 8,
    on_parts: Callable[[Parts], None] | None = None,
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
        autocast: makes the context in which the network runs; None for full precision.
        max_images: score only so many images, evenly spread; 0 for all.
        min_class_score: the label-free segmentation leaves out classes of which the network says
            a lower probability for the whole image, but for the likeliest one; 0 keeps all.
        boundary: also compute the contour quality (``boundary_f``, ``jf``).
        progress: show a progress bar on stderr.
        should_stop: asked before each batch; it is enough if one process's says so.
        on_image: called for ``shown`` of the scored images, evenly spread, once each is predicted;
            each process calls its own for its images.
        on_parts: called once, at the end, in each process with the same.

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
    indices = spread(range(len(dataset)), max_images or len(dataset))
    own = indices[distributed.rank() :: distributed.world()]
    on_show = set(spread(indices, shown)) if on_image is not None else set()
    pixels = PixelScores(len(dataset.classes), thresholds, boundary, min_class_score)
    autocast = autocast or nullcontext
    logits, stopped, of_images = [], False, dict.fromkeys(own, math.nan)
    single = tuple(scales) == (1.0,) and not flip
    whole_patches = scaled_size((image_size, image_size), 1.0, network.stride)
    with (
        progress_bar(total=len(own), desc="evaluate", leave=False, disable=not progress) as bar,
        closing(_read_ahead(dataset, own, image_size, 2 * batch_size)) as samples,
        ThreadPoolExecutor(1) as counter,
        _eval_mode(network),
        torch.no_grad(),
    ):
        counting = counter.submit(_count, pixels, (), of_images)
        while batch := list(islice(samples, batch_size)):
            stopped = should_stop is not None and should_stop()
            if stopped:
                break
            images = torch.stack([sample.image for sample in batch]).to(device)
            mapped = [k for k, s in enumerate(batch) if s.mask is not None or s.index in on_show]
            with autocast(), weights_cast_once(network):
                if mapped:
                    prediction = multi_scale(network, images[mapped], scales=scales, flip=flip)
                if single and len(mapped) == len(batch):
                    scored = prediction.logits  # of the very pass that is wanted
                else:
                    scored = network(resize(images, whole_patches)).logits
            logits.append(scored.float().cpu())
            seen = []
            for k, maps in zip(mapped, _split(prediction) if mapped else (), strict=True):
                index, mask = batch[k].index, batch[k].mask
                labels = torch.from_numpy(np.asarray(dataset.labels[index]))
                if mask is not None:
                    with _memory_for(dataset, index):
                        seen.append((index, pixels.look(maps, labels, mask.shape), mask))
                if index in on_show:
                    on_image(ShownImage(index, labels, mask, maps))
            # The CPU counts one batch while the device works on the next.
            counting.result()
            counting = counter.submit(_count, pixels, seen, of_images)
            bar.update(len(batch))
        counting.result()

    if distributed.highest(stopped):
        raise EvaluationStopped
    distributed.add_up(*pixels.counts)
    scores = pixels.compute(dataset.classes, coexistence) if pixels.images else {}
    labels = np.asarray(dataset.labels)[indices]
    all_logits = _in_order(torch.cat(logits).numpy() if logits else labels[:0], len(indices))
    scores["classification_map"] = mean_over_present(average_precision(all_logits, labels))
    scores["classification_f1"] = mean_over_present(f1_scores(all_logits, labels))
    if on_parts is not None:
        found = np.array([[value] for value in of_images.values()]).reshape(-1, 1)
        found = _in_order(found, len(indices))[:, 0].tolist()
        on_parts(Parts(list(indices), found, pixels.parts() if pixels.images else {}))
    scores["images"] = len(indices)
    scores["seconds"] = round(time.perf_counter() - started, 3)
    return without_nan(scores)


@dataclass
class _Sample:
    index: int
    image: Tensor  # (3, S, S) float32 in [0, 1]
    mask: np.ndarray | None  # (H, W) uint8


def _read_ahead(
    dataset: SegmentationDataset, indices: Sequence[int], size: int, ahead: int
) -> Iterator[_Sample]:
    """The samples in order, at most ``ahead`` of them read before they are asked for."""

    def read(index: int) -> _Sample:
        with _memory_for(dataset, index):
            mask = dataset.mask(index) if dataset.has_masks else None
            return _Sample(index, network_input(dataset.image(index), size), mask)

    return parallel_map(read, indices, _READERS, ahead)


def _memory_for(dataset: SegmentationDataset, index: int) -> AbstractContextManager[None]:
    """Name the image for which the memory is too small, in a ``UserError``."""
    return memory_errors_as(lambda: UserError(
        f"the memory is too small to score {dataset.names[index]}: shrink the image and its mask, "
        "or leave it out of the data"
    ))


def _count(
    pixels: PixelScores,
    seen: Iterable[tuple[int, Decided, np.ndarray]],
    of_images: dict[int, float],
) -> None:
    for index, maps, mask in seen:
        of_images[index] = pixels.count(maps, mask)


def _split(prediction: Prediction) -> Iterator[Prediction]:
    """The images of a batch, one by one."""
    maps = zip(
        prediction.cam, prediction.aux_cam, prediction.seg, prediction.logits, strict=True
    )
    return (Prediction(c[None], a[None], s[None], scores[None]) for c, a, s, scores in maps)


def _in_order(own: np.ndarray, count: int) -> np.ndarray:
    """The rows of all processes, (count, C) float32, from those of each: every world()-th."""
    rows = np.zeros((count, *own.shape[1:]), np.float32)
    parts = distributed.gather(own)
    for number, part in enumerate(parts):
        rows[number :: len(parts)] = part
    return rows


def spread(items: Sequence[int], count: int) -> list[int]:
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
                f"{did_you_mean(name, classes)}"
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
