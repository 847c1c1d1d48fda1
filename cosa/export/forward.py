"""A trained network as a program that exporters master, of any batch size and image size."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cosa.encoders.vit import PREFIX_TOKENS, BlockReader
from cosa.network import CoSANetwork

INPUT = "images"
INPUTS = {INPUT: "RGB images (batch, 3, height, width) in [0, 1], normalised inside"}
INPUT_RANGE = (0.0, 1.0)
OUTPUTS = {
    "seg": "segmentation logits (batch, classes + 1, rows, columns), channel 0: background",
    "cam": "class activation map (batch, classes, rows, columns), unbounded",
    "aux_cam": "auxiliary class activation map, like cam",
    "logits": "class scores (batch, classes), before the sigmoid",
    "aux_logits": "auxiliary class scores, like logits",
}
"""Fields of ``NetworkOutput`` that are exported, in this order; rows and columns: positions, of the
segmentation those of its own grid."""

MIN_PATCHES, MAX_PATCHES = 2, 2048
"""Per side. Exporters treat sides of length 1 as a case of its own."""

MAX_BATCH = 65535
"""Some versions of PyTorch want a bound, whichever."""


class PositionedPatches(nn.Module):
    """A patch embedding that adds the position embedding, resized whatever the grid.

    ``cosa.encoders.vit.embed`` resizes unless the grid is the embedding's own, which an exporter
    would turn into a condition on the image size. Resizing to the same grid changes no value.

    Args:
        patch_embed: gives (B, h, w, D).
        position: (1, h0*w0, D), without entries for prefix tokens.
    """

    def __init__(self, patch_embed: nn.Module, position: Tensor):
        super().__init__()
        self.patch_embed = patch_embed
        grid = position.unflatten(1, patch_embed.grid_size).permute(0, 3, 1, 2)
        self.register_buffer("position", grid.float().contiguous())

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images)
        grid = (patches.shape[1], patches.shape[2])
        position = F.interpolate(self.position, grid, mode="bicubic", align_corners=False)
        return patches + position.permute(0, 2, 3, 1).to(patches.dtype)


class WholeSteps(nn.Module):
    """A convolution with TensorFlow's "same" padding, of inputs that are multiples of its stride.

    timm computes the padding from each input's size. It is the same for all these, and images are
    multiples of all strides together.
    """

    def __init__(self, convolution: Conv2dSame):
        super().__init__()
        self.convolution = convolution
        self.padding: list[int] = []  # left, right, top, bottom
        for kernel, stride, dilation in zip(
            convolution.kernel_size[::-1], convolution.stride[::-1], convolution.dilation[::-1],
            strict=True,
        ):
            both = max((kernel - 1) * dilation + 1 - stride, 0)
            self.padding += [both // 2, both - both // 2]

    def forward(self, features: Tensor) -> Tensor:
        conv = self.convolution
        return F.conv2d(F.pad(features, self.padding), conv.weight, conv.bias, conv.stride, 0,
                        conv.dilation, conv.groups)


class ExportedForward(nn.Module):
    """The forward pass of a copy of ``network`` with the maps ``OUTPUTS`` as a dictionary."""

    def __init__(self, network: CoSANetwork):
        super().__init__()
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        encoder = self.network.encoder
        if not isinstance(network.reader, BlockReader):
            _fix_padding(encoder)
        elif encoder.pos_embed is not None:
            _resize_always(encoder)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        output = self.network(images)
        return {name: getattr(output, name) for name in OUTPUTS}


def _fix_padding(encoder: nn.Module) -> None:
    """Put ``WholeSteps`` in the place of each "same" convolution."""
    for module in list(encoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, Conv2dSame):
                setattr(module, name, WholeSteps(child))


def _resize_always(encoder: nn.Module) -> None:
    """Put ``PositionedPatches`` in the place of a ViT's patch and position embeddings."""
    position = encoder.pos_embed
    height, width = encoder.patch_embed.grid_size
    prefix, patches = position.split([position.shape[1] - height * width, height * width], 1)
    start = 0
    for name in PREFIX_TOKENS if prefix.shape[1] else ():
        token = getattr(encoder, name, None)
        if token is not None:
            part = prefix[:, start : start + token.shape[1]]
            setattr(encoder, name, nn.Parameter(token + part, requires_grad=False))
            start += token.shape[1]
    encoder.patch_embed = PositionedPatches(encoder.patch_embed, patches)
    encoder.pos_embed = None


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings and notes of the exporters, which are meant for their developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def trace(network: CoSANetwork, size: int | None) -> ExportedProgram:
    """The network as a program of any batch size, of one image size or of all (``size`` None).

    Raises:
        ValueError: a Swin is to be traced for all sizes, which had no end within ten minutes.
    """
    if size is None and isinstance(network.encoder, SwinTransformer):
        raise ValueError("shifted windows take too long to trace; --size chooses one size")
    patch = network.stride
    shape: dict[int, Any] = {0: Dim("batch", min=1, max=MAX_BATCH)}
    height = width = size
    if size is None:
        # All different, and no number that occurs elsewhere, so that no two are taken for one.
        height, width = 5 * patch, 7 * patch
        shape[2] = patch * Dim("rows", min=MIN_PATCHES, max=MAX_PATCHES)
        shape[3] = patch * Dim("columns", min=MIN_PATCHES, max=MAX_PATCHES)
    images = torch.zeros(2, 3, height, width)
    with quiet():
        return torch.export.export(
            ExportedForward(network), (images,), dynamic_shapes={INPUT: shape}, strict=False
        )
