"""Networks compiled by torch.compile, with the plain one to fall back on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cosa.checkpoint import one_line
from cosa.data.datasets import note
from cosa.network import NetworkOutput


class Compiled:
    """Calls a network through torch.compile, or as it is once that has failed.

    It is compiled anew for each size of image, at the first one of that size; that takes a minute
    or so. Trainings see few sizes: one per scale of the teacher. Weights stay in the network.

    Args:
        network: a ``CoSANetwork`` or an ``AssignmentNetwork``.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.patch_size: int = network.patch_size
        self._compiled = torch.compile(network, dynamic=False)

    def __call__(self, images: Tensor) -> NetworkOutput:
        """The network's output for images (B, 3, H, W).

        Raises:
            OutOfMemoryError: the device's memory is too small.
        """
        if self._compiled is not None:
            try:
                return self._compiled(images)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # compilers fail in many ways, none of which is ours
                note(f"torch.compile failed, going on without it ({one_line(error)[:200]}); "
                     "train.compile=false avoids the attempt")
                self._compiled = None
        return self.network(images)
