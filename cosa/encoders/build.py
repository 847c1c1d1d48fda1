"""Encoders by their timm name, without a head and with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from cosa.core.errors import UserError, did_you_mean

# What the network itself decides about the encoder; the rest of timm's options is the user's.
RESERVED_OPTIONS = (
    "num_classes",
    "in_chans",
    "dynamic_img_size",
    "dynamic_img_pad",
    "patch_drop_rate",
    "pretrained",
)

# What timm raises for options that make no sense, such as a width that the heads do not divide.
BUILD_ERRORS = (
    TypeError, AssertionError, ValueError, RuntimeError, ArithmeticError, LookupError,
    AttributeError,
)


def build_encoder(name: str, options: Mapping[str, Any]) -> nn.Module:
    """A timm ViT without a head, random weights, any input size; see ``CoSANetwork``."""
    reserved = sorted(set(options) & set(RESERVED_OPTIONS))
    if reserved:
        raise UserError(f"model.encoder_options.{reserved[0]} is set by the network: remove it")
    if not timm.is_model(name):
        raise UserError(f"model.encoder={name} is not a model of timm {timm.__version__}"
                        f"{did_you_mean(name.split('.')[0], timm.list_models())}")
    try:
        encoder = timm.create_model(
            name, pretrained=False, num_classes=0, dynamic_img_size=True, **options
        )
    except BUILD_ERRORS as error:
        raise UserError(
            f"timm cannot build model.encoder={name} with encoder_options={dict(options)}: "
            f"{error}; choose a plain ViT such as vit_base_patch16_224 and options that it has"
        ) from error
    if not isinstance(encoder, (VisionTransformer, Eva)):
        raise UserError(
            f"model.encoder={name} is a {type(encoder).__name__}, not a plain ViT: choose one "
            "such as vit_base_patch16_224, deit_small_patch16_224 or vit_small_patch14_dinov2"
        )
    encoder.attn_pool = None  # some models pool with attention; the CAMs never do
    return encoder
