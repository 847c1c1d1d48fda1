"""Mean and standard deviation of the colours that an encoder's weights were trained with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_pretrained_cfg
from torch import Tensor

from cosa.core.errors import UserError

Colour = tuple[float, float, float]
"""Red, green and blue, 1 being full."""

IMAGENET: tuple[Colour, Colour] = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
"""Mean and deviation of ImageNet, which the released programs take whatever their encoder."""


def per_channel(colour: Colour) -> Tensor:
    """(3, 1, 1) float32, to be taken from or divide images (..., 3, H, W)."""
    return torch.tensor(colour, dtype=torch.float32)[:, None, None]


def resolve(normalization: str | Sequence[Sequence[float]], encoder: str) -> tuple[Colour, Colour]:
    """Mean and standard deviation of RGB in [0, 1] that ``model.normalization`` stands for.

    Args:
        normalization: "encoder": what timm says of the weights of that name, ImageNet's where it
            knows none of that name; "imagenet"; or mean and deviation themselves, three numbers
            each.
        encoder: a timm name, with or without tag; without, timm's default tag is meant.

    Raises:
        UserError: it is none of these, or a deviation is not above 0.
    """
    if normalization == "imagenet":
        return IMAGENET
    if normalization == "encoder":
        known = get_pretrained_cfg(encoder, allow_unregistered=True)
        if known is None or not known.mean or not known.std:
            return IMAGENET
        return tuple(known.mean), tuple(known.std)
    numbers = not isinstance(normalization, str) and [len(part) for part in normalization] == [3, 3]
    if not numbers or not min(normalization[1]) > 0:
        raise UserError(f"model.normalization={normalization!r} is none: use encoder, imagenet, "
                        "or mean and deviation, three numbers each, the latter above 0")
    mean, deviation = normalization
    return tuple(mean), tuple(deviation)
