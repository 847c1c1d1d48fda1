"""From maps on the network's grid to labels of pixels, in memory that images do not blow up."""

from __future__ import annotations

import torch
from torch import Tensor

from cosa.cam import strips
from cosa.core.tensors import in_float64
from cosa.targets import cam_pseudo_labels

Size = tuple[int, int]
"""(height, width)"""


@torch.inference_mode()
def argmax_at_size(scores: Tensor, size: Size) -> Tensor:
    """Argmax of scores (K, h, w), K <= 256, resized to ``size``: (H, W) uint8 on the CPU."""
    mask = torch.empty(size, dtype=torch.uint8)
    for part, wide in strips(scores, size):
        # Not argmax(), which is slower across the channels on the CPU.
        mask[part] = wide.max(dim=0).indices.byte().cpu()
    return mask


@torch.inference_mode()
def argmax_and_probability(
    scores: Tensor, size: Size, passes: int | None, of_pixels: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """``argmax_at_size``, with how much of the image each label has, and how surely.

    Args:
        scores: (K, h, w) logits summed over ``passes``, or probabilities.
        size: (H, W).
        passes: number of passes in the sum; None for probabilities.
        of_pixels: (H, W) on the CPU, filled with the probability of each pixel's label, if given.

    Returns:
        The mask, the pixels of each label (K,) int64, and the mean probability of each label
        over its pixels (K,) float64, NaN for a label without pixels; all on the CPU. For logits
        the probability is the softmax of their mean over the passes.
    """
    mask = torch.empty(size, dtype=torch.uint8)
    pixels = torch.zeros(len(scores), dtype=torch.int64)
    total = torch.zeros(len(scores), dtype=torch.float64)
    for part, wide in strips(scores, size):
        best = wide.max(dim=0)
        sure = best.values
        if passes is not None:
            sure = ((wide - best.values) / passes).exp().sum(dim=0).reciprocal()
        flat = best.indices.flatten()
        mask[part] = best.indices.byte().cpu()
        if of_pixels is not None:
            of_pixels[part] = sure.cpu()
        sure = in_float64(sure.flatten())
        pixels += torch.bincount(flat, minlength=len(scores)).cpu()
        total += torch.bincount(flat.to(sure.device), sure, minlength=len(scores)).cpu()
    return mask, pixels, total / pixels


@torch.inference_mode()
def pseudo_labels_at_size(cam: Tensor, size: Size, threshold: float) -> Tensor:
    """CAM pseudo-labels (Eq. 3 of CoSA) at the size of the image.

    Args:
        cam: (N, h, w) in [0, 1], of the classes that the image holds; N may be 0.
        size: (H, W).
        threshold: xi in [0, 1].

    Returns:
        (H, W) uint8 on the CPU: 0 background, n the n-th map.
    """
    labels = torch.zeros(size, dtype=torch.uint8)
    if len(cam):
        for part, wide in strips(cam, size):
            labels[part] = cam_pseudo_labels(wide[None], threshold)[0][0].byte().cpu()
    return labels
