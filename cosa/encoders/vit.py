"""A plain ViT of timm, run token by token: position embeddings, rotary ones, maps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cosa.encoders.reader import Features, Reader, check_layers

# timm's prefix tokens in the order in which it concatenates them.
PREFIX_TOKENS = ("cls_token", "dist_token", "reg_token")


@dataclass(frozen=True)
class BlockReader(Reader):
    """Reads a ViT's tokens after the last LayerNorm, and those that a block puts out, raw."""

    aux_layer: int
    """Index of that block, from 0."""

    @classmethod
    def of(
        cls, encoder: nn.Module, name: str, aux_layer: int, early_layer: int
    ) -> BlockReader:
        """The reader of a ``VisionTransformer`` or ``Eva``.

        Args:
            name: of the model, for errors.
            aux_layer, early_layer: -1 is the last block, 0 the first.

        Raises:
            UserError: it has no such block.
        """
        depth, width = len(encoder.blocks), encoder.embed_dim
        check_layers(name, depth, "blocks", aux_layer=aux_layer, early_layer=early_layer)
        stride = encoder.patch_embed.feat_ratio()
        return cls(stride, width, width, early_layer % depth, 0, stride, aux_layer % depth)

    def read(self, encoder: nn.Module, images: Tensor, early: bool = False) -> Features:
        """See :meth:`cosa.encoders.reader.Reader.read`."""
        tokens, grid = embed(encoder, images)
        rope = rotary_embedding(encoder, grid)
        seen = {}
        checkpointing = encoder.grad_checkpointing and torch.is_grad_enabled()
        for index, block in enumerate(encoder.blocks):
            options = {} if rope is None else {"rope": rope[index]}
            if checkpointing:
                tokens = checkpoint(block, tokens, use_reentrant=False, **options)
            else:
                tokens = block(tokens, **options)
            if index in (self.aux_layer, self.early_layer):
                seen[index] = tokens
        # timm moves the last LayerNorm behind the pooling (fc_norm) for some models, and puts an
        # identity in the other place; applied to every token, either is the final norm.
        tokens = encoder.fc_norm(encoder.norm(tokens))
        return Features(
            to_map(tokens, grid),
            to_map(seen[self.aux_layer], grid),
            to_map(seen[self.early_layer], grid) if early else None,
        )


def embed(encoder: nn.Module, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Patches of ``images`` with position embedding and prefix tokens, ready for the blocks.

    Returns:
        tokens (B, P + h*w, D) and the grid (h, w); P is the number of prefix tokens.
    """
    patches = embed_patches(encoder.patch_embed, images)
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


def embed_patches(patch_embed: nn.Module, images: Tensor) -> Tensor:
    """(B, h, w, D), one token for each patch of images (B, 3, H, W)."""
    projection = getattr(patch_embed, "proj", None)
    if images.is_cuda and type(patch_embed) is PatchEmbed and type(projection) is nn.Conv2d:
        return patch_embed.norm(patches_by_product(projection, images))
    return patch_embed(images)  # with timm's dynamic_img_size


def patches_by_product(projection: nn.Conv2d, images: Tensor) -> Tensor:
    """The convolution of a patch embedding, (B, h, w, D), as one matrix product.

    It is one, as its steps are as long as its kernel is wide. Of three channels cuDNN has no fast
    convolution: for the assignment network's passes it took 1.1 ms on an H200.
    """
    high, wide = projection.kernel_size
    patches = images.unflatten(3, (-1, wide)).unflatten(2, (-1, high))
    patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)
    return F.linear(patches, projection.weight.flatten(1), projection.bias)


def resize_position_embedding(
    position: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Tensor:
    """Bicubic resize of a learnt position embedding; prefix entries are kept as they are.

    Without antialiasing, also when the grid shrinks: timm's own resize filters, in PyTorch with
    another cubic kernel even when it enlarges, and outputs then differ from the released
    programs'.

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
    patches = patches.unflatten(1, old_grid).float()  # (1, h, w, D)
    patches = _resize_axis(patches, 2, new_grid[1])
    patches = _resize_axis(patches, 1, new_grid[0]).flatten(1, 2)
    return torch.cat([prefix, patches.to(position.dtype)], dim=1)


def _resize_axis(values: Tensor, axis: int, length: int) -> Tensor:
    """Bicubic resize along one axis, as rows of one picture, which has no channels.

    CUDA's kernel takes the pixels of a picture at once and its channels one after the other:
    resized as (1, D, h, w), a position embedding took a fifth of a training step on an H200.
    """
    rows = values.movedim(axis, -1)
    picture = rows.reshape(1, 1, -1, values.shape[axis])
    size = (picture.shape[2], length)
    picture = F.interpolate(picture, size, mode="bicubic", align_corners=False)
    return picture.view(*rows.shape[:-1], length).movedim(-1, axis)


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
