"""What the network needs to know of an encoder: how its maps are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from cosa.core.errors import UserError


class Features(NamedTuple):
    """What is read of a batch of images; all but ``fine`` on one grid."""

    final: Tensor
    """(B, width, h, w)"""
    aux: Tensor
    """(B, aux_width, h, w)"""
    early: Tensor | None
    """(B, D, h, w) of ``early_layer``; None where it was not asked for."""
    fine: Tensor | None = None
    """(B, fine_width, h', w') of the stage of ``fine_stride``; None where there is no such."""


def check_layers(name: str, count: int, kind: str, **layers: int) -> None:
    """Check that a model has the layers that are to be read.

    Args:
        name: of the model.
        count: how many layers it has.
        kind: what they are, such as "blocks".
        layers: key of the section ``model`` -> index, negative: counted from the end.

    Raises:
        UserError: there is no such layer.
    """
    for key, layer in layers.items():
        if not -count <= layer < count:
            raise UserError(f"model.{key}={layer} does not exist: {name} has {count} {kind}, "
                            f"choose {-count} to {count - 1}")


@dataclass(frozen=True)
class Reader(ABC):
    """Reads the maps of a timm model; it holds no weights itself.

    Where timm's ``encoder.set_grad_checkpointing()`` was called, no activations are kept inside
    the encoder's blocks: the way back computes them again.
    """

    stride: int
    """Side in pixels of a position of all maps: a ViT's patch size, a CNN's output stride."""
    width: int
    """Channels of the final map."""
    aux_width: int
    """Channels of the auxiliary map."""
    early_layer: int
    """Index, from 0, of the block or stage that the early map is of."""
    fine_width: int
    """Channels of the finer map; 0 where none is read."""
    fine_stride: int
    """Side in pixels of its positions, a part of ``stride``; ``stride`` where none is read."""

    @abstractmethod
    def read(self, encoder: nn.Module, images: Tensor, early: bool = False) -> Features:
        """The maps of a batch.

        Args:
            encoder: the model that the reader was made for, or a copy of it.
            images: (B, 3, H, W), normalised, H = h * stride, W = w * stride.
            early: whether the early map is wanted, too.
        """
