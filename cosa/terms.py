"""The terms of CoSA's loss, Eq. (12), in one table: what supervises each, and what it adds up.

To add one: its function in ``cosa.losses``, a row here, its weight in ``LossConfig``, and an option
of its own, if it has one, in ``MethodConfig`` and ``cosa.training.build.assemble``.

A term is a sum and a count (``cosa.losses.Sum``). Here nothing is divided or weighted: that is the
step's affair, ``cosa.cotrain``, for these terms and those of the regularizers alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

from torch import Tensor

from cosa import losses
from cosa.cam import free_of_padding
from cosa.losses import Sum
from cosa.network import NetworkOutput
from cosa.targets import CamTargets, Labeller, SegTargets

WEIGHTS = {"cls": 1.0, "cls_aux": 1.0, "c2s": 0.1, "c2s_aux": 0.1, "s2c": 0.05, "csc": 0.1}
"""Those of Eq. (12)."""


@dataclass
class Seen:
    """A batch, or a part of one, as far as a training step has come with it.

    Padding is marked by ``batch["valid"]`` and must count nowhere.
    """

    batch: dict[str, Tensor]
    """weak, strong (B, 3, S, S); image_labels (B, C) float in {0, 1}; valid (B, S, S) bool; more
    where a regularizer asks for it."""
    targets: dict[str, CamTargets | SegTargets]
    """Those maps of the assignment network that the terms read, as pseudo-labels at pixel
    resolution: "cam", "aux_cam" -> CamTargets, "seg" -> SegTargets. No gradient."""
    labeller: Labeller
    """Makes pseudo-labels of other grids and views, at the thresholds of the batch."""
    grid: tuple[int, int]
    """(h, w), the token grid."""
    output: NetworkOutput | None
    """Of the online network on the strong view, with gradient; None before it has seen it."""
    segmented_by: tuple[str, ...] = ()
    """The maps whose labels supervise the segmentation, of "cam" and "aux_cam"."""

    @cached_property
    def log_probabilities(self) -> dict[str, Tensor]:
        """For each map of ``segmented_by`` the log-probability of its labels, (B, S, S)."""
        labels = [self.targets[key].labels for key in self.segmented_by]
        found = losses.label_log_probabilities(self.output.seg, labels)
        return dict(zip(self.segmented_by, found, strict=True))


@dataclass(frozen=True)
class Term:
    """A term of Eq. (12)."""

    sum: Callable[[Seen], Sum]
    """Its sum, with gradient, and its count."""
    count: Callable[[Seen], Tensor]
    """The same count, before the online network has seen anything: the parts of a batch have to
    know their share of the whole before the first of them goes backward."""
    weight: float
    """Its weight in the loss; at 0 it is neither supervised nor computed."""
    start: int = 0
    """The first iteration that has it."""
    reads: str | None = None
    """The map of the assignment network that supervises it; None: the image-level labels do."""
    of_segmentation: bool = False
    """Whether it supervises the segmentation by the labels of this map: Eq. (5)."""


def loss_terms(
    weights: Mapping[str, float] = WEIGHTS,
    warm_up: int = 0,
    s2c_start: int = 0,
    raw: bool = True,
    csc_epsilon: float = 1.0,
    csc_temperature: float = 0.5,
) -> dict[str, Term]:
    """The table: name -> term.

    Args:
        weights: of all terms, by name.
        warm_up: iterations of classification alone; pseudo-labels come after them.
        s2c_start: first iteration of Seg2CAM, if it is after the warm-up.
        raw: weigh pixels by their reliability (RAW), Eq. (5).
        csc_epsilon: ε of Eq. (9), the largest perplexity of an anchor.
        csc_temperature: τ of the contrastive similarities.
    """
    def cam_to_seg(name: str, key: str) -> Term:
        return Term(
            partial(_cam_to_seg, key, raw), partial(_weights, key, raw), weights[name], warm_up,
            reads=key, of_segmentation=True,
        )

    separation = partial(_separation, epsilon=csc_epsilon, temperature=csc_temperature)
    return {
        # Eq. (1), for M and for M-dagger, the auxiliary CAM.
        "cls": Term(_classification, _images, weights["cls"]),
        "cls_aux": Term(_aux_classification, _images, weights["cls_aux"]),
        # Eq. (5): the assignment network's CAMs supervise the online segmentation,
        "c2s": cam_to_seg("c2s", "cam"),
        "c2s_aux": cam_to_seg("c2s_aux", "aux_cam"),
        # Eq. (8): and its segmentation the online CAM.
        "s2c": Term(_seg_to_cam, _whole_positions, weights["s2c"], max(warm_up, s2c_start),
                    reads="seg"),
        # Eq. (9)-(11).
        "csc": Term(separation, _images, weights["csc"], warm_up, reads="aux_cam"),
    }


def _images(seen: Seen) -> Tensor:
    labels = seen.batch["image_labels"]
    return labels.new_full((), len(labels))


def _classification(seen: Seen) -> Sum:
    return losses.classification_sum(seen.output.logits, seen.batch["image_labels"])


def _aux_classification(seen: Seen) -> Sum:
    return losses.classification_sum(seen.output.aux_logits, seen.batch["image_labels"])


def _cam_to_seg(key: str, raw: bool, seen: Seen) -> Sum:
    target = seen.targets[key]
    return losses.cam_to_seg_sum(
        seen.log_probabilities[key], target.labels, target.perplexity if raw else None,
        seen.batch["valid"],
    )


def _weights(key: str, raw: bool, seen: Seen) -> Tensor:
    target = seen.targets[key]
    doubt = target.perplexity if raw else None
    return losses.pixel_weights(target.labels, doubt, seen.batch["valid"]).sum()


def _seg_to_cam(seen: Seen) -> Sum:
    target = seen.targets["seg"].all_classes(seen.grid)
    return losses.seg_to_cam_sum(seen.output.cam, target, seen.batch["valid"])


def _whole_positions(seen: Seen) -> Tensor:
    return free_of_padding(seen.batch["valid"], seen.grid).sum()


def _separation(seen: Seen, epsilon: float, temperature: float) -> Sum:
    """The auxiliary CAM's pseudo-labels are made anew at the token grid of the online CAM."""
    labelled = seen.labeller.relabel(seen.targets["aux_cam"], seen.grid)
    return losses.contrastive_separation_sum(
        seen.output.cam, labelled.labels, labelled.perplexity, epsilon, temperature,
        free_of_padding(seen.batch["valid"], seen.grid),
    )
