"""Teacher and student, and how far the one is off the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosa.affinity import cosines
from cosa.core.errors import UserError, one_line
from cosa.encoders.build import build_encoder, choose_reader, is_plain_vit
from cosa.encoders.normalization import per_channel, resolve
from cosa.encoders.stages import LONGEST

EARLY_STAGE = -3
"""The teacher's stage (or, of a ViT, block) that the student's early block learns to yield: that of
model.early_layer in configs/photographs.yaml."""
EARLY_SHARE = 2 / 3
"""Where that block is: the 8th of 12. As much of the student lies before it as of the teacher's
seven stages before the last two."""
EARLY_WEIGHT = 0.5
"""Of the distance of the early maps, against that of the final ones."""
ALIKE_WEIGHT = 1.0
"""Of how far off the student is in which positions look alike."""

LEAST_DEVIATION = 0.1
"""Share of the mean deviation of all channels: one that says nothing is not blown up."""


class Maps(NamedTuple):
    """What is compared of a batch of images."""

    final: Tensor
    """(B, D, h, w), of the teacher standardised."""
    early: Tensor
    """(B, D', h, w), of the teacher standardised."""
    alike: Tensor
    """(B, h*w, h*w) float32: cosines of the early features, as they are, of all pairs of positions,
    which is what ``cosa.affinity`` reads of them."""


class NormalizedEncoder(nn.Module):
    """An encoder of timm with random weights that reads RGB in [0, 1], as ``CoSANetwork``'s does.

    Args:
        name, options, output_stride: see ``cosa.encoders.build.build_encoder``; a stride of 0 is
            the encoder's own.
        early_layer: see ``CoSANetwork``; None for the block of a plain ViT at ``EARLY_SHARE``.

    Raises:
        UserError: timm has no such model or cannot build it so, or it yields no maps; or no layer
            is named, and it is no plain ViT.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any],
        output_stride: int = 0,
        early_layer: int | None = None,
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(name, options, output_stride)
        if early_layer is None:
            if not is_plain_vit(self.encoder):
                raise UserError(f"{name} is no plain ViT: choose one, such as "
                                "vit_tiny_patch16_224")
            early_layer = max(0, round(EARLY_SHARE * len(self.encoder.blocks)) - 1)
        # Of the auxiliary map, which is not wanted, the last is one that every encoder has.
        self.reader = choose_reader(self.encoder, name, aux_layer=-1, aux_stage=-1,
                                    early_layer=early_layer)
        for key, colour in zip(("mean", "std"), resolve("encoder", name), strict=True):
            self.register_buffer(key, per_channel(colour))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The final and the early map, (B, D, h, w) and (B, D', h, w).

        Args:
            images: (B, 3, H, W) in [0, 1].
        """
        read = self.reader.read(self.encoder, (images - self.mean) / self.std, early=True)
        return read.final, read.early


@torch.no_grad()
def require_positions(seen: NormalizedEncoder, name: str) -> None:
    """See whether a student works, and has a position for each square of its stride.

    Raises:
        UserError: it has not, as with patches that are no squares, or an image smaller than one.
    """
    side = 2 * seen.reader.stride
    try:
        grid = seen.eval()(torch.zeros(1, 3, side, side))[0].shape[2:]
        told = f"it has {grid[0]}x{grid[1]} positions for {side}x{side} pixels"
    except (RuntimeError, ValueError, AssertionError) as error:
        grid, told = None, one_line(error, LONGEST)
    if grid != (2, 2):
        raise UserError(f"--student {name} cannot be taught with these --student-options ({told}): "
                        "choose another patch_size or img_size")


class Teacher:
    """A frozen encoder whose channels are standardised: mean 0 and deviation 1 on photographs.

    Args:
        seen: the encoder, on its device.
        autocast: a factory of autocast contexts.
        examples: photographs (N, 3, S, S) in [0, 1] to take mean and deviation of, there, too.
        batch: images in a pass.

    Attributes:
        widths: channels of the final and of the early map.
    """

    def __init__(
        self,
        seen: NormalizedEncoder,
        autocast: Callable[[], AbstractContextManager],
        examples: Tensor,
        batch: int,
    ) -> None:
        self._seen = seen.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self._autocast = autocast
        passes = [self._read(part) for part in examples.split(batch)]
        self._standards = [standard(torch.cat(maps)) for maps in zip(*passes, strict=True)]
        self.widths = tuple(len(mean) for mean, _ in self._standards)

    def __call__(self, images: Tensor) -> Maps:
        """What it sees, float32 and without a gradient, in images (B, 3, H, W) in [0, 1]."""
        read = self._read(images)
        final, early = ((found - mean) / deviation
                        for found, (mean, deviation) in zip(read, self._standards, strict=True))
        return Maps(final, early, cosines(read[1]))

    @torch.no_grad()
    def _read(self, images: Tensor) -> Sequence[Tensor]:
        with self._autocast():
            return [found.float() for found in self._seen(images)]


def standard(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, (D, 1, 1) both, of maps (N, D, h, w)."""
    deviation = maps.std((0, 2, 3))[:, None, None]
    return (maps.mean((0, 2, 3))[:, None, None],
            deviation.clamp_min(LEAST_DEVIATION * float(deviation.mean())))


class Student(nn.Module):
    """The encoder that learns, and the linear maps to the teacher's channels.

    Args:
        seen: the encoder.
        widths: channels of the teacher's final and of its early map.
    """

    def __init__(self, seen: NormalizedEncoder, widths: Sequence[int]) -> None:
        super().__init__()
        self.seen = seen
        self.head, self.early_head = (nn.Conv2d(seen.reader.width, width, 1) for width in widths)

    def forward(self, images: Tensor) -> Maps:
        """What the teacher is thought to yield of images (B, 3, H, W) in [0, 1]."""
        final, early = self.seen(images)
        return Maps(self.head(final), self.early_head(early), cosines(early))


def loss_of(found: Maps, wanted: Maps) -> Tensor:
    """How far the student is off: a scalar, float32.

    Args:
        found, wanted: of student and teacher.
    """
    return (distance(found.final, wanted.final)
            + EARLY_WEIGHT * distance(found.early, wanted.early)
            + ALIKE_WEIGHT * F.mse_loss(found.alike, wanted.alike))


def distance(found: Tensor, wanted: Tensor) -> Tensor:
    """How far maps are off: mean squared error, plus 1 - cosine of each position.

    Args:
        found, wanted: (B, D, h, w) float, the latter standardised.

    Returns:
        A scalar, float32.
    """
    found = found.float()
    return F.mse_loss(found, wanted) + (1 - F.cosine_similarity(found, wanted, dim=1)).mean()


def explained_variance(found: Tensor, wanted: Tensor) -> float:
    """Share of the variance of ``wanted``, around the mean of each channel, that is explained.

    Args:
        found, wanted: (B, D, h, w) float.

    Returns:
        At most 1; 0 for what says no more than the means, below 0 for what says less.
    """
    spread = (wanted - wanted.mean((0, 2, 3), keepdim=True)).square().sum()
    return 1 - float((found - wanted).square().sum() / spread)
