"""The terms of CoSA's loss, Eq. (12), in one table: what supervises each, and what it adds up.

    L = L_cls + L_cls† + λ_c2s (L_c2s + L_c2s†) + λ_s2c L_s2c + λ_csc L_csc

A term is a sum and a count (``cosa.losses.Sum``). Here nothing is divided or weighted: that is the
step's affair, ``cosa.cotrain``, for these terms and those of the regularizers alike.

To add one: its function in ``cosa.losses``, a row here, its weight in ``LossConfig``, and an option
of its own, if it has one, in ``MethodConfig`` and ``cosa.training.build.assemble``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from cosa import losses
from cosa.cam import free_of_padding
from cosa.losses import Sum
from cosa.network import NetworkOutput
from cosa.targets import CamTargets, Labeller, SegTargets

WEIGHTS = {"cls": 1.0, "cls_aux": 1.0, "c2s": 0.1, "c2s_aux": 0.1, "s2c": 0.05, "csc": 0.1}
"""The λ of Eq. (12); ``_aux`` is the paper's †."""


@dataclass(kw_only=True)
class Labelled:
    """A batch, or a part of one, with its targets.

    Padding is marked by ``batch["valid"]`` and must count nowhere.
    """

    batch: dict[str, Tensor]
    """weak, strong (B, 3, S, S) in [0, 1]; image_labels (B, C) float in {0, 1}; valid (B, S, S)
    bool; more where a regularizer asks for it."""
    targets: dict[str, CamTargets | SegTargets]
    """Those maps of the assignment network that the terms read, as pseudo-labels at pixel
    resolution: "cam", "aux_cam" -> CamTargets, "seg" -> SegTargets. No gradient."""
    labeller: Labeller
    """Makes pseudo-labels of other grids and views, at the thresholds of the batch."""
    grid: tuple[int, int]
    """(h, w), the token grid."""

    @cached_property
    def whole(self) -> Tensor:
        """(B, h, w) bool: which positions of the token grid are free of padding."""
        return free_of_padding(self.batch["valid"], self.grid)


@dataclass(kw_only=True)
class Seen(Labelled):
    """The same once the online network has seen it."""

    output: NetworkOutput
    """Of the online network on the strong view, with gradient."""
    segmented_by: tuple[str, ...] = ()
    """The maps whose labels supervise the segmentation, of "cam" and "aux_cam"."""

    @cached_property
    def cross_entropies(self) -> dict[str, Tensor]:
        """For each map of ``segmented_by`` the segmentation's with its labels, (B, S, S)."""
        labels = [self.targets[key].labels for key in self.segmented_by]
        found = losses.cam_to_seg_at_pixels(self.output.seg, labels)
        return dict(zip(self.segmented_by, found, strict=True))


@dataclass(frozen=True)
class Term:
    """A term of Eq. (12): the mean of ``values``, weighted by ``counts``."""

    values: Callable[[Seen], Tensor]
    """Its value of each image or position, with gradient."""
    counts: Callable[[Labelled], Tensor]
    """How much each of them counts, the same shape. Nothing that the online network sees enters:
    the parts of a batch have to know their share of the whole before the first of them goes
    backward."""
    weight: float
    """λ, its weight in the loss."""
    start: int = 0
    """The first iteration that has it."""
    reads: str | None = None
    """The map of the assignment network that supervises it; None: the image-level labels do."""
    of_segmentation: bool = False
    """Whether it supervises the segmentation by the labels of this map: Eq. (5)."""

    def sum(self, seen: Seen) -> Sum:
        """Its sum and its count."""
        return Sum.of(self.values(seen), self.counts(seen))


def loss_terms(
    weights: Mapping[str, float] = WEIGHTS,
    warm_up: int = 0,
    s2c_start: int = 0,
    raw: bool = True,
    csc_epsilon: float = 1.0,
    csc_temperature: float = 0.5,
) -> dict[str, Term]:
    """The table: name -> term, without those of weight 0.

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
            partial(_cam_to_seg, key), partial(_pixels, key, raw), weights[name], warm_up,
            reads=key, of_segmentation=True,
        )

    separation = partial(_separation, epsilon=csc_epsilon, temperature=csc_temperature)
    terms = {
        # Eq. (1), for M and for M-dagger, the auxiliary CAM.
        "cls": Term(_classification, _images, weights["cls"]),
        "cls_aux": Term(_aux_classification, _images, weights["cls_aux"]),
        # Eq. (5): the assignment network's CAMs supervise the online segmentation,
        "c2s": cam_to_seg("c2s", "cam"),
        "c2s_aux": cam_to_seg("c2s_aux", "aux_cam"),
        # Eq. (8): and its segmentation the online CAM.
        "s2c": Term(_seg_to_cam, _positions, weights["s2c"], max(warm_up, s2c_start), "seg"),
        # Eq. (9)-(11).
        "csc": Term(separation, _images, weights["csc"], warm_up, "aux_cam"),
    }
    return {name: term for name, term in terms.items() if term.weight > 0}


# What counts


def _images(part: Labelled) -> Tensor:
    return torch.ones_like(part.batch["image_labels"][:, 0])


def _positions(part: Labelled) -> Tensor:
    return part.whole


def _pixels(key: str, raw: bool, part: Labelled) -> Tensor:
    target = part.targets[key]
    doubt = target.perplexity if raw else None
    return losses.pixel_weights(target.labels, doubt, part.batch["valid"])


# Of what


def _classification(seen: Seen) -> Tensor:
    return losses.classification_of_images(seen.output.logits, seen.batch["image_labels"])


def _aux_classification(seen: Seen) -> Tensor:
    return losses.classification_of_images(seen.output.aux_logits, seen.batch["image_labels"])


def _cam_to_seg(key: str, seen: Seen) -> Tensor:
    return seen.cross_entropies[key]


def _seg_to_cam(seen: Seen) -> Tensor:
    target = seen.targets["seg"].all_classes(seen.grid)
    return losses.seg_to_cam_at_positions(seen.output.cam, target)


def _separation(seen: Seen, epsilon: float, temperature: float) -> Tensor:
    """The auxiliary CAM's pseudo-labels are made anew at the token grid of the online CAM."""
    labelled = seen.labeller.relabel(seen.targets["aux_cam"], seen.grid)
    return losses.contrastive_separation_of_images(
        seen.output.cam, labelled.labels, labelled.perplexity, epsilon, temperature, seen.whole
    )
