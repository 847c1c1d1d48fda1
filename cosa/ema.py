"""The assignment network: an exponential moving average that makes the pseudo-labels."""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from cosa.network import CoSANetwork, NetworkOutput

STATISTICS = (".running_mean", ".running_var")
"""Ends of the names of a batch norm's moving statistics."""


class AssignmentNetwork(nn.Module):
    """Frozen moving average of the online network, always in evaluation mode.

    It starts as a copy of ``online``. ``state_dict`` and ``load_state_dict`` have the keys of
    the plain network, so that checkpoints of both are interchangeable; the plain network is
    ``.network``.

    Args:
        online: the online network.
        dtype: that of matrix products under the autocast in which it will be called, if there is
            one: what autocast would cast for every pass is then kept cast, see :meth:`refresh`.
    """

    def __init__(self, online: CoSANetwork, dtype: torch.dtype | None = None):
        super().__init__()
        self.network = copy.deepcopy(online)
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        # No part of the module: it has no weights of its own.
        self._cast = None if dtype is None else (_Cast(self.network, dtype),)
        self.eval()

    @property
    def called(self) -> nn.Module:
        """What passes under autocast may go through, good since the last :meth:`refresh`."""
        return self.network if self._cast is None else self._cast[0].network

    def refresh(self) -> None:
        """Cast the weights that were moved since the last time."""
        if self._cast is not None:
            self._cast[0].refresh()

    @property
    def num_classes(self) -> int:
        return self.network.num_classes

    @property
    def stride(self) -> int:
        return self.network.stride

    @torch.no_grad()
    def forward(self, images: Tensor) -> NetworkOutput:
        """The copy's output for images (B, 3, H, W) in [0, 1], without any gradient."""
        if not torch.is_autocast_enabled(images.device.type):
            return self.network(images)
        self.refresh()
        return self.called(images)

    def train(self, mode: bool = True) -> AssignmentNetwork:
        """Stay in evaluation mode: pseudo-labels are made without dropout, whoever asks."""
        return super().train(False)

    @torch.no_grad()
    def update(self, online: CoSANetwork, momentum: float) -> None:
        """One step of the average: ``theta <- momentum * theta + (1 - momentum) * online``.

        The moving statistics of batch norms are averaged like the weights they belong to; all
        other buffers are copied.

        Args:
            online: the trained network, of the same architecture and on the same device.
            momentum: in [0, 1]; 0 copies, 1 keeps the average as it is.

        Raises:
            ValueError: the momentum is outside [0, 1], or the architectures differ.
        """
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"the EMA momentum must lie in [0, 1], not {momentum}")
        (mine, my_rest), (theirs, rest) = _parts(self.network), _parts(online)
        if [p.shape for p in mine] != [p.shape for p in theirs]:
            raise ValueError("the online network has another architecture than the average")
        # Fused calls: a loop over the tensors costs more than the arithmetic.
        torch._foreach_lerp_(mine, theirs, 1.0 - momentum)
        torch._foreach_copy_(my_rest, rest)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return self.network.load_state_dict(state_dict, *args, **kwargs)


PRODUCTS = (nn.Linear, nn.Conv2d, Conv2dSame)
"""Layers whose weights nothing but a product reads; layers that derive from them may scale them."""


class _Cast:
    """A copy of a network whose matrix products have weights of a lower precision.

    All other weights, and those of classifiers and scores, which are products in full precision
    under autocast, too, are the network's own.
    """

    def __init__(self, network: CoSANetwork, dtype: torch.dtype) -> None:
        self.network = copy.deepcopy(network).eval()
        self._sources: list[Tensor] = []
        self._casts: list[Tensor] = []
        self._versions: list[int] | None = None
        full = {network.classifier, network.aux_classifier, *network.decoder.scoring}
        pairs = zip(network.modules(), self.network.modules(), strict=True)
        for source, module in pairs:
            lower = type(source) in PRODUCTS and source not in full
            for name, weight in source._parameters.items():
                if weight is None:
                    continue
                if lower:
                    cast = nn.Parameter(weight.to(dtype), requires_grad=False)
                    self._sources.append(weight)
                    self._casts.append(cast)
                    module._parameters[name] = cast
                else:
                    module._parameters[name] = weight
            for name, buffer in source._buffers.items():
                module._buffers[name] = buffer

    @torch.no_grad()
    def refresh(self) -> None:
        versions = [weight._version for weight in self._sources]
        if versions != self._versions:
            torch._foreach_copy_(self._casts, self._sources)
            self._versions = versions


def _parts(network: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """What is averaged, weights and moving statistics, and the buffers that are copied."""
    averaged, copied = list(network.parameters()), []
    for name, buffer in network.named_buffers():
        (averaged if name.endswith(STATISTICS) else copied).append(buffer)
    return averaged, copied


def ema_momentum(iteration: int, momentum: float, ramp: bool = False) -> float:
    """The momentum of the average after a step.

    Args:
        iteration: of the step, counted from 0.
        momentum: in [0, 1], of a long training.
        ramp: min(momentum, (1 + t) / (10 + t)) at iteration t: in short trainings the average
            must not be of the random heads that it began with.
    """
    return min(momentum, (1 + iteration) / (10 + iteration)) if ramp else momentum
