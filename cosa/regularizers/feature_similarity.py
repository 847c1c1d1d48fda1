"""FSL of hfpl: contours of the CAM follow the colour edges of the image (Eq. 4 and 9-13).

"High-fidelity Pseudo-labels for Boosting Weakly-Supervised Segmentation" (Jonnarth, Zhang and
Felsberg, WACV 2024). The loss compares every cell with every other one, but g of Eq. (11) is a
squared distance: with a_ij = w_ij f(delta_ij) and its row sums D on a diagonal,

    sum_ij a_ij g(r_i, r_j) = sum_c r_c' (D - A) r_c,

whose gradient is 2 (D - A) r. So a pair needs one weight for all classes, and one pass gives value
and gradient. The weights are never all there: pairs are visited by the distance of their rows,
each unordered pair once, up to the distance at which w is negligible.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cosa.cam import filter_by_labels, free_of_padding, resize
from cosa.core.tensors import at_least_float32, require_shape
from cosa.losses import Sum
from cosa.regularizers.base import Context, Regularizer

REACH = 4
"""Rows further apart than this many sigma are not compared; w has 0.01% of its mass there. Near
and far pairs have opposite signs, so the share of the value that is lost can be larger:
``python -m cosa.benchmark similarity`` compares with all pairs."""

# On both sides of the fraction in the logarithm of Eq. (12).
_EPSILON = 1e-5

# Maps whose maximum is below this keep a maximum below 1: the gradient is bounded by 1 over the
# divisor (Eq. 23), and a class that is all but unseen must not outweigh all others.
_MIN_PEAK = 1e-2


def feature_similarity_loss(
    activations: Tensor,
    images: Tensor,
    mu: float = 2.5,
    sigma: float = 5.0,
    valid: Tensor | None = None,
) -> Tensor:
    """Like cells should be activated alike, unlike ones apart: Eq. (9)-(13) of hfpl.

    Time grows as B h w^2 sigma, and memory as B h w^2; the gradient is computed along with the
    value, cannot be differentiated again, and reaches the activations only.

    Args:
        activations: (B, K, h, w) max-normalised maps r in [0, 1] (``max_normalize``).
        images: (B, 3, h, w) colours in [0, 1].
        mu: shifts the colour difference at which two cells turn unlike; 0.076 at 2.5.
        sigma: standard deviation, in cells, of the Gaussian w in the distance of two cells.
        valid: (B, h, w) bool, False for cells that are in no pair; None counts all of them.

    Returns:
        The scalar mean over the images of the sum over all ordered pairs, divided by the image's
        number of valid cells; float32 (float64 for float64 activations). An image without any
        contributes 0.

    Raises:
        ValueError: the shapes do not fit.
    """
    return feature_similarity_sum(activations, images, mu, sigma, valid).mean()


def feature_similarity_sum(
    activations: Tensor,
    images: Tensor,
    mu: float = 2.5,
    sigma: float = 5.0,
    valid: Tensor | None = None,
) -> Sum:
    """:func:`feature_similarity_loss` over images."""
    batch, _, *grid = activations.shape
    require_shape("images", images, (batch, 3, *grid))
    if valid is None:
        valid = torch.ones((batch, *grid), dtype=torch.bool, device=activations.device)
    require_shape("valid", valid, (batch, *grid))
    outside = ~valid.bool()[:, None]
    count = (~outside).sum(dim=(1, 2, 3)).clamp_min(1)
    with torch.autocast(activations.device.type, enabled=False):
        maps = at_least_float32(activations).masked_fill(outside, 0)
        # Constants do not change the loss, but the smaller the values are, the fewer digits cancel.
        mean = maps.detach().sum(dim=(2, 3), keepdim=True) / count[:, None, None, None]
        maps = (maps - mean).masked_fill(outside, 0)
        colours = images.detach().to(maps).masked_fill(outside, 0)
        energy = _PairEnergy.apply(maps, colours, (~outside).to(maps), mu, sigma)
        return Sum.over_images(-(energy / count).sum(), batch)


def max_normalize(cam: Tensor, image_labels: Tensor, valid: Tensor) -> Tensor:
    """ReLU, then division by the maximum of each map: Eq. (4) of hfpl.

    Args:
        cam: (B, C, h, w) raw activations.
        image_labels: (B, C) image-level labels; the maps of absent classes become 0.
        valid: (B, h, w) bool; other cells become 0 and are not in the maximum.

    Returns:
        (B, C, h, w) in [0, 1], float32 (float64 for a float64 CAM), with gradient through the
        maximum as well. A map without a positive activation is 0.

    Raises:
        ValueError: the shapes do not fit.
    """
    require_shape("valid", valid, (cam.shape[0], *cam.shape[2:]))
    positive = F.relu(filter_by_labels(at_least_float32(cam), image_labels))
    positive = positive.masked_fill(~valid.bool()[:, None], 0)
    return positive / positive.amax(dim=(2, 3), keepdim=True).clamp_min(_MIN_PEAK)


def resize_within(maps: Tensor, valid: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize in which padding takes no part, as if the image ended where it begins.

    Args:
        maps: (B, K, h, w), float.
        valid: (B, H, W) bool, False where the image is padding. Cells of ``maps`` that hold
            nothing else are left out.
        size: of the result; where none but such cells are near, it is 0.
    """
    padding = free_of_padding(~valid.bool(), maps.shape[-2:])[:, None]
    share = resize((~padding).to(maps), size)
    return resize(maps.masked_fill(padding, 0), size) / share.clamp_min(torch.finfo(maps.dtype).eps)


