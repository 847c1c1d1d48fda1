"""Encoders by their timm name, without a head and with random weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import timm
from timm.models import group_parameters
from timm.models.efficientnet import EfficientNet
from timm.models.eva import Eva
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from cosa.core.errors import UserError, did_you_mean, one_line
from cosa.encoders.depthwise import quicken
from cosa.encoders.options import check_options
from cosa.encoders.reader import Reader
from cosa.encoders.stages import LONGEST, StageReader
from cosa.encoders.vit import BlockReader

# Of a model of timm's list, perhaps with a tag. timm also takes "hf-hub:..." and "local-dir:...",
# which make it read what is there.
_NAME = re.compile(r"\w+(\.[\w-]+)?", re.ASCII)

AUTOMATIC_STRIDE = 16
"""Of an encoder that can be dilated, where none is asked for: that of the paper's ViT-B/16."""

# What timm raises for options that make no sense, such as a width that the heads do not divide.
BUILD_ERRORS = (
    TypeError, AssertionError, ValueError, RuntimeError, ArithmeticError, LookupError,
    AttributeError,
)


def build_encoder(name: str, options: Mapping[str, Any], output_stride: int = 0) -> nn.Module:
    """A timm model without a head, random weights, any input size.

    Args:
        name: of a plain ViT, or of a network of stages.
        options, output_stride: see ``CoSANetwork``.

    Raises:
        UserError: timm has no such model or cannot build it so, or an option is none of an
            encoder's shape. Nothing is read from a file or the network.
    """
    check_options(options)
    if not _NAME.fullmatch(name) or not timm.is_model(name):
        raise UserError(f"model.encoder={name} is not a model of timm {timm.__version__}"
                        f"{did_you_mean(name.split('.')[0], timm.list_models())}")
    encoder = _create(name, options, output_stride)
    if is_plain_vit(encoder):
        encoder.attn_pool = None  # some models pool with attention; the CAMs never do
    elif isinstance(encoder, EfficientNet | MobileNetV3):
        _show_all_stages(encoder)
    quicken(encoder)
    return encoder


def _show_all_stages(encoder: nn.Module) -> None:
    """End with the last stage, and count all of them, the stem as the first.

    What follows is a convolution that widens the map for a classifier; timm's ``features_only``
    leaves it out, too. Of the stages timm shows those alone after which the resolution changes.
    """
    if isinstance(encoder, EfficientNet):
        encoder.num_features = encoder.conv_head.in_channels
        encoder.conv_head, encoder.bn2 = nn.Identity(), nn.Identity()
    encoder.stage_ends = list(range(len(encoder.blocks) + 1))


def first_layers(encoder: nn.Module, count: int) -> list[nn.Parameter]:
    """The weights of the first layers: of the stem, then of whole stages or of a ViT's blocks.

    Raises:
        UserError: there are not so many, or timm does not say which they are.
    """
    if not hasattr(encoder, "group_matcher"):
        raise UserError(f"timm {timm.__version__} does not say which layers of this encoder, a "
                        f"{type(encoder).__name__}, come first: set model.freeze_layers=0")
    matcher = encoder.group_matcher(coarse=True)
    groups = list(group_parameters(encoder, matcher, reverse=False).values())
    if count >= len(groups):
        raise UserError(f"model.freeze_layers={count} leaves nothing to train of an encoder of "
                        f"{len(groups)} layers, the stem among them: choose 0 to {len(groups) - 1}")
    named = dict(encoder.named_parameters())
    return [named[name] for names in groups[:count] for name in names]


def is_plain_vit(encoder: nn.Module) -> bool:
    """Whether a timm model is one of tokens on one grid, from which the maps are read by block."""
    return isinstance(encoder, VisionTransformer | Eva)


def choose_reader(
    encoder: nn.Module,
    name: str,
    aux_layer: int = -3,
    aux_stage: int = -2,
    output_stride: int = 0,
    early_layer: int | None = None,
    fine_stride: int = 0,
) -> Reader:
    """How the maps of a model of :func:`build_encoder` are read.

    Args:
        early_layer: see ``CoSANetwork``; None if the early map is not to be read.
        fine_stride: of the finer map; 0 if none is to be read.

    Raises:
        UserError: it yields no maps, has no such block or stage, or is of another stride.
    """
    vit = is_plain_vit(encoder)
    aux = aux_layer if vit else aux_stage
    early = aux if early_layer is None else early_layer  # not read: any will do
    if vit and fine_stride:
        raise UserError(f"model.decoder_stride={fine_stride} cannot be had of {name}: all blocks "
                        "of a plain ViT have one grid; set it to 0, or choose a network of stages")
    reader: Reader = (BlockReader.of(encoder, name, aux, early) if vit else
                      StageReader.of(encoder, name, aux, early, fine_stride))
    if output_stride and reader.stride != output_stride:
        raise UserError(f"model.output_stride={output_stride} cannot be had of {name}, whose "
                        f"stride is {reader.stride}: set it to that, or to 0 for the encoder's own")
    return reader


def _create(name: str, options: Mapping[str, Any], output_stride: int) -> nn.Module:
    """The model, with the first of the options for any size and for the stride that it knows."""
    for own in (
        {"strict_img_size": False},  # Swin, which may also swallow the next one without a word
        {"dynamic_img_size": True},  # plain ViTs
        {"output_stride": output_stride or AUTOMATIC_STRIDE},
        {},
    ):
        try:
            return timm.create_model(name, pretrained=False, num_classes=0, **own, **options)
        except BUILD_ERRORS as error:
            unknown = isinstance(error, TypeError) and any(key in str(error) for key in own)
            # Where nobody asked for a stride, one that is impossible is no fault.
            automatic = "output_stride" in own and not output_stride
            if unknown or automatic:
                continue
            raise UserError(
                f"timm cannot build model.encoder={name} with encoder_options={dict(options)}"
                f"{f' and output_stride={output_stride}' if output_stride else ''}: "
                f"{one_line(error, LONGEST)}; choose options that it has"
            ) from error
    raise AssertionError("unreachable: the last attempt has no option of its own")
