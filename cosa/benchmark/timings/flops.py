"""Parameters and multiply-adds of a network, counted by fvcore with attention included.

Multiply-adds (MACs) are those of matrix products, convolutions and attention; one is two FLOPs.
Norms, activations, softmax and resizing are left out, as they usually are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cosa.network import CoSANetwork
from cosa.predict import scaled_size

NO_PRODUCTS = ("layer_norm", "batch_norm", "group_norm", "instance_norm", "adaptive_avg_pool2d",
               "upsample_bilinear2d", "upsample_nearest2d")
"""Operations that fvcore counts by default."""


@dataclass(frozen=True)
class Count:
    """The size of a network and the work of some of its forward passes."""

    parameters: int
    macs: int  # of the whole network
    encoder_macs: int  # of the encoder alone, without classifiers and decoder

    @property
    def flops(self) -> int:
        """Floating point operations: a multiplication and an addition per MAC."""
        return 2 * self.macs


def count(network: CoSANetwork, image_size: int | tuple[int, int], batch: int = 1) -> Count:
    """Parameters and multiply-adds of one forward pass.

    One image passes the network for it; the work is proportional to the batch.

    Args:
        network: on any device; it is left as it is.
        image_size: side of a square or (height, width), multiples of the stride.
        batch: images in the pass.

    Raises:
        ValueError: the size is not a multiple of the stride.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    device = next(network.parameters()).device
    macs = _macs_by_module(network, torch.zeros(1, 3, height, width, device=device))
    return Count(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        macs=batch * macs[""],
        encoder_macs=batch * macs["network.encoder"],
    )


def count_multi_scale(
    network: CoSANetwork,
    image_size: int | tuple[int, int],
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    batch: int = 1,
) -> Count:
    """The same for :func:`cosa.predict.multi_scale`: the sum over scales and flips.

    Args:
        network: as for :func:`count`.
        image_size: side or (height, width) in pixels, of any size: each scale is rounded to
            whole positions as the prediction does.
        scales: factors of the image size.
        flip: whether mirrored images are seen, too.
        batch: images per prediction.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    passes = [
        count(network, scaled_size(size, scale, network.stride), batch * (1 + flip))
        for scale in scales
    ]
    return Count(
        parameters=passes[0].parameters,
        macs=sum(one.macs for one in passes),
        encoder_macs=sum(one.encoder_macs for one in passes),
    )


def attention_macs(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Handle of fvcore for fused attention: queries by keys, and the weights by the values.

    ``inputs`` are values of a traced graph: queries (..., N, d), keys (..., S, d), values
    (..., S, e); the result is (..., N, e).
    """
    queries, keys, values = (tensor.type().sizes() for tensor in inputs[:3])
    return math.prod(queries[:-1]) * keys[-2] * (queries[-1] + values[-1])


def no_macs(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Handle of fvcore for what it counts by default, yet is no multiply-add."""
    return 0


class _TupleForward(nn.Module):
    """The network with a tuple of tensors as its output, which is what tracing wants."""

    def __init__(self, network: CoSANetwork):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        output = self.network(images)
        return output.seg, output.cam, output.aux_cam, output.logits, output.aux_logits


@torch.no_grad()
def _macs_by_module(network: CoSANetwork, images: Tensor) -> dict[str, int]:
    """Multiply-adds of each module, names after "network.", and of all under ""."""
    with warnings.catch_warnings():
        # PyTorch's, about tracing and about functions that fvcore compiles when imported.
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(_TupleForward(network), images)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.set_op_handle("aten::scaled_dot_product_attention", attention_macs)
        for name in NO_PRODUCTS:
            analysis.set_op_handle(f"aten::{name}", no_macs)
        return {name: int(macs) for name, macs in analysis.by_module().items()}
