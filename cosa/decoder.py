"""The decoder: LargeFOV on the grid of the features, or on a finer one with an earlier stage."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosa.cam import resize
from cosa.core.tensors import in_full_precision

REDUCED = 48
"""Channels to which those of the earlier stage are reduced: they tell edges, no classes."""


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

    def forward(self, features: Tensor, fine: Tensor | None = None) -> Tensor:
        """Logits, float32; ``fine`` is read by ``FinerDecoder`` alone."""
        return in_full_precision(self.conv8, self.hidden(features))

    def hidden(self, features: Tensor) -> Tensor:
        """(B, width, h, w) what the logits are made of."""
        return F.relu(self.conv7(F.relu(self.conv6(features))))

    @property
    def scoring(self) -> tuple[nn.Conv2d, ...]:
        """The convolutions that yield logits, in full precision."""
        return (self.conv8,)


class FinerDecoder(LargeFOV):
    """LargeFOV, enlarged to the grid of an earlier stage, and what is to be corrected there.

    The logits are those of LargeFOV, enlarged, plus those of a 3x3 convolution that sees its hidden
    features, enlarged, and the earlier stage's: normalised position by position, since stages
    differ in scale, and reduced to ``REDUCED`` channels. No part of CoSA.

    Args:
        in_channels, out_channels, width, dilation: see ``LargeFOV``.
        fine_channels: of the earlier stage.
    """

    def __init__(
        self, in_channels: int, fine_channels: int, out_channels: int, width: int, dilation: int
    ):
        super().__init__(in_channels, out_channels, width, dilation)
        self.norm = nn.LayerNorm(fine_channels, eps=1e-6)
        self.reduce = nn.Conv2d(fine_channels, REDUCED, 1, bias=False)
        self.join = nn.Conv2d(width + REDUCED, width, 3, padding=1, bias=False)
        self.correct = nn.Conv2d(width, out_channels, 1, bias=False)
        for conv in (self.reduce, self.join):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        nn.init.trunc_normal_(self.correct.weight, std=0.01)

    def forward(self, features: Tensor, fine: Tensor | None = None) -> Tensor:
        """(B, K, h', w') float32 logits of features (B, D, h, w) and ``fine`` (B, D', h', w')."""
        hidden, grid = self.hidden(features), fine.shape[-2:]
        coarse = resize(in_full_precision(self.conv8, hidden), grid)
        fine = self.norm(fine.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        fine = F.relu(self.reduce(fine))
        joined = F.relu(self.join(torch.cat([resize(hidden, grid), fine.to(hidden.dtype)], dim=1)))
        return coarse + in_full_precision(self.correct, joined)

    @property
    def scoring(self) -> tuple[nn.Conv2d, ...]:
        """See ``LargeFOV.scoring``."""
        return (self.conv8, self.correct)
