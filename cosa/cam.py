"""Class activation maps: scaling, filtering, resizing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cosa.core.device import full_precision
from cosa.core.parts import parts
from cosa.core.tensors import at_least_float32

MAX_VALUES = 2**22
"""Upsampled values held at once (16 MB); whole images of 30 megapixels would need gigabytes."""


class MapRows(Protocol):
    """Maps (K, h, w) that are not held: rows are made or read when they are asked for.

    They are asked for from the top down: no slice begins above the one before.
    """

    shape: tuple[int, int, int]
    device: torch.device

    def __getitem__(self, places: tuple[slice, slice]) -> Tensor:
        """``maps[:, first:end]``, or ``maps[:, :]``."""


def normalize(cam: Tensor, valid: Tensor | None = None) -> Tensor:
    """Min-max scale every map to [0, 1], per image and class.

    Args:
        cam: (..., H, W) floating-point activations of any range, usually (B, C, H, W).
        valid: bool, broadcast to ``cam``; False where the image is padding, which does not
            take part in the scale and becomes 0. None counts every position.

    Returns:
        A tensor of the same shape and dtype; a map without any variation becomes all 0.
    """
    wide = at_least_float32(cam)  # in half precision the span itself could overflow
    if valid is None:
        low, high = wide, wide
    else:
        low = wide.masked_fill(~valid, float("inf"))
        high = wide.masked_fill(~valid, float("-inf"))
    low, high = low.amin(dim=(-2, -1), keepdim=True), high.amax(dim=(-2, -1), keepdim=True)
    scaled = (wide - low) / (high - low).clamp_min(torch.finfo(wide.dtype).tiny)
    if valid is not None:
        scaled = scaled.masked_fill(~valid, 0)
    return scaled.to(cam.dtype)


def filter_by_labels(cam: Tensor, image_labels: Tensor) -> Tensor:
    """Set the maps of the classes that an image does not hold to 0.

    Args:
        cam: (B, C, H, W) activations.
        image_labels: (B, C) image-level labels of any dtype; positive means present.

    Returns:
        A tensor like ``cam``; the maps of present classes are unchanged.

    Raises:
        ValueError: the labels are not of shape (B, C).
    """
    if image_labels.shape != cam.shape[:2]:
        raise ValueError(
            f"image_labels must have shape {tuple(cam.shape[:2])}, got {tuple(image_labels.shape)}"
        )
    absent = (image_labels <= 0).to(cam.device)[:, :, None, None]
    # Filling, rather than multiplying, also clears a non-finite value of an absent class.
    return cam.masked_fill(absent, 0)


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of (B, K, h, w) to ``size``, corners not aligned; a no-op if it fits."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    if maps.requires_grad and torch.is_grad_enabled():
        return _Resized.apply(maps, tuple(size))
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


class _Resized(torch.autograd.Function):
    """Bilinear resize with a way back of two matrix products.

    CUDA's own adds each pixel to four numbers by atomic operations: for the segmentation at pixel
    size 3 ms on an H200, in another order, and with another result, each time. A CPU's is several
    times as slow as these products.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, size: tuple[int, int]) -> Tensor:
        ctx.grid = maps.shape[-2:]
        return F.interpolate(maps, size, mode="bilinear", align_corners=False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        rows, columns = (
            F.interpolate(torch.eye(short, dtype=grad.dtype, device=grad.device)[None], long,
                          mode="linear", align_corners=False)[0]
            for short, long in zip(ctx.grid, grad.shape[-2:], strict=True)
        )
        with full_precision():
            return rows @ (grad @ columns.T), None


def strips(
    maps: Tensor | MapRows, size: tuple[int, int], at_once: int | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Maps (K, h, w), resized bilinearly to ``size`` (H, W), a few rows at a time.

    The same as ``resize`` up to rounding, and exactly where all rows come at once.

    Args:
        at_once: how many values to hold; by default ``MAX_VALUES``.

    Yields:
        The rows, and their values (K, rows, W) in float32.
    """
    height, width = size
    rows_at_once = (at_once or MAX_VALUES) // (maps.shape[0] * width)
    if max(1, rows_at_once) >= height:
        yield slice(0, height), resize(maps[:, :].float()[None], size)[0]
        return
    source = (torch.arange(height, dtype=torch.float64) + 0.5) * maps.shape[1] / height - 0.5
    source = source.clamp(min=0)
    above = source.floor().long().clamp(max=maps.shape[1] - 1)
    below = (above + 1).clamp(max=maps.shape[1] - 1)
    weight = (source - above).float()
    weight = weight.to(maps.device)
    for part in parts(height, rows_at_once):
        first, last = int(above[part][0]), int(below[part][-1])
        held = maps[:, first : last + 1].float()
        ends = (held[:, (rows[part] - first).to(maps.device)] for rows in (above, below))
        rows = torch.lerp(*ends, weight[part, None])
        yield part, resize(rows[None], (rows.shape[1], width))[0]


def free_of_padding(valid: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which cells of a coarser grid hold no padding at all.

    Args:
        valid: (B, H, W) bool, False where the image is padding.
        grid: (h, w), at most (H, W).

    Returns:
        (B, h, w) bool.
    """
    padding = (~valid.bool())[:, None].float()
    return F.interpolate(padding, tuple(grid), mode="area")[:, 0] == 0
