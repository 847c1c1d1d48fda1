"""The CoSA network: a plain ViT from timm, two CAM classifiers and a LargeFOV decoder."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cosa.errors import UserError

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

# timm's prefix tokens in the order in which it concatenates them.
PREFIX_TOKENS = ("cls_token", "dist_token", "reg_token")


@dataclass
class NetworkOutput:
    """What one forward pass yields; (h, w) is the token grid, image size over patch size.

    All but the features is float32 under autocast, too.
    """

    logits: Tensor  # (B, C) class scores of the final tokens, before the sigmoid
    aux_logits: Tensor  # (B, C) class scores of the auxiliary tokens
    cam: Tensor  # (B, C, h, w) class activation map M, unbounded
    aux_cam: Tensor  # (B, C, h, w) auxiliary class activation map, unbounded
    seg: Tensor  # (B, C+1, h, w) segmentation logits, channel 0 is the background
    features: Tensor  # (B, D, h, w) final tokens, after the encoder's last LayerNorm


class LargeFOV(nn.Module):
    """Three bias-free convolutions with a large field of view: (B, D, h, w) to (B, K, h, w)."""

    def __init__(self, in_channels: int, out_channels: int, width: int = 512, dilation: int = 5):
        super().__init__()
        options = {"padding": dilation, "dilation": dilation, "bias": False}
        self.conv6 = nn.Conv2d(in_channels, width, 3, **options)
        self.conv7 = nn.Conv2d(width, width, 3, **options)
        self.conv8 = nn.Conv2d(width, out_channels, 1, bias=False)
        for conv in (self.conv6, self.conv7):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        nn.init.trunc_normal_(self.conv8.weight, std=0.01)  # starts near uniform probabilities

    def forward(self, features: Tensor) -> Tensor:
        hidden = F.relu(self.conv7(F.relu(self.conv6(features))))
        return in_full_precision(self.conv8, hidden)


class CoSANetwork(nn.Module):
    """The network of CoSA, online or assignment (Sec. 3 of the paper).

    Args:
        num_classes: number C of foreground classes.
        encoder: timm name of a plain ViT: ViT, DeiT, DINOv2 (``VisionTransformer``) or
            EVA-02, DINOv3 (``Eva``). It starts with random weights.
        encoder_options: further arguments of the timm model, such as ``patch_size``,
            ``embed_dim``, ``depth``, ``num_heads``, ``img_size`` (of the position embedding).
        aux_layer: the block whose raw output the auxiliary CAM reads; -3 is the third block
            from the end, 0 the first.
        aux_norm: apply a LayerNorm of its own to the auxiliary tokens.
        decoder_width: hidden channels of the LargeFOV decoder.
        decoder_dilation: dilation of its 3x3 convolutions.

    The classifiers start from a truncated normal with standard deviation 0.01 (scores near 0),
    the decoder's hidden layers from Kaiming's normal initialisation.

    Raises:
        UserError: the encoder or one of its options is unknown or does not fit.
    """

    def __init__(
        self,
        num_classes: int,
        encoder: str = "vit_base_patch16_224",
        encoder_options: Mapping[str, Any] | None = None,
        aux_layer: int = -3,
        aux_norm: bool = False,
        decoder_width: int = 512,
        decoder_dilation: int = 5,
    ):
        super().__init__()
        if num_classes < 1:
            raise UserError(f"a network needs at least one class, not {num_classes}")
        self.num_classes = num_classes
        self.encoder = build_encoder(encoder, encoder_options or {})
        self.patch_size: int = self.encoder.patch_embed.feat_ratio()
        depth = len(self.encoder.blocks)
        if not -depth <= aux_layer < depth:
            raise UserError(
                f"model.aux_layer={aux_layer} does not exist: {encoder} has {depth} blocks, "
                f"choose {-depth} to {depth - 1}"
            )
        self.aux_layer = aux_layer % depth
        width = self.encoder.embed_dim
        self.aux_norm = nn.LayerNorm(width, eps=1e-6) if aux_norm else nn.Identity()
        self.classifier = nn.Conv2d(width, num_classes, 1, bias=False)
        self.aux_classifier = nn.Conv2d(width, num_classes, 1, bias=False)
        for classifier in (self.classifier, self.aux_classifier):
            nn.init.trunc_normal_(classifier.weight, std=0.01)
        self.decoder = LargeFOV(width, num_classes + 1, decoder_width, decoder_dilation)
        self.activation_checkpointing = False
        """Keep no activations inside the encoder's blocks: the way back computes them again."""

    def forward(self, images: Tensor) -> NetworkOutput:
        """Class scores, CAMs and segmentation of a batch.

        Args:
            images: (B, 3, H, W) float, normalised with ImageNet's mean and standard deviation;
                H and W are multiples of ``patch_size``.

        Raises:
            ValueError: the size is not a multiple of the patch size.
        """
        features, aux_features = self.encode(images)
        return NetworkOutput(
            logits=pooled_scores(features, self.classifier),
            aux_logits=pooled_scores(aux_features, self.aux_classifier),
            cam=in_full_precision(self.classifier, features),
            aux_cam=in_full_precision(self.aux_classifier, aux_features),
            seg=self.decoder(features),
            features=features,
        )

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Final and auxiliary tokens of ``images`` (B, 3, H, W) as two (B, D, h, w) maps."""
        height, width = images.shape[-2:]
        patch = self.patch_size
        if height < 1 or width < 1 or height % patch or width % patch:
            raise ValueError(
                f"an image size of {height}x{width} is no multiple of the patch size {patch}: "
                "resize the images, or use cosa.predict.multi_scale, which takes any size"
            )
        encoder = self.encoder
        tokens, grid = embed(encoder, images)
        rope = rotary_embedding(encoder, grid)
        aux_tokens = tokens
        for index, block in enumerate(encoder.blocks):
            options = {} if rope is None else {"rope": rope[index]}
            if self.activation_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False, **options)
            else:
                tokens = block(tokens, **options)
            if index == self.aux_layer:
                aux_tokens = self.aux_norm(tokens)
        # timm moves the last LayerNorm behind the pooling (fc_norm) for some models, and puts an
        # identity in the other place; applied to every token, either is the final norm.
        tokens = encoder.fc_norm(encoder.norm(tokens))
        return to_map(tokens, grid), to_map(aux_tokens, grid)

    def freeze_position_embedding(self) -> None:
        """Exclude the absolute position embedding from training, if the encoder has one."""
        if self.encoder.pos_embed is not None:
            self.encoder.pos_embed.requires_grad_(False)

    def parameter_groups(
        self, lr: float, head_lr_factor: float = 10.0, weight_decay: float = 0.01
    ) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer.

        The encoder learns at ``lr``; classifiers, auxiliary norm and decoder at
        ``lr * head_lr_factor``. Biases, norms, layer scales, prefix tokens and the position
        embedding have no weight decay; frozen parameters are left out.

        Returns:
            Groups with ``name``, ``params``, ``lr`` (the peak value), ``lr_scale`` (1 or
            ``head_lr_factor``, for schedules) and ``weight_decay``; empty groups are left out.
        """
        groups: dict[str, dict[str, Any]] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            scale = 1.0 if name.startswith("encoder.") else head_lr_factor
            plain = parameter.ndim <= 1 or name.endswith(("_token", "pos_embed"))
            part = "encoder" if name.startswith("encoder.") else "heads"
            group = groups.setdefault(
                f"{part}_no_decay" if plain else part,
                {
                    "params": [],
                    "lr": lr * scale,
                    "lr_scale": scale,
                    "weight_decay": 0.0 if plain else weight_decay,
                },
            )
            group["params"].append(parameter)
        return [{"name": name, **group} for name, group in groups.items()]


