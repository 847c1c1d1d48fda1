"""CoSA: semantic segmentation from image-level labels, in a single stage."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cosa.checkpoint import TrainedNetwork

__version__ = "0.1.0"

# PyTorch reads it when it is imported, which for the programs is later: what an Apple GPU cannot do
# is done by the CPU then.
if sys.platform == "darwin":
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")


def load(path: str, device: str = "cpu") -> TrainedNetwork:
    """Load trained weights for inference, of a file or a model on the hub ("hf-hub:user/name").

    See :func:`cosa.checkpoint.load`.
    """
    from cosa.checkpoint import load as load_network

    return load_network(path, device)
