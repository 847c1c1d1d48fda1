"""What the network needs to know of an encoder: how its two maps are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Reader(ABC):
    """Reads the final and the auxiliary map of a timm model; it holds no weights itself.

    Where timm's ``encoder.set_grad_checkpointing()`` was called, no activations are kept inside
    the encoder's blocks: the way back computes them again.
    """

    stride: int
    """Side in pixels of a position of both maps: a ViT's patch size, a CNN's output stride."""
    width: int
    """Channels of the final map."""
    aux_width: int
    """Channels of the auxiliary map."""

    @abstractmethod
    def read(self, encoder: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Both maps, (B, width, h, w) and (B, aux_width, h, w).

        Args:
            encoder: the model that the reader was made for, or a copy of it.
            images: (B, 3, H, W), normalised, H = h * stride, W = w * stride.
        """