def build_encoder(name: str, options: Mapping[str, Any]) -> nn.Module:
    """A timm ViT without a head, random weights, any input size; see ``CoSANetwork``."""
    reserved = sorted(set(options) & set(RESERVED_OPTIONS))
    if reserved:
        raise UserError(f"model.encoder_options.{reserved[0]} is set by the network: remove it")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise UserError(f"model.encoder={name} is not a model of timm {timm.__version__}{hint}")
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


def embed(encoder: nn.Module, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Patches of ``images`` with position embedding and prefix tokens, ready for the blocks.

    Returns:
        tokens (B, P + h*w, D) and the grid (h, w); P is the number of prefix tokens.
    """
    patches = encoder.patch_embed(images)  # (B, h, w, D) with timm's dynamic_img_size
    batch, grid = patches.shape[0], (patches.shape[1], patches.shape[2])
    patches = patches.flatten(1, 2)
    prefix = [getattr(encoder, name, None) for name in PREFIX_TOKENS]
    prefix = [token.expand(batch, -1, -1) for token in prefix if token is not None]
    position = encoder.pos_embed
    if position is not None:
        position = resize_position_embedding(position, encoder.patch_embed.grid_size, grid)
        # It has entries for the prefix tokens unless timm's no_embed_class is set.
        count = position.shape[1] - patches.shape[1]
        patches = patches + position[:, count:]
        if count:
            prefix = [torch.cat(prefix, dim=1) + position[:, :count]]
    tokens = encoder.pos_drop(torch.cat([*prefix, patches], dim=1))
    if hasattr(encoder, "norm_pre"):
        tokens = encoder.norm_pre(tokens)
    return tokens, grid


def resize_position_embedding(
    position: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Tensor:
    """Bicubic resize of a learnt position embedding; prefix entries are kept as they are.

    Without antialiasing, also when the grid shrinks: timm's own resize filters, in PyTorch with
    another cubic kernel even when it enlarges, and outputs then differ from the released
    programs' by some 3e-3.

    Args:
        position: (1, P + h*w, D).
        old_grid: its (h, w).
        new_grid: the wanted (h, w).

    Returns:
        (1, P + new_h*new_w, D), the same dtype; ``position`` itself if the grids are equal.
    """
    if tuple(old_grid) == tuple(new_grid):
        return position
    count = position.shape[1] - old_grid[0] * old_grid[1]
    prefix, patches = position[:, :count], position[:, count:]
    patches = patches.unflatten(1, old_grid).permute(0, 3, 1, 2).float()
    patches = F.interpolate(patches, new_grid, mode="bicubic", align_corners=False)
    patches = patches.flatten(2).transpose(1, 2).to(position.dtype)
    return torch.cat([prefix, patches], dim=1)


def rotary_embedding(encoder: nn.Module, grid: tuple[int, int]) -> list[Tensor] | None:
    """The rotary position embedding of each block for a token grid; None without one."""
    rope = getattr(encoder, "rope", None)
    if rope is None:
        return None
    embedding = rope.get_embed(shape=grid)
    if getattr(encoder, "rope_mixed", False):  # learnt for each block
        return list(embedding)
    return [embedding] * len(encoder.blocks)


def to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, P + h*w, D) tokens without their prefix as a (B, D, h, w) map."""
    patches = tokens[:, tokens.shape[1] - grid[0] * grid[1] :]
    return patches.transpose(1, 2).unflatten(2, grid)


def pooled_scores(features: Tensor, classifier: nn.Conv2d) -> Tensor:
    """(B, C) scores of the globally max-pooled features (B, D, h, w): pool, then classify."""
    return in_full_precision(classifier, features.amax(dim=(2, 3), keepdim=True)).flatten(1)


def in_full_precision(conv: nn.Conv2d, features: Tensor) -> Tensor:
    """``conv(features)`` in the precision of its weights, float32, under autocast too.

    Scores of 8 significant bits would tie, and thresholds on the CAMs would move in steps.
    """
    with torch.autocast(features.device.type, enabled=False):
        return conv(features.to(conv.weight.dtype))
