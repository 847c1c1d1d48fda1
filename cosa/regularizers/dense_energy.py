"""Dense energy: pixels that are near and of like colour should be segmented alike.

The regularised loss of "On Regularized Losses for Weakly-supervised CNN Segmentation" (Tang et al.,
ECCV 2018) in the gated form in which ToCo and CoSA's release add it to training: the energy of a
dense CRF, whose pairwise sum the permutohedral lattice computes in linear time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cosa.cam import free_of_padding, resize
from cosa.core.tensors import at_least_float32, require_shape
from cosa.lattice import Lattice, bilateral_features
from cosa.losses import Sum
from cosa.regularizers.base import Context, Regularizer

UNIT = 1e-7
"""Brings the sum over all pairs of pixels to the size of a loss; the releases' constant."""

MAX_PERPLEXITY = 1.0
"""Pseudo-labels up to this perplexity count as labels: the epsilon of Eq. (9) of CoSA."""


def dense_energy_loss(
    probabilities: Tensor,
    images: Tensor,
    labelled: Tensor | None = None,
    valid: Tensor | None = None,
    sigma_xy: float = 50.0,
    sigma_rgb: float = 15.0,
) -> Tensor:
    """The gated energy ``-(1e-7 / B) sum_k (g S_k)' W S_k``.

    W is the bilateral affinity of the pixels of an image, unnormalised, on the scale of
    ``Lattice.filter``. The gate g is ``1 - max_k S_k``, without gradient, on labelled pixels,
    where a confident segmentation needs no smoothing, and 1 elsewhere. The gradient is exact for
    both factors S; the images get none.

    Args:
        probabilities: (B, K, h, w) S, in [0, 1].
        images: (B, 3, h, w) colours in 0..255.
        labelled: (B, h, w) bool; None means that no pixel is labelled.
        valid: (B, h, w) bool, False where the image is padding, which neither gives nor receives;
            None counts every pixel.
        sigma_xy: standard deviation of W in pixels.
        sigma_rgb: standard deviation of W in grey levels.

    Returns:
        The scalar, at most 0, in float32 (float64 for float64 probabilities).

    Raises:
        ValueError: the shapes do not fit, or see ``Lattice``.
    """
    return dense_energy_sum(
        probabilities, images, labelled, valid, sigma_xy, sigma_rgb
    ).mean()


def dense_energy_sum(
    probabilities: Tensor,
    images: Tensor,
    labelled: Tensor | None = None,
    valid: Tensor | None = None,
    sigma_xy: float = 50.0,
    sigma_rgb: float = 15.0,
) -> Sum:
    """:func:`dense_energy_loss` over images."""
    batch, _, *grid = probabilities.shape
    require_shape("images", images, (batch, 3, *grid))
    if valid is None:
        valid = torch.ones((batch, *grid), dtype=torch.bool, device=probabilities.device)
    require_shape("valid", valid, (batch, *grid))
    padding = ~valid.bool()
    values = at_least_float32(probabilities).masked_fill(padding[:, None], 0)
    lattice = _lattice(images.detach().to(values), padding, sigma_xy, sigma_rgb)
    gated = values
    if labelled is not None:
        require_shape("labelled", labelled, (batch, *grid))
        doubt = 1 - values.detach().amax(dim=1)
        gated = values * torch.where(labelled.bool(), doubt, 1)[:, None]
    energy = (_by_pixel(gated) * lattice.filter(_by_pixel(values))).sum()
    return Sum.over_images(-UNIT * energy, batch)


class DenseEnergy(Regularizer):
    """The loss on the segmentation of the strong view, with the colours of the weak one.

    It is computed at ``options.scale`` of the crop's side, on the softmax of the resized logits
    that CAM2Seg supervises. The confident CAM pseudo-labels close the gate.
    """

    needs = frozenset({"cam"})

    def weights(self) -> dict[str, float]:
        return {"dense_energy": self.options.weight}

    def forward(self, context: Context) -> dict[str, Sum]:
        options, valid = self.options, context.batch["valid"]
        size = tuple(max(1, round(options.scale * side)) for side in valid.shape[-2:])
        probabilities = resize(at_least_float32(context.output.seg), size).softmax(dim=1)
        doubt = context.labeller.relabel(context.targets["cam"], size).perplexity
        energy = dense_energy_sum(
            probabilities,
            255 * F.interpolate(context.batch["weak"], size, mode="area"),
            labelled=doubt <= MAX_PERPLEXITY,
            valid=free_of_padding(valid, size),
            sigma_xy=options.scale * options.sigma_xy,
            sigma_rgb=options.sigma_rgb,
        )
        return {"dense_energy": energy}


def _lattice(images: Tensor, padding: Tensor, sigma_xy: float, sigma_rgb: float) -> Lattice:
    """One lattice for all images; padding of whatever colour is a group of its own."""
    batch = len(images)
    group = torch.arange(batch, device=images.device)[:, None, None].expand_as(padding)
    group = torch.where(padding, batch, group)
    images = images.masked_fill(padding[:, None], 0).permute(0, 2, 3, 1)
    features = bilateral_features(images, sigma_xy, sigma_rgb)
    return Lattice(features.flatten(0, 1), group.flatten())


def _by_pixel(maps: Tensor) -> Tensor:
    """(B, K, h, w) -> (B * h * w, K)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)
