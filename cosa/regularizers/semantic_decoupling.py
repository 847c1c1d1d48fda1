"""CSD: an object pasted among others is seen as it is alone, and so is background.

"Cross-domain Semantic Decoupling for Weakly-Supervised Semantic Segmentation" (CSD; Yang, Ke,
Hancke and Lau, BMVC 2023), Sec. 3.2. The single-label partner of a multi-label image
(``cosa.data.partners``) is the source. The assignment network sees it as it is and splits it into
object and background, without the paper's offline stage; the online network sees a part of it
pasted into the multi-label image, and is to give this part the scores that it has in the source.

Positions are shares of the crop's side, (y, x) in [0, 1]: they hold on the pixels and on the
token grid alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cosa.cam import free_of_padding
from cosa.core.tensors import at_least_float32, move
from cosa.losses import Sum
from cosa.regularizers.base import Context, Partner, Regularizer

# A random box of background has this share of the sides of the partner's valid area: pasted, it
# is about as large as a typical object is.
_BOX = 0.5

# Interpolated from positions that all are valid; less than 1 for the rounding of the weights.
_ALL_VALID = 0.999


# Losses


def decoupling_foreground(source: Tensor, pasted: Tensor, mask: Tensor) -> Tensor:
    """KL divergence of the class scores on a pasted object: Eq. (3) of CSD.

    Args:
        source: (n, C, h, w) raw class scores of the object where it comes from, carried to where
            it is pasted; a target, without gradient.
        pasted: (n, C, h, w) raw class scores of the image that it is pasted into.
        mask: (n, h, w) bool, the positions of the object.

    Returns:
        The scalar sum over the positions of KL(softmax(source) || softmax(pasted)), averaged over
        the images whose mask is not empty; 0 if there is none. The softmax is over all C classes.
    """
    return decoupling_foreground_sum(source, pasted, mask).mean()


def decoupling_foreground_sum(source: Tensor, pasted: Tensor, mask: Tensor) -> Sum:
    """:func:`decoupling_foreground` over images whose mask is not empty."""
    return _divergence(source.detach(), pasted, mask)


def decoupling_background(
    source: Tensor, pasted: Tensor, mask: Tensor, background_score: float = 1.0
) -> Tensor:
    """KL divergence of background against all classes, on pasted background: Eq. (5) of CSD.

    The classes have no score for background, so a position is represented by the pair (M', s): M'
    is a constant and s, the saliency, the sum of the positive class scores. The sum is over
    positive scores because an activation begins at 0: the scores of the many absent classes are
    far below, and their sum would hide any object and leave the softmax without a gradient.
    Where nothing is activated the pair is (M', 0), so the least divergence can be reached.

    Args:
        source, pasted, mask: as in :func:`decoupling_foreground`, of a region of background.
        background_score: M'.

    Returns:
        The scalar sum over the positions of KL(softmax of the source's pair || softmax of the
        pasted one's), averaged over the images whose mask is not empty; 0 if there is none.
    """
    return decoupling_background_sum(source, pasted, mask, background_score).mean()


def decoupling_background_sum(
    source: Tensor, pasted: Tensor, mask: Tensor, background_score: float = 1.0
) -> Sum:
    """:func:`decoupling_background` over images whose mask is not empty."""
    source, pasted = (
        _background_pair(scores, background_score) for scores in (source.detach(), pasted)
    )
    return _divergence(source, pasted, mask)


def _background_pair(scores: Tensor, background_score: float) -> Tensor:
    """(n, C, h, w) class scores to (n, 2, h, w): the constant, and the saliency."""
    saliency = at_least_float32(scores).relu().sum(dim=1)
    return torch.stack([torch.full_like(saliency, background_score), saliency], dim=1)


def _divergence(source: Tensor, pasted: Tensor, mask: Tensor) -> Sum:
    """KL of the softmax over dim 1, summed over the mask, over the images that have one."""
    # Filled rather than multiplied: what is off the mask may even be NaN.
    source, pasted = (
        at_least_float32(scores).masked_fill(~mask[:, None], 0).log_softmax(dim=1)
        for scores in (source, pasted)
    )
    divergence = (source.exp() * (source - pasted)).sum()
    return Sum(divergence, mask.flatten(1).any(dim=1).sum())


# Copy and paste


@dataclass
class Placement:
    """Where the regions of n images land: scaled about a corner, which is moved."""

    scale: Tensor
    """(n,) factor on the size, above 0."""
    source: Tensor
    """(n, 2) the upper left corner of the region's box in its own image."""
    target: Tensor
    """(n, 2) where this corner goes."""


def bounding_box(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Upper left and lower right corner, (n, 2) each, of the boxes around masks (n, H, W) bool.

    An empty mask has the corners (1, 1) and (0, 0).
    """
    corners = []
    for other, side in ((2, mask.shape[1]), (1, mask.shape[2])):
        occupied = mask.any(dim=other)
        edges = torch.arange(side + 1, device=mask.device, dtype=torch.float32) / side
        low = torch.where(occupied, edges[:-1], 1).amin(dim=1)
        high = torch.where(occupied, edges[1:], 0).amax(dim=1)
        corners.append((low, high))
    low, high = zip(*corners, strict=True)
    return torch.stack(low, dim=1), torch.stack(high, dim=1)


def random_box(valid: Tensor) -> Tensor:
    """(n, H, W) bool: a box at a random place in each valid area (n, H, W) bool, half its sides."""
    low, high = bounding_box(valid)
    size = _BOX * (high - low)
    low = low + move(torch.rand(len(valid), 2), valid.device) * (1 - _BOX) * (high - low)
    y, x = (_centres(side, valid.device) for side in valid.shape[1:])
    rows = (y >= low[:, :1]) & (y < (low + size)[:, :1])
    columns = (x >= low[:, 1:]) & (x < (low + size)[:, 1:])
    return rows[:, :, None] & columns[:, None, :]


def draw_placement(
    region: Tensor, valid: Tensor, scale_min: float, scale_max: float
) -> Placement:
    """Scale each region by a random factor and move it to a random place in the valid area.

    Its box lies inside the box of the valid area; a box that is larger covers that one.

    Args:
        region: (n, H, W) bool, of the images that are pasted from.
        valid: (n, H, W) bool, of the images that are pasted into.
        scale_min, scale_max: range of the uniform factor.
    """
    draws = move(torch.rand(len(region), 3), region.device)
    scale = scale_min + (scale_max - scale_min) * draws[:, 0]
    low, high = bounding_box(region)
    valid_low, valid_high = bounding_box(valid)
    room = valid_high - valid_low - scale[:, None] * (high - low)
    return Placement(scale, low, valid_low + draws[:, 1:] * room)


def warp(maps: Tensor, placement: Placement, padding: str = "zeros") -> Tensor:
    """Move and scale maps (n, K, H, W) by their placements; bilinear, to the same size.

    Args:
        padding: what lies beyond the border, as in ``torch.nn.functional.grid_sample``.
    """
    grid = []
    for axis, side in enumerate(maps.shape[-2:]):
        # Not affine_grid: its matrix product would lose a fraction of a pixel in TensorFloat-32.
        moved = _centres(side, maps.device) - placement.target[:, axis, None]
        place = placement.source[:, axis, None] + moved / placement.scale[:, None]
        grid.append((2 * place - 1).to(maps.dtype))
    y, x = grid
    size = len(maps), *maps.shape[-2:]
    grid = torch.stack([x[:, None, :].expand(size), y[:, :, None].expand(size)], dim=-1)
    return F.grid_sample(maps, grid, padding_mode=padding, align_corners=False)


def soften(mask: Tensor, edge: float) -> Tensor:
    """Blur the edges of masks (n, 1, H, W) in [0, 1] to a ramp of ``edge`` * W pixels."""
    radius = round(edge * mask.shape[-1] / 2)
    for kernel in ((1, 2 * radius + 1), (2 * radius + 1, 1)):
        reach = tuple(side // 2 for side in kernel)
        # What leaves the image does not fade at its border.
        mask = F.avg_pool2d(mask, kernel, 1, reach, count_include_pad=False)
    return mask


@dataclass
class Pasted:
    """Images with a region of others in them."""

    images: Tensor
    """(n, 3, H, W)"""
    alpha: Tensor
    """(n, 1, H, W) in [0, 1], the share of the pasted image; 0 on the padding of either."""
    coverage: Tensor
    """(n, 1, H, W) in [0, 1], the region where it landed, before its edge was blurred."""


@torch.no_grad()
def paste(
    images: Tensor,
    region: Tensor,
    valid: Tensor,
    target: Tensor,
    target_valid: Tensor,
    placement: Placement,
    edge: float,
) -> Pasted:
    """Paste a region of each image into another.

    Args:
        images: (n, 3, H, W) to paste from.
        region: (n, H, W) bool, the part of ``images`` to paste.
        valid: (n, H, W) bool, False on the padding of ``images``.
        target: (n, 3, H, W) to paste into.
        target_valid: (n, H, W) bool, False on its padding.
        placement: of the regions.
        edge: width of the soft edge, as a share of the side.
    """
    planes = torch.stack([region & valid, valid], dim=1).to(images)
    moved, coverage, moved_valid = warp(torch.cat([images, planes], dim=1), placement).split(
        [images.shape[1], 1, 1], dim=1
    )
    alpha = soften(coverage, edge).clamp(0, 1)
    alpha = alpha * ((moved_valid > _ALL_VALID) & target_valid[:, None])
    return Pasted(torch.lerp(target, moved, alpha), alpha, coverage)


@torch.no_grad()
def carry(
    source: Tensor, coverage: Tensor, valid: Tensor, target_valid: Tensor, placement: Placement
) -> tuple[Tensor, Tensor]:
    """Move class scores along with the region that they describe.

    Args:
        source: (n, C, h, w) scores of the images that the region comes from.
        coverage: (n, 1, H, W) of ``Pasted``.
        valid, target_valid, placement: as in :func:`paste`.

    Returns:
        The scores (n, C, h, w) at the places where the region landed, and mask (n, h, w) bool:
        the cells that it covers by at least half, inside both valid areas. No score in the mask
        stems from a cell with padding.
    """
    grid = source.shape[-2:]
    source = at_least_float32(source)
    free = free_of_padding(valid, grid)[:, None].to(source)
    # At its border, where the region may end, the outermost score is the nearest one.
    moved, moved_free = warp(torch.cat([source, free], dim=1), placement, "border").split(
        [source.shape[1], 1], dim=1
    )
    mask = F.interpolate(coverage, grid, mode="area")[:, 0] >= 0.5
    return moved, mask & (moved_free[:, 0] > _ALL_VALID) & free_of_padding(target_valid, grid)


def _centres(side: int, device: torch.device) -> Tensor:
    """(side,) float32: the middles of the cells of an axis."""
    return (torch.arange(side, device=device, dtype=torch.float32) + 0.5) / side


# The regularizer


class SemanticDecoupling(Regularizer):
    """Both terms of CSD, for the multi-label images of the batch that have a partner.

    The object is what the assignment network's pseudo-labels give to the partner's only class. It
    is pasted for the foreground term. For the background term a random box of the partner is,
    without the object in it: through that hole the multi-label image is seen. Both pasted images
    go through the online network in one pass.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"cam"})

    def weights(self) -> dict[str, float]:
        options = self.options
        terms = {"csd_foreground": options.foreground, "csd_background": options.background}
        return {name: options.weight * share for name, share in terms.items() if share > 0}

    def forward(self, context: Context) -> dict[str, Sum]:
        names = list(self.weights())
        partner = context.partner
        if partner is not None:
            objects = object_mask(partner)
            # A look at values on the device, which waits for it; it spares passes without use.
            seen = objects.flatten(1).any(dim=1).nonzero()[:, 0]
            if len(seen) < len(objects):
                self.note_once("csd: a partner in whose class activation map no object shows is "
                               "not pasted")
            if len(seen):
                return self._terms(names, context, partner, objects, seen)
        # Part of the graph, for a loss that consists of nothing else.
        nothing = (at_least_float32(context.output.cam) * 0).sum()
        return {name: Sum(nothing, nothing.detach()) for name in names}

    def _terms(
        self, names: list[str], context: Context, partner: Partner, objects: Tensor, seen: Tensor
    ) -> dict[str, Sum]:
        """The terms of the partners ``seen``, whose object masks in ``objects`` are not empty."""
        options, batch, target = self.options, context.batch, partner.index[seen]
        objects, own_valid = objects[seen], partner.valid[seen]
        regions = []
        if "csd_foreground" in names:
            regions.append(objects)
        if "csd_background" in names:
            regions.append(random_box(own_valid) & own_valid & ~objects)
        region = torch.cat(regions)

        def for_each_term(tensor: Tensor) -> Tensor:
            return torch.cat([tensor] * len(names))

        valid, target_valid = for_each_term(own_valid), for_each_term(batch["valid"][target])
        placement = draw_placement(region, target_valid, options.scale_min, options.scale_max)
        pasted = paste(
            for_each_term(partner.images[seen]), region, valid,
            for_each_term(batch["strong"][target]), target_valid, placement, options.edge,
        )
        source, mask = carry(
            for_each_term(partner.output.cam[seen]), pasted.coverage, valid, target_valid, placement
        )
        with context.autocast():
            scores = context.online(pasted.images).cam
        terms = {}
        for name, *maps in zip(
            names, *(maps.chunk(len(names)) for maps in (source, scores, mask)), strict=True
        ):
            terms[name] = (
                decoupling_foreground_sum(*maps) if name == "csd_foreground"
                else decoupling_background_sum(*maps, options.background_score)
            )
        return terms


def object_mask(partner: Partner) -> Tensor:
    """(n, S, S) bool: where the pseudo-labels, of the only class or background, show the class."""
    return (partner.targets.labels > 0) & partner.valid
