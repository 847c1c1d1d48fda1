"""CoSA: semantic segmentation from image-level labels, in a single stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cosa.checkpoint import TrainedNetwork

__version__ = "0.1.0"


def load(path: str, device: str = "cpu") -> TrainedNetwork:
    """Load trained weights for inference, of a file or a model on the hub ("hf-hub:user/name").

    See :func:`cosa.checkpoint.load`.
    """
    from cosa.checkpoint import load as load_network

    return load_network(path, device)
