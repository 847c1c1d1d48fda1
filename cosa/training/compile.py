"""Networks compiled by torch.compile, with the plain one to fall back on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cosa.core.errors import one_line
from cosa.core.terminal import note
from cosa.network import NetworkOutput


class Compiled:
    """Calls a network through torch.compile, or as it is once that has failed.

    It is compiled anew for each size of image, at the first one of that size, which takes its time.
    Trainings see few sizes: one per scale of the teacher. Weights stay in the network.

    Args:
        network: a ``CoSANetwork`` or an ``AssignmentNetwork``.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.stride: int = network.stride
        self._compiled = torch.compile(network, dynamic=False)
        self._tried: set[torch.Size] = set()

    def __call__(self, images: Tensor) -> NetworkOutput:
        """The network's output for images (B, 3, H, W).

        Raises:
            OutOfMemoryError: the device's memory is too small.
        """
        if self._compiled is not None:
            try:
                self._try_backward(images)
                return self._compiled(images)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # compilers fail in many ways, none of which is ours
                note(f"torch.compile failed, going on without it ({one_line(error)}); "
                     "train.compile=false avoids the attempt")
                self._compiled = None
        return self.network(images)

    def _try_backward(self, images: Tensor) -> None:
        """Go backward once for each size, so that a compiler that fails there fails here.

        PyTorch compiles the backward pass when it is first called for. The gradients are let go,
        and dropout draws afterwards what it would have drawn.
        """
        if not torch.is_grad_enabled() or images.shape in self._tried:
            return
        weights = [p for p in self.network.parameters() if p.requires_grad]
        gpus = [images.device] if images.is_cuda else []
        with torch.random.fork_rng(gpus):
            output = self._compiled(images)
            maps = [value for value in vars(output).values()
                    if value is not None and value.requires_grad]
            torch.autograd.grad(sum(value.float().sum() for value in maps), weights,
                                allow_unused=True)
        self._tried.add(images.shape)
