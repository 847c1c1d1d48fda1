"""Small operations on tensors that losses share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Below this norm a vector has no direction to speak of; its cosine with anything is taken as 0.
_MIN_NORM = 1e-6


def directions(vectors: Tensor, dim: int) -> Tensor:
    """Scale vectors along ``dim`` to length 1; those of no length become 0, without gradient."""
    norm = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    usable = norm > _MIN_NORM
    return torch.where(usable, vectors / torch.where(usable, norm, 1), 0)


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor, most often a small one of the CPU, on ``device``.

    The host does not wait for the work that a CUDA device has still to do, as it would for a
    copy of memory that is not page-locked.
    """
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Check an argument.

    Raises:
        ValueError: the tensor called ``name`` has another shape.
    """
    if tensor.shape != torch.Size(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")


def in_float64(tensor: Tensor) -> Tensor:
    """The tensor in float64, on the CPU where its device has no such numbers, as Apple's GPUs."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or as it is where it is float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def in_full_precision(conv: nn.Conv2d, features: Tensor) -> Tensor:
    """``conv(features)`` in the precision of its weights, float32, under autocast too.

    Scores of 8 significant bits would tie, and thresholds on the CAMs would move in steps.
    """
    with torch.autocast(features.device.type, enabled=False):
        return conv(features.to(conv.weight.dtype))


def present_index(image_labels: Tensor) -> Tensor:
    """The classes that each image holds, in ascending order, then others up to K >= 1 places.

    Args:
        image_labels: (B, C) of any dtype, positive means present.

    Returns:
        (B, K) int64; K is the most classes that an image of the batch holds, at least 1.
    """
    present = image_labels > 0
    most = max(1, int(present.sum(dim=1).max()))
    return present.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
