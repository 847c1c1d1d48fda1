"""PLDA: features of the striking and of the other parts of an object become alike.

"Pixel-Level Domain Adaptation: A New Perspective for Enhancing Weakly Supervised Semantic
Segmentation" (PLDA; Du, Fu and Liu). Where a class's activation map is strong lies the source
domain; the parts of the object that take over once these pixels are erased from the image are the
target domain. A classifier learns to tell the domains of each class apart, and the encoder, behind
a reversed gradient, to make that impossible (L_uda, MaskAssign). Meanwhile confident pixels of
both domains are supervised, so that the features keep telling the classes apart (L_cps).

The paper's release refines its pseudo-labels with a module of its own. Here the class activation
maps of the assignment network decide alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosa.cam import filter_by_labels
from cosa.core import IGNORE
from cosa.core.tensors import at_least_float32, in_full_precision, require_shape
from cosa.losses import Sum
from cosa.regularizers.base import Context, Regularizer

# The domains; a pixel of neither is marked ``IGNORE``.
SOURCE, TARGET = 0, 1


# Adversarial training


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient, None


def reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """The gradient reversal layer: ``x`` itself, whose gradient is multiplied by ``-strength``."""
    return _Reversal.apply(x, strength)


def reversal_strength(progress: float) -> float:
    """2 / (1 + e^(-10 p)) - 1 of the training's progress p in [0, 1]: from 0 to nearly 1."""
    return math.tanh(5 * progress)  # the same number


