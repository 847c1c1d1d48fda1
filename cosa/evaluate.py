"""Score a network on a data set: segmentation, CAMs and classification in one pass.

The segmentation score ``miou`` is label-free: nothing but the image leads to the prediction.
Published figures of CoSA and its peers remove the classes that the validation images' labels
exclude; that score is ``miou_label_filtered`` and is never mixed up with the former.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cosa import distributed
from cosa.cam import filter_by_labels, resize
from cosa.data.datasets import SegmentationDataset, nearest
from cosa.data.images import network_input
from cosa.errors import UserError
from cosa.metrics import (
    CamMetrics,
    SegmentationMetrics,
    average_precision,
    f1_scores,
    mean_over_present,
)
from cosa.panels import save_prediction_panel
from cosa.predict import Prediction, multi_scale, scaled_size
from cosa.terminal import progress_bar

CAM_THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Where ``cam_best_miou`` looks: 0.05, 0.10 .. 0.95."""

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
    pixels = _PixelScores(len(dataset.classes), thresholds, boundary)
    autocast = autocast or nullcontext
    logits, stopped = [], False
    own = indices[distributed.rank() :: distributed.world()]
    bar = progress_bar(total=len(own), desc="evaluate", leave=False, disable=not progress)
    with bar, _eval_mode(network), torch.no_grad():
        for batch in _batches(dataset, own, image_size, batch_size):
            stopped = should_stop is not None and should_stop()
            if stopped:
                break
            images = torch.stack([sample.image for sample in batch]).to(device)
            whole_patches = scaled_size((image_size, image_size), 1.0, network.patch_size)
            with autocast():
                output = network(resize(images, whole_patches))
            logits.append(output.logits.float().cpu())
            scored = [k for k, s in enumerate(batch) if s.mask is not None or s.index in shown]
            if scored:
                with autocast():
                    prediction = multi_scale(network, images[scored], scales=scales, flip=flip)
                for k, maps in zip(scored, _split(prediction), strict=True):
                    sample = batch[k]
                    labels = torch.from_numpy(np.asarray(dataset.labels[sample.index]))
                    if sample.mask is not None:
                        pixels.update(maps, labels.to(device), sample.mask)
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
            bar.update(len(batch))

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


class _PixelScores:
    """All scores that need masks."""

    def __init__(
        self,
        num_foreground: int,
        thresholds: tuple[float | None, float | None],
        boundary: bool,
    ):
        classes = num_foreground + 1
        # A threshold of NaN has scores of NaN.
        self.threshold, self.aux_threshold = (
            math.nan if value is None else float(value) for value in thresholds
        )
        self.ensemble_threshold = (self.threshold + self.aux_threshold) / 2
        self.seg = SegmentationMetrics(classes, boundary=boundary)
        self.filtered = SegmentationMetrics(classes)
        self.cam = CamMetrics(classes, (*CAM_THRESHOLDS, self.threshold))
        self.aux_cam = CamMetrics(classes, (self.aux_threshold,))
        self.ensemble = CamMetrics(classes, (self.ensemble_threshold,))
        self.images = 0

    def update(self, maps: Prediction, image_labels: Tensor, mask: np.ndarray) -> None:
        """Add one image: maps of a batch of 1, image_labels (C,), mask (H, W)."""
        seg = resize(maps.seg.float(), mask.shape)[0]
        self.seg.update(_argmax(seg), mask)
        absent = torch.cat([image_labels.new_zeros(1, dtype=torch.bool), image_labels <= 0])
        self.filtered.update(_argmax(seg.masked_fill(absent[:, None, None], -math.inf)), mask)
        cam, aux_cam = (
            filter_by_labels(resize(cam.float(), mask.shape), image_labels[None])[0]
            for cam in (maps.cam, maps.aux_cam)
        )
        self.cam.update(cam, mask)
        self.aux_cam.update(aux_cam, mask)
        self.ensemble.update((cam + aux_cam) / 2, mask)
        self.images += 1

    def add_up(self) -> None:
        """Add what the other processes counted."""
        for metrics in (self.seg, self.filtered, self.cam, self.aux_cam, self.ensemble):
            metrics.add_up()
        self.images = sum(distributed.gather(self.images))

    def compute(self, names: Sequence[str], coexistence: Sequence[int]) -> dict[str, Any]:
        seg = self.seg.compute()
        cam_iou = self.cam.iou(self.threshold)
        best = max(CAM_THRESHOLDS, key=self.cam.miou)
        scores: dict[str, Any] = {
            "miou": seg["miou"],
            "miou_label_filtered": self.filtered.compute()["miou"],
        }
        scores.update({key: seg[key] for key in ("boundary_f", "jf") if key in seg})
        scores.update(
            cam_miou=self.cam.miou(self.threshold),
            aux_cam_miou=self.aux_cam.miou(self.aux_threshold),
            ensemble_cam_miou=self.ensemble.miou(self.ensemble_threshold),
            cam_best_miou=self.cam.miou(best),
            cam_best_threshold=best,
        )
        if coexistence:
            chosen = [1 + index for index in coexistence]
            scores["cmiou"] = mean_over_present(np.array(seg["iou"])[chosen])
            scores["cam_cmiou"] = mean_over_present(cam_iou[chosen])
        names = ("background", *names)
        scores["iou"] = dict(zip(names, seg["iou"], strict=True))
        scores["cam_iou"] = dict(zip(names, cam_iou.tolist(), strict=True))
        return scores


def format_table(scores: dict[str, Any]) -> str:
    """The result of ``evaluate`` as an aligned table in percent, for people."""
    lines = []
    if "iou" in scores:
        width = max(len("class"), *map(len, scores["iou"]))
        lines.append(f"{'class':<{width}}  {'seg':>5}  {'CAM':>5}")
        lines += [
            f"{name:<{width}}  {_percent(iou)}  {_percent(scores['cam_iou'][name])}"
            for name, iou in scores["iou"].items()
        ]
        lines.append("")
    rows = [(text, scores[key]) for key, text in _SUMMARY.items() if key in scores]
    width = max(len(text) for text, _ in rows)
    lines += [f"{text:<{width}}  {_percent(value)}" for text, value in rows]
    if "cam_best_threshold" in scores:
        lines.append(f"{'  at threshold':<{width}}  {scores['cam_best_threshold']:5.2f}")
    lines.append(f"{scores['images']} images in {scores['seconds']:.1f} s")
    return "\n".join(lines)


_SUMMARY = {
    "miou": "mIoU, label-free",
    "miou_label_filtered": "mIoU, filtered by image labels",
    "boundary_f": "contour quality F",
    "jf": "J&F",
    "cmiou": "C-mIoU",
    "cam_cmiou": "CAM C-mIoU",
    "classification_map": "classification mAP",
    "classification_f1": "classification F1",
    "cam_miou": "CAM mIoU",
    "aux_cam_miou": "auxiliary CAM mIoU",
    "ensemble_cam_miou": "ensemble CAM mIoU",
    "cam_best_miou": "CAM mIoU, best threshold (oracle)",
}


@dataclass
class _Sample:
    index: int
    image: Tensor  # (3, S, S) float32, normalised
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


def _argmax(seg: Tensor) -> Tensor:
    return seg.argmax(dim=0).to(torch.uint8)  # masks are uint8 files: at most 255 classes


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


def _percent(share: float | None) -> str:
    return "    -" if share is None else f"{100 * share:5.1f}"
