"""ISL of hfpl: classify an image by sampled pixels of each class's map (Eq. 8 and 14-18).

"High-fidelity Pseudo-labels for Boosting Weakly-Supervised Segmentation" (Jonnarth, Zhang and
Felsberg, WACV 2024). Pooling by a maximum trains the most striking spot of an object alone; a
pixel drawn by its own probability may lie anywhere on the object.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cosa.cam import free_of_padding
from cosa.core.tensors import at_least_float32, require_shape
from cosa.losses import Sum
from cosa.regularizers.base import Context, Regularizer

# Added to the sigmoid, so that a map without any activation can be drawn from as well.
_FLOOR = 1e-5


def importance_sampling_loss(
    scores: Tensor,
    image_labels: Tensor,
    num_samples: int = 10,
    generator: torch.Generator | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy of pixels drawn for each image and class: Eq. (8) and (14)-(18) of hfpl.

    Pixels are drawn with replacement, with a probability proportional to sigmoid(score) + 1e-5,
    which carries no gradient; absent classes are sampled as present ones are.

    Args:
        scores: (B, C, h, w) class scores of the pixels, the logits of Eq. (14): class activation
            maps, and the classifier's offset if it has one.
        image_labels: (B, C) image-level labels in {0, 1}, any dtype.
        num_samples: N > 0, drawn per image and class.
        generator: of the draws, on the device of ``scores``; None means the global one.
        valid: (B, h, w) bool, the cells that may be drawn; None means all of them.

    Returns:
        The scalar mean over samples, classes and images, float32 (float64 for float64 scores).
        Images without any valid cell are not among those; if all are so, the result is 0.

    Raises:
        ValueError: the shapes do not fit.
    """
    return importance_sampling_sum(scores, image_labels, num_samples, generator, valid).mean()


def importance_sampling_sum(
    scores: Tensor,
    image_labels: Tensor,
    num_samples: int = 10,
    generator: torch.Generator | None = None,
    valid: Tensor | None = None,
) -> Sum:
    """:func:`importance_sampling_loss` over samples."""
    batch, classes, *grid = scores.shape
    require_shape("image_labels", image_labels, (batch, classes))
    scores = at_least_float32(scores).flatten(2)
    if valid is None:
        inside = torch.ones_like(scores, dtype=torch.bool)
    else:
        require_shape("valid", valid, (batch, *grid))
        inside = valid.bool().flatten(1)[:, None].expand_as(scores)
        scores = scores.masked_fill(~inside, 0)
    weights = (scores.detach().sigmoid() + _FLOOR).masked_fill(~inside, 0)
    drawn = draw(weights, num_samples, generator)
    sampled, counted = scores.gather(2, drawn), inside.gather(2, drawn)
    labels = image_labels.detach().to(sampled)[:, :, None].expand_as(sampled)
    loss = F.binary_cross_entropy_with_logits(sampled, labels, reduction="none")
    return Sum((loss * counted).sum(), counted.sum())


def draw(weights: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw ``count`` indices of the last dimension with replacement, in proportion to the weights.

    Args:
        weights: (..., N) at least 0, float32 or float64.

    Returns:
        (..., count) int64. Where all weights are 0, the index has no meaning. Unlike
        ``torch.multinomial`` it takes such weights and NaN, which on CUDA would end the process.
    """
    cumulative = weights.cumsum(dim=-1)
    share = torch.rand(
        *weights.shape[:-1], count,
        generator=generator, dtype=weights.dtype, device=weights.device,
    )
    # In (0, total]: the first index that reaches such a level has a weight above 0.
    level = (1 - share) * cumulative[..., -1:]
    return torch.searchsorted(cumulative, level).clamp_max(weights.shape[-1] - 1)


def cells_to_draw_from(valid: Tensor, grid: tuple[int, int]) -> Tensor:
    """The cells of a coarser grid that are free of padding.

    An image so narrow that it has no such cell is represented by all cells that it touches: its
    labels count like any other image's.

    Args:
        valid: (B, H, W) bool, False where the image is padding.
        grid: (h, w), at most (H, W).

    Returns:
        (B, h, w) bool.
    """
    whole, touched = free_of_padding(valid, grid), ~free_of_padding(~valid, grid)
    return torch.where(whole.any(dim=(1, 2), keepdim=True), whole, touched)


class ImportanceSampling(Regularizer):
    """The loss on M and on M-dagger, in place of a share of the classification losses: Eq. (16).

    A share of a classification loss with a weight of its own has that weight, too.
    """

    def weights(self) -> dict[str, float]:
        hosts = {"isl": "cls", "isl_aux": "cls_aux"}
        weights = {
            name: self.options.weight * self.loss_weights.get(host, 1.0)
            for name, host in hosts.items()
        }
        return {name: weight for name, weight in weights.items() if weight > 0}

    def loss_factors(self) -> dict[str, float]:
        return {"cls": 1 - self.options.weight, "cls_aux": 1 - self.options.weight}

    def forward(self, context: Context) -> dict[str, Sum]:
        labels = context.batch["image_labels"]
        valid = cells_to_draw_from(context.batch["valid"], context.grid)
        output = context.output
        maps = {"isl": output.position_logits, "isl_aux": output.aux_position_logits}
        return {
            name: importance_sampling_sum(maps[name], labels, self.options.samples, valid=valid)
            for name in self.weights()
        }