def domain_adversarial_loss(
    domain_logits: Tensor, domain_labels: Tensor, valid: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the domain classifier: L_uda of PLDA.

    The cross-entropy of a pixel of domain k is multiplied by (1 + e^(-H)), where H is the entropy
    in nats of its predicted domain: what is certain weighs up to twice as much. It is also
    multiplied by (N - N_k) / (1 + N), where N_k of the N source and target pixels of its image
    and class are of domain k: both domains have the same say, and one alone has none.

    Args:
        domain_logits: (B, C, 2, h, w), of source and target for each class.
        domain_labels: (B, C, h, w) int64: 0 source, 1 target, ``IGNORE`` neither.
        valid: (B, h, w) bool, False on padding; None counts every pixel.

    Returns:
        The scalar sum over the classes of the mean over all B * h * w pixels, those of neither
        domain included as 0 and padding excluded; 0 if there is nothing to tell apart. float32,
        float64 for float64 logits. Only the cross-entropy carries a gradient.

    Raises:
        ValueError: the shapes do not fit.
    """
    return domain_adversarial_sum(domain_logits, domain_labels, valid).mean()


def domain_adversarial_sum(
    domain_logits: Tensor, domain_labels: Tensor, valid: Tensor | None = None
) -> Sum:
    """:func:`domain_adversarial_loss` over pixels that are no padding."""
    batch, classes, _, *grid = domain_logits.shape
    require_shape("domain_logits", domain_logits, (batch, classes, 2, *grid))
    require_shape("domain_labels", domain_labels, (batch, classes, *grid))
    source, target = domain_labels == SOURCE, domain_labels == TARGET
    if valid is not None:
        require_shape("valid", valid, (batch, *grid))
        source, target = (domain & valid.bool()[:, None] for domain in (source, target))
    counted = source | target
    # Filled rather than multiplied: what does not count may even be NaN.
    logits = at_least_float32(domain_logits).masked_fill(~counted[:, :, None], 0)
    log_posterior = logits.log_softmax(dim=2)
    cross_entropy = -torch.where(source, log_posterior[:, :, 0], log_posterior[:, :, 1])
    with torch.no_grad():
        entropy = -(log_posterior.exp() * log_posterior).sum(dim=2)
        of_source, of_target = (
            domain.sum(dim=(2, 3), keepdim=True).to(logits) for domain in (source, target)
        )
        balance = torch.where(source, of_target, of_source) / (1 + of_source + of_target)
        weight = (balance * (1 + torch.exp(-entropy))).masked_fill(~counted, 0)
    # Classes without any pixel of either domain add 0 to the sum.
    total = (weight * cross_entropy).sum()
    if valid is None:
        return Sum(total, total.detach().new_full((), batch * math.prod(grid)))
    return Sum(total, valid.sum())


class DomainClassifier(nn.Module):
    """Tells source from target pixels with one head per class; the layers below are shared.

    Args:
        num_features: D.
        num_classes: C.
        width, hidden: channels of the two shared layers.
        dropout: rate after each of them.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        width: int = 1024,
        hidden: int = 512,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.shared = nn.Sequential(
            nn.Conv2d(num_features, width, 1), nn.ReLU(), nn.Dropout(dropout),
            nn.Conv2d(width, hidden, 1), nn.ReLU(), nn.Dropout(dropout),
        )
        self.heads = nn.Conv2d(hidden, 2 * num_classes, 1)
        for layer in self.shared:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.trunc_normal_(self.heads.weight, std=0.01)  # starts undecided
        nn.init.zeros_(self.heads.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D, h, w) features to (B, C, 2, h, w) logits of source and target for each class."""
        shared = self.shared(features.to(self.heads.weight.dtype))
        return in_full_precision(self.heads, shared).unflatten(1, (-1, 2))


# The domains


@torch.no_grad()
def mask_assign(
    cam: Tensor, erased_cam: Tensor, threshold: float = 0.6, valid: Tensor | None = None
) -> Tensor:
    """Domain of each pixel, for each class: MaskAssign of PLDA.

    Args:
        cam: (B, C, h, w) activations in [0, 1], normalised, absent classes set to 0.
        erased_cam: the same of the image without its source pixels.
        threshold: activations above it decide.
        valid: (B, h, w) bool, False on padding; None counts every pixel.

    Returns:
        (B, C, h, w) int64: 0 (source) where ``cam`` is above the threshold, 1 (target) where only
        ``erased_cam`` is, ``IGNORE`` elsewhere.

    Raises:
        ValueError: the shapes do not fit.
    """
    require_shape("erased_cam", erased_cam, cam.shape)
    labels = torch.full(cam.shape, IGNORE, dtype=torch.int64, device=cam.device)
    labels = labels.masked_fill(erased_cam > threshold, TARGET)
    labels = labels.masked_fill(cam > threshold, SOURCE)
    if valid is not None:
        require_shape("valid", valid, (cam.shape[0], *cam.shape[2:]))
        labels = labels.masked_fill(~valid.bool()[:, None], IGNORE)
    return labels


@torch.no_grad()
def see_without_source(context: Context, threshold: float) -> Tensor:
    """Class activation maps of the assignment network, once the source pixels are erased.

    What lies above the threshold in the map of any class is erased for all of them at once: it
    takes the network's mean colour. The maps are normalised over the other cells. With attention a
    patch without content takes over what its neighbours say of their class; if such patches set
    the scale, all that is left to see could end up below the threshold. Nor can they be a target:
    the features that are adapted see there what was erased.

    Returns:
        (B, C, h, w) in [0, 1] at the token grid; 0 for absent classes, on cells with padding and
        on cells above the threshold, on average over their pixels, in the map of any class.
    """
    batch = context.batch
    # Absent classes and padding are 0 in the map: they erase nothing.
    strongest = context.targets["cam"].cam.amax(dim=1, keepdim=True)
    erased = torch.where(strongest > threshold, context.online.mean, batch["weak"])
    with context.autocast():
        cam = context.assignment(erased).cam
    seen = F.interpolate(strongest, context.grid, mode="area")[:, 0] <= threshold
    seen &= context.whole
    labels, present = batch["image_labels"], batch.get("present")
    return context.labeller.label_view(cam, labels, seen, present).all_classes(context.grid)


# Supervision


@torch.no_grad()
def confident_labels(
    cam: Tensor,
    erased_cam: Tensor,
    image_labels: Tensor,
    foreground: float = 0.6,
    background: float = 0.7,
    floor: float = 0.2,
    valid: Tensor | None = None,
) -> Tensor:
    """Source, target and background pixels whose label is beyond doubt.

    The activation of a class is the larger one of both maps. The class wins the pixels above
    ``foreground`` times its largest activation in the image, save those below ``floor`` in
    ``cam``: once an object is erased as a whole, the second map may show anything. The background
    wins where one minus the largest activation of all classes is at least ``background``, but in
    no image with a class that wins nothing: that object may lie anywhere. A pixel that not exactly
    one has won has no label.

    Args:
        cam: (B, C, h, w) activations in [0, 1], normalised.
        erased_cam: the same of the image without its source pixels.
        image_labels: (B, C), positive means present; other classes win nothing.
        foreground, background, floor: in [0, 1].
        valid: (B, h, w) bool, False on padding; None counts every pixel.

    Returns:
        (B, h, w) int64 in 0..C, 0 the background, or ``IGNORE``.

    Raises:
        ValueError: the shapes do not fit.
    """
    require_shape("erased_cam", erased_cam, cam.shape)
    activation = filter_by_labels(at_least_float32(torch.maximum(cam, erased_cam)), image_labels)
    if valid is not None:
        require_shape("valid", valid, (cam.shape[0], *cam.shape[2:]))
        activation = activation.masked_fill(~valid.bool()[:, None], 0)
    won = activation > foreground * activation.amax(dim=(2, 3), keepdim=True)
    won &= cam >= floor
    all_show = (won.flatten(2).any(dim=2) == (image_labels > 0)).all(dim=1)
    left = 1 - activation.amax(dim=1, keepdim=True) >= background
    won = torch.cat([left & all_show[:, None, None, None], won], dim=1)
    clear = won.sum(dim=1) == 1
    if valid is not None:
        clear &= valid.bool()
    return won.int().argmax(dim=1).masked_fill(~clear, IGNORE)


def confident_pseudo_supervision(cam: Tensor, labels: Tensor) -> Tensor:
    """Class-balanced cross-entropy of a class activation map: L_cps of PLDA.

    The activations are logits of independent sigmoids. Given that a pixel shows one class at
    most, the probabilities of background and of each class are in the proportion 1 : e^(M_c),
    which is the softmax over a background logit of 0 and the activations.

    Args:
        cam: (B, C, h, w) raw activations, with the classifier's offset if it has one.
        labels: (B, h, w) int64 in 0..C, 0 the background, or ``IGNORE``.

    Returns:
        The scalar mean over the classes, background included, that the labels of the batch hold,
        of the mean over the pixels of each; 0 if there are none. float32, float64 for float64
        activations.

    Raises:
        ValueError: the shapes do not fit.
    """
    return confident_pseudo_supervision_sum(cam, labels).mean()


def confident_pseudo_supervision_sum(cam: Tensor, labels: Tensor) -> Sum:
    """:func:`confident_pseudo_supervision` over the pixels of each class, (C + 1,)."""
    require_shape("labels", labels, (cam.shape[0], *cam.shape[2:]))
    counted = labels != IGNORE
    cam = at_least_float32(cam).masked_fill(~counted[:, None], 0)
    logits = torch.cat([torch.zeros_like(cam[:, :1]), cam], dim=1)
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    of_class = F.one_hot(labels.masked_fill(~counted, 0), logits.shape[1]) * counted[..., None]
    total = (loss[..., None] * of_class).sum(dim=(0, 1, 2))
    return Sum(total, of_class.sum(dim=(0, 1, 2)))


# The regularizer


class DomainAdaptation(Regularizer):
    """Both losses of PLDA; the domain classifier is trained along with the network."""

    needs: ClassVar[frozenset[str]] = frozenset({"cam"})

    def __init__(
        self,
        options: Any,
        num_features: int,
        num_classes: int,
        loss_weights: Mapping[str, float] | None = None,
        warm_up: int = 0,
    ) -> None:
        super().__init__(options, num_features, num_classes, loss_weights, warm_up)
        if options.adversarial > 0:
            self.classifier = DomainClassifier(
                num_features, num_classes, options.width, options.hidden, options.dropout
            )

    def weights(self) -> dict[str, float]:
        options = self.options
        terms = {
            "plda_adversarial": options.adversarial, "plda_supervision": options.supervision
        }
        return {name: options.weight * share for name, share in terms.items() if share > 0}

    def forward(self, context: Context) -> dict[str, Sum]:
        names, options = self.weights(), self.options
        valid = context.whole
        cam = context.targets["cam"].all_classes(context.grid)
        erased_cam = see_without_source(context, options.threshold)
        terms = {}
        if "plda_adversarial" in names:
            strength = reversal_strength(context.progress)
            features = reverse_gradient(context.output.features, strength)
            with context.autocast():
                domain_logits = self.classifier(features)
            domain_labels = mask_assign(cam, erased_cam, options.threshold, valid)
            terms["plda_adversarial"] = domain_adversarial_sum(domain_logits, domain_labels, valid)
        if "plda_supervision" in names:
            labels = confident_labels(
                cam, erased_cam, context.batch["image_labels"],
                options.threshold, options.background, options.floor, valid,
            )
            terms["plda_supervision"] = confident_pseudo_supervision_sum(
                context.output.position_logits, labels
            )
        return terms