class FeatureSimilarity(Regularizer):
    """The loss on the online network's M, against the colours of the weak view."""

    def weights(self) -> dict[str, float]:
        return {"fsl": self.options.weight}

    def forward(self, context: Context) -> dict[str, Sum]:
        options, batch = self.options, context.batch
        height, width = context.grid
        grid = (options.grid, options.grid) if options.grid else (2 * height, 2 * width)
        valid = free_of_padding(batch["valid"], grid)
        cam = resize_within(at_least_float32(context.output.cam), batch["valid"], grid)
        activations = max_normalize(cam, batch["image_labels"], valid)
        colours = F.interpolate(context.batch["weak"], grid, mode="area")
        return {"fsl": feature_similarity_sum(
            activations, colours, options.mu, options.sigma, valid
        )}


class _PairEnergy(torch.autograd.Function):
    """r' (D - A) r of each image, (B,), from the tensors of :func:`_apply_laplacian`."""

    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, colours: Tensor, inside: Tensor, mu: float, sigma: float
    ) -> Tensor:
        laplacian = _apply_laplacian(maps, colours, inside, mu, sigma)
        ctx.save_for_backward(laplacian)
        return (maps * laplacian).sum(dim=(1, 2, 3))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("feature_similarity_loss cannot be differentiated twice")
        (laplacian,) = ctx.saved_tensors
        return 2 * grad[:, None, None, None] * laplacian, None, None, None, None


def _apply_laplacian(
    maps: Tensor, colours: Tensor, inside: Tensor, mu: float, sigma: float
) -> Tensor:
    """(D - A) r; cells outside are in no pair, and the result there has no meaning.

    Args:
        maps: (B, K, h, w) r, 0 outside.
        colours: (B, 3, h, w).
        inside: (B, 1, h, w), 1 or 0.
    """
    batch, _, height, width = maps.shape
    planes = (colours / 3).transpose(0, 1)
    column = torch.arange(width, dtype=maps.dtype, device=maps.device)
    gaussian = torch.exp((column[:, None] - column).square() / (-2 * sigma**2))
    gaussian = gaussian / (2 * math.pi * sigma**2)
    # D is A applied to `inside`: a channel like the others, last.
    channels = torch.cat([maps, inside], dim=1).permute(0, 2, 3, 1).contiguous()
    products = torch.zeros_like(channels)
    # The weights of one image fit a CPU's cache; a GPU is better served with few large kernels.
    step = 1 if maps.device.type == "cpu" else batch
    for first in range(0, batch, step):
        images = slice(first, first + step)
        for distance in range(min(height, math.ceil(REACH * sigma) + 1)):
            upper, lower = slice(0, height - distance), slice(distance, height)
            near = gaussian * math.exp(-(distance**2) / (2 * sigma**2))
            weights = _pair_weights(planes[:, images, upper], planes[:, images, lower], near, mu)
            products[images, upper] += weights @ channels[images, lower]
            if distance:
                products[images, lower] += weights.mT @ channels[images, upper]
    products = products.permute(0, 3, 1, 2)
    return maps * products[:, -1:] - products[:, :-1]


def _pair_weights(upper: Tensor, lower: Tensor, near: Tensor, mu: float) -> Tensor:
    """w f(delta) between all cells of two rows: Eq. (10), (12) and (13) of hfpl.

    Args:
        upper, lower: (3, n, rows, w) colours / 3 of the rows to compare.
        near: (w, w) the Gaussian weight w of each pair of columns.

    Returns:
        (n, rows, w, w), indexed by the column in ``upper``, then in ``lower``.
    """
    pairs = zip(upper, lower, strict=True)
    delta = reduce(Tensor.add_, ((a[..., :, None] - b[..., None, :]).abs_() for a, b in pairs))
    # tanh(mu + log q) = 1 - 2 / (1 + e^(2 mu) q^2)
    odds = (delta + _EPSILON).div_((1 + _EPSILON) - delta)
    denominator = odds.square_().mul_(math.exp(2 * mu)).add_(1)
    return torch.addcdiv(near, near, denominator, value=-2)
