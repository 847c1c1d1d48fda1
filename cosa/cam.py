"""Class activation maps: scaling to [0, 1] and filtering by image-level labels."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or as it is where it is float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def normalize(cam: Tensor) -> Tensor:
    """Min-max scale every map to [0, 1], per image and class.

    Args:
        cam: (..., H, W) floating-point activations of any range, usually (B, C, H, W).

    Returns:
        A tensor of the same shape and dtype; a map without any variation becomes all 0.
    """
    wide = at_least_float32(cam)  # in half precision the span itself could overflow
    low = wide.amin(dim=(-2, -1), keepdim=True)
    span = wide.amax(dim=(-2, -1), keepdim=True) - low
    scaled = (wide - low) / span.clamp_min(torch.finfo(wide.dtype).tiny)
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
