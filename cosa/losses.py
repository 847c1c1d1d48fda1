"""The training losses of CoSA (Eq. 1, 5, 8 and 9-11).

Every loss is computed in float32 (float64 for float64 predictions), under autocast too, and
sends gradients to its first argument only. Positions that do not count (padding) are in neither
the sum nor its count; a batch without any counted position gives 0, with zero gradients.

Each loss is there twice: as a scalar, and under a name in ``_sum`` as what the scalar is made of,
a :class:`Sum`. A training step divides by itself, since a batch may be spread over parts and
processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cosa.cam import free_of_padding, resize
from cosa.core import IGNORE
from cosa.core.tensors import at_least_float32, directions, require_shape

# Stands for log(0); finite, so that no step of the gradient meets inf - inf.
_LOG_ZERO = -1e9


class Sum(NamedTuple):
    """A loss before it is divided.

    Both fields are scalars; or both are (K,), one entry for each of K classes, and the loss is the
    mean over the classes that count at all. Sums over parts of a batch add up, entry by entry, to
    that of the batch.
    """

    total: Tensor
    """Summed over what counts, with gradient; 0 where ``count`` is."""
    count: Tensor
    """How much counts: images, positions or their weights; at least 0, any dtype."""

    def mean(self) -> Tensor:
        """The loss, a scalar: total / count, or 0 if nothing counts."""
        count = self.count.detach().to(self.total)
        counted = count > 0
        means = counted * self.total / torch.where(counted, count, 1)
        return means.sum() / counted.sum().clamp_min(1)


def classification(logits: Tensor, image_labels: Tensor) -> Tensor:
    """Multi-label soft-margin loss: Eq. (1) of CoSA.

    Args:
        logits: (B, C) class scores.
        image_labels: (B, C) image-level labels in {0, 1}, any dtype.

    Returns:
        The scalar binary cross-entropy, averaged over classes and images.

    Raises:
        ValueError: the shapes differ.
    """
    return classification_sum(logits, image_labels).mean()


def classification_sum(logits: Tensor, image_labels: Tensor) -> Sum:
    """:func:`classification` over images: the total of their means over the classes."""
    require_shape("image_labels", image_labels, logits.shape)
    logits = at_least_float32(logits)
    loss = F.binary_cross_entropy_with_logits(logits, image_labels.detach().to(logits))
    return over_images(loss * len(logits), len(logits))


def over_images(total: Tensor, images: int) -> Sum:
    """A total over so many images, each of which counts 1."""
    return Sum(total, total.detach().new_full((), images))


def cam_to_seg(
    seg: Tensor, labels: Tensor, perplexity: Tensor | None = None, valid: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the segmentation with the CAM pseudo-labels: Eq. (5) of CoSA.

    Reliability-based weighting: a pixel weighs 1/P, normalised to mean 1 over the counted
    pixels of the batch, so doubtful pixels weigh less.

    Args:
        seg: (B, C+1, h, w) segmentation logits, channel 0 the background; resized bilinearly
            to the labels.
        labels: (B, H, W) int64 in 0..C, or ``IGNORE`` for a pixel that does not count.
        perplexity: (B, H, W), P >= 0; None gives every pixel the same weight.
        valid: (B, H, W) bool, False where the image is padding; None counts every pixel.

    Returns:
        The scalar weighted mean over the counted pixels of the batch.

    Raises:
        ValueError: the shapes of labels, perplexity and valid differ.
    """
    (log_probability,) = label_log_probabilities(seg, [labels])
    return cam_to_seg_sum(log_probability, labels, perplexity, valid).mean()


def label_log_probabilities(seg: Tensor, labels: Sequence[Tensor]) -> list[Tensor]:
    """Log-probability of the label of each pixel, for one or more maps of labels of one size.

    The probabilities at pixel size, the largest tensor of a training step, are made once.

    Args:
        seg: (B, C+1, h, w), see :func:`cam_to_seg`.
        labels: (B, H, W) each; where they are ``IGNORE``, the result means nothing.

    Returns:
        (B, H, W) for each map.

    Raises:
        ValueError: the shapes differ.
    """
    size = labels[0].shape[-2:]
    for target in labels:
        require_shape("labels", target, (seg.shape[0], *size))
    # Nothing holds on to the resized logits.
    log_probability = F.log_softmax(resize(at_least_float32(seg), size), dim=1)
    places = torch.stack([target.masked_fill(target == IGNORE, 0) for target in labels], dim=1)
    return list(log_probability.gather(1, places).unbind(dim=1))


def cam_to_seg_sum(
    log_probability: Tensor,
    labels: Tensor,
    perplexity: Tensor | None = None,
    valid: Tensor | None = None,
) -> Sum:
    """:func:`cam_to_seg` over weighted pixels, from :func:`label_log_probabilities`."""
    weight = pixel_weights(labels, perplexity, valid).to(log_probability)
    return Sum(-(weight * log_probability).sum(), weight.sum())


def pixel_weights(
    labels: Tensor, perplexity: Tensor | None = None, valid: Tensor | None = None
) -> Tensor:
    """The weights of Eq. (5) before they are normalised: 1/P, or 1; 0 where nothing counts.

    Args:
        labels, perplexity, valid: see :func:`cam_to_seg`.

    Returns:
        (B, H, W) float32 (float64 for a float64 perplexity).

    Raises:
        ValueError: the shapes differ.
    """
    counted = labels != IGNORE
    if valid is not None:
        require_shape("valid", valid, labels.shape)
        counted = counted & valid.bool()
    if perplexity is None:
        return counted.float()
    require_shape("perplexity", perplexity, labels.shape)
    return torch.where(counted, _reliability(perplexity.detach()), 0)


