"""Trained networks in files, read without running any code from them.

``files``: written whole or not at all, read as data; ``networks``: a network with what inference
needs beside its weights; ``released``: the checkpoints of the authors' program.
"""

from cosa.checkpoint.files import DamagedError, holds, read, save, verify
from cosa.checkpoint.networks import (
    TrainedNetwork,
    build_network,
    check_finite,
    describe,
    load,
    save_weights,
    shareable,
)

__all__ = [
    "DamagedError", "TrainedNetwork", "build_network", "check_finite", "describe",
    "holds", "load", "read", "save", "save_weights", "shareable", "verify",
]
