"""The training losses of CoSA (Eq. 1, 5, 8 and 9-11).

Every loss is computed in float32 (float64 for float64 predictions), under autocast too, and
sends gradients to its first argument only. Positions that do not count (padding) are in neither
the sum nor its count; a batch without any counted position gives 0, with zero gradients.

Each loss is a scalar here, and beside it stands what it is the mean of: a value of each image or
position. A training step makes the mean by itself, since a batch may be spread over parts and
processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

    @classmethod
    def of(cls, values: Tensor, weights: Tensor) -> Sum:
        """Values, each of which counts with its weight: two tensors of one shape."""
        return cls((weights.to(values) * values).sum(), weights.sum())

    @classmethod
    def over_images(cls, total: Tensor, images: int) -> Sum:
        """A total over so many images, each of which counts 1."""
        return cls(total, total.detach().new_full((), images))

    def mean(self) -> Tensor:
        """The loss, a scalar: total / count, or 0 if nothing counts."""
        return divide({"loss": self})["loss"]


def divide(
    sums: Mapping[str, Sum], all_mean: Callable[[Tensor], Tensor] = lambda counts: counts
) -> dict[str, Tensor]:
    """Name -> scalar loss, whose mean over the processes is that of the whole batch.

    Args:
        sums: of this process's share of the batch; the same names in all processes.
        all_mean: the mean of a tensor over the processes, which give it in one piece: one
            exchange for all terms.
    """
    # All at once: one by one, so many scalars would cost a GPU more than their arithmetic.
    totals = torch.cat([total.flatten() for total, _ in sums.values()])
    counts = torch.cat([count.detach().to(total).flatten() for total, count in sums.values()])
    sizes = [total.numel() for total, _ in sums.values()]
    counts = all_mean(counts)
    counted = counts > 0
    means = counted * totals / torch.where(counted, counts, 1)
    return {
        name: mean[0] if len(mean) == 1 else mean.sum() / held.sum().clamp_min(1)
        for name, mean, held in zip(sums, means.split(sizes), counted.split(sizes), strict=True)
    }


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
    return classification_of_images(logits, image_labels).mean()


def classification_of_images(logits: Tensor, image_labels: Tensor) -> Tensor:
    """(B,), what :func:`classification` is the mean of: those over the classes."""
    require_shape("image_labels", image_labels, logits.shape)
    logits = at_least_float32(logits)
    labels = image_labels.detach().to(logits)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=1)


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
    (cross_entropy,) = cam_to_seg_at_pixels(seg, [labels])
    return Sum.of(cross_entropy, pixel_weights(labels, perplexity, valid)).mean()


def cam_to_seg_at_pixels(seg: Tensor, labels: Sequence[Tensor]) -> list[Tensor]:
    """What :func:`cam_to_seg` is the weighted mean of, for maps of labels of one size.

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
    seg = at_least_float32(seg)
    if not seg.is_cuda:  # a CPU takes the logarithms of contiguous maps three times as quickly
        seg = seg.contiguous()
    # Nothing holds on to the resized logits.
    log_probability = F.log_softmax(resize(seg, size), dim=1)
    places = torch.stack([target.masked_fill(target == IGNORE, 0) for target in labels], dim=1)
    return list((-log_probability.gather(1, places)).unbind(dim=1))


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
    losses = seg_to_cam_at_positions(cam, seg_targets)
    if valid is None:
        return losses.mean()
    require_shape("valid", valid, (len(cam), *valid.shape[1:]))
    return Sum.of(losses, free_of_padding(valid, cam.shape[2:])).mean()


def seg_to_cam_at_positions(cam: Tensor, seg_targets: Tensor) -> Tensor:
    """(B, h, w), what :func:`seg_to_cam` is the mean of: those over the classes."""
    batch, classes, *grid = cam.shape
    require_shape("seg_targets", seg_targets, (batch, classes + 1, *seg_targets.shape[2:]))
    cam = at_least_float32(cam)
    target = F.interpolate(seg_targets.detach().to(cam), size=grid, mode="area")[:, 1:]
    return F.binary_cross_entropy_with_logits(cam, target, reduction="none").mean(dim=1)


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
    return contrastive_separation_of_images(
        cam, labels, perplexity, epsilon, temperature, valid
    ).mean()


def contrastive_separation_of_images(
    cam: Tensor,
    labels: Tensor,
    perplexity: Tensor,
    epsilon: float = 1.0,
    temperature: float = 0.5,
    valid: Tensor | None = None,
) -> Tensor:
    """(B,), what :func:`contrastive_separation` is the mean of: those over the anchors."""
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
        return per_image


def _reliability(perplexity: Tensor) -> Tensor:
    """1/P, bounded: with alpha = 1 the perplexity of Eq. (4) reaches 0."""
    return 1 / at_least_float32(perplexity).clamp_min(1e-6)