def seg_to_cam(cam: Tensor, seg_targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of the CAM with the segmentation pseudo-labels: Eq. (8) of CoSA.

    Args:
        cam: (B, C, h, w) raw activations, the logits of the sigmoid.
        seg_targets: (B, C+1, H, W) probabilities, channel 0 the background, which is left out;
            brought to the grid of the CAM by averaging over areas.
        valid: (B, H', W') bool, False where the image is padding, on any grid that covers the
            same image; a position of the CAM counts only if its cell is valid throughout, so
            no padding enters its target. None counts every position.

    Returns:
        The scalar mean over classes and counted positions.

    Raises:
        ValueError: the batch or channel sizes do not fit.
    """
    return seg_to_cam_sum(cam, seg_targets, valid).mean()


def seg_to_cam_sum(cam: Tensor, seg_targets: Tensor, valid: Tensor | None = None) -> Sum:
    """:func:`seg_to_cam` over counted positions: the total of their means over the classes."""
    batch, classes, *grid = cam.shape
    require_shape("seg_targets", seg_targets, (batch, classes + 1, *seg_targets.shape[2:]))
    cam = at_least_float32(cam)
    target = F.interpolate(seg_targets.detach().to(cam), size=grid, mode="area")[:, 1:]
    loss = F.binary_cross_entropy_with_logits(cam, target, reduction="none").mean(dim=1)
    if valid is None:
        return Sum(loss.sum(), loss.detach().new_full((), loss.numel()))
    require_shape("valid", valid, (batch, *valid.shape[1:]))
    counted = free_of_padding(valid, grid)
    return Sum((loss * counted).sum(), counted.sum())


def contrastive_separation(
    cam: Tensor,
    labels: Tensor,
    perplexity: Tensor,
    epsilon: float = 1.0,
    temperature: float = 0.5,
    valid: Tensor | None = None,
) -> Tensor:
    """Contrast the CAM's positions by confident labels of the auxiliary CAM: Eq. (9)-(11) of CoSA.

    Per image, the positions of low perplexity (P <= epsilon) are the anchors. With L = exp(cosine
    of two positions' class vectors / temperature), an anchor's term is the mean, over the other
    anchors of its own label, of -log(L / (L + the sum of L over anchors of other labels)). The
    background is a label like the others. An anchor without a partner of its label, an image
    with one label only and an image without anchors contribute 0.

    Args:
        cam: (B, C, h, w) raw activations of the online network.
        labels: (B, h, w) int64 in 0..C, CAM pseudo-labels of the auxiliary CAM; positions
            marked ``IGNORE`` are no anchors.
        perplexity: (B, h, w) perplexity of these labels.
        epsilon: ε, the largest perplexity of an anchor.
        temperature: τ > 0 of the similarities.
        valid: (B, h, w) bool, False where the image is padding; None counts every position.

    Returns:
        The scalar mean over anchors, then over the images of the batch.

    Raises:
        ValueError: the shapes do not fit, or the temperature is not positive.
    """
    return contrastive_separation_sum(
        cam, labels, perplexity, epsilon, temperature, valid
    ).mean()


def contrastive_separation_sum(
    cam: Tensor,
    labels: Tensor,
    perplexity: Tensor,
    epsilon: float = 1.0,
    temperature: float = 0.5,
    valid: Tensor | None = None,
) -> Sum:
    """:func:`contrastive_separation` over images."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    grid = (cam.shape[0], *cam.shape[2:])
    require_shape("labels", labels, grid)
    require_shape("perplexity", perplexity, grid)
    anchor = (perplexity.detach() <= epsilon) & (labels != IGNORE)
    if valid is not None:
        require_shape("valid", valid, grid)
        anchor = anchor & valid.bool()
    anchor, labels = anchor.flatten(1), labels.flatten(1)
    both = anchor[:, :, None] & anchor[:, None, :]
    same = labels[:, :, None] == labels[:, None, :]
    itself = torch.eye(labels.shape[1], dtype=torch.bool, device=labels.device)
    positive, negative = both & same & ~itself, both & ~same

    with torch.autocast(cam.device.type, enabled=False):
        direction = directions(at_least_float32(cam).flatten(2), dim=1)
        similarity = direction.transpose(1, 2) @ direction / temperature
        negatives = similarity.masked_fill(~negative, _LOG_ZERO).logsumexp(dim=2, keepdim=True)
        # -log(L / (L + N)) = log(1 + exp(log N - log L))
        pair = F.softplus(negatives - similarity) * positive
        per_anchor = pair.sum(dim=2) / positive.sum(dim=2).clamp_min(1)
        per_image = per_anchor.sum(dim=1) / anchor.sum(dim=1).clamp_min(1)
        return over_images(per_image.sum(), len(per_image))


def _reliability(perplexity: Tensor) -> Tensor:
    """1/P, bounded: with alpha = 1 the perplexity of Eq. (4) reaches 0."""
    return 1 / at_least_float32(perplexity).clamp_min(1e-6)
