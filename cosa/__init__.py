"""CoSA: semantic segmentation from image-level labels, in a single stage."""

from __future__ import annotations

__version__ = "0.1.0"


def load(path: str, device: str = "cpu"):
    """Load trained weights for inference; see :func:`cosa.checkpoint.load`."""
    from cosa.checkpoint import load as load_network

    return load_network(path, device)
