"""Maps spread over positions that look alike to an early layer of the encoder.

A CAM fires on the most telling part of an object. Positions of one object resemble each other in
early features, which know little of classes but much of edges: averaging the map over what is
similar fills the object and leaves its surroundings out, within one pass of the network. The idea
is that of the pixel correlation module of SEAM (Wang et al., CVPR 2020), here without weights of
its own; it is no part of CoSA.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cosa.core.tensors import at_least_float32, directions


def affinity(*layers: tuple[Tensor, float]) -> Tensor:
    """How much each position takes from each: cosines to a power, in rows of sum 1.

    Args:
        layers: at least one. Of each its features (B, D, h, w), on one grid, and a power above 0;
            larger ones keep to what is most alike. Negative cosines count 0, and those of several
            layers are multiplied: positions take from each other what is alike in all.

    Returns:
        (B, h*w, h*w) float32 (float64 for float64 features), all at least 0.
    """
    # In place: of a large image, one such matrix fills hundreds of megabytes.
    alike, *others = (cosines(features).clamp_min_(0).pow_(power) for features, power in layers)
    for other in others:
        alike.mul_(other)
    return alike.div_(alike.sum(dim=2, keepdim=True).clamp_min_(1e-6))


def cosines(features: Tensor) -> Tensor:
    """The cosines of all pairs of positions, under autocast, too, in full precision.

    Args:
        features: (B, D, h, w).

    Returns:
        (B, h*w, h*w) float32 (float64 for float64 features), 0 for features of no length.
    """
    with torch.autocast(features.device.type, enabled=False):
        unit = directions(at_least_float32(features).flatten(2), dim=1)
        return unit.transpose(1, 2) @ unit


def spread(maps: Tensor, weights: Tensor, steps: int) -> Tensor:
    """Replace each position by the mean over what it is like, so many times.

    Args:
        maps: (B, K, h, w).
        weights: (B, h*w, h*w) of :func:`affinity`.
        steps: at least 0; 0 gives the maps themselves.

    Returns:
        A tensor of the shape of ``maps``, float32 (float64 for float64 maps) if there is a step.
    """
    if not steps:
        return maps
    with torch.autocast(maps.device.type, enabled=False):
        flat = at_least_float32(maps).flatten(2)
        for _ in range(steps):
            flat = flat @ weights.transpose(1, 2)
        return flat.view(maps.shape)
