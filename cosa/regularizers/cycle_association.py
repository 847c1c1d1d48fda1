"""PLCA: pixels of two images with a common class find each other.

"Pixel-Level Cycle Association" (PLCA; Kang, Wei, Yang, Zhuang and Hauptmann, NeurIPS 2020). There
the source is a labelled synthetic image and the target a real one without labels; here both are
training images that share a class, and the source's labels are its confident CAM pseudo-labels.
A source pixel is associated with its most similar target pixel, and this one with its most similar
source pixel. Where this cycle ends at the label where it began, both associations become stronger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cosa.cam import free_of_padding
from cosa.core import IGNORE
from cosa.core.tensors import at_least_float32, directions, move, require_shape
from cosa.losses import Sum
from cosa.network import NetworkOutput
from cosa.regularizers.base import Context, Regularizer
from cosa.targets import CamTargets

# Probabilities below this one count as this one, in logarithms.
_MIN_PROBABILITY = 1e-10

# Below this standard deviation the similarities of a row differ by rounding alone.
_MIN_DEVIATION = 1e-6

# Stands for log(0); finite, so that no step of the gradient meets inf - inf.
_LOG_ZERO = -1e9

# The l at which label smoothing is content.
_LSR_LEVEL = 10


# Losses


def cycle_association_loss(
    source: Tensor,
    target: Tensor,
    source_labels: Tensor,
    metric: str = "cosine",
    aggregation: float = 0.5,
    target_valid: Tensor | None = None,
    source_valid: Tensor | None = None,
) -> Tensor:
    """Strengthen the associations of pixel cycles that end at the label where they began.

    With S_ij the similarity of source pixel i to target pixel j, each row i is standardised by
    its mean and unbiased standard deviation, both without gradient, and becomes s_ij by a softmax
    over j; likewise each row j of the way back, the similarities of j to all i, becomes s_ji by a
    softmax over i. From i the cycle goes to its best j and from there to j's best i'. It is kept
    if i and i' have the same label, not ``IGNORE``; an i' without a label ends it. The term of a
    kept i is -log(s_ij s_ji').

    A row whose standard deviation is 0 to rounding (or that has one element) is constant: its
    softmax is uniform and it sends no gradient.

    Args:
        source: (B, D, h, w) features for "cosine"; class probabilities, whose sum over the D
            channels is 1, for "kl".
        target: (B, D, h2, w2), likewise; its pixels are first mixed by :func:`aggregate`.
        source_labels: (B, h, w) int64, or ``IGNORE`` where there is none.
        metric: "cosine", whose way back is the transpose; or "kl", the negative divergence from
            the pixel where one stands: S_ij = -KL(source_i || target_j), and
            -KL(target_j || source_i) on the way back.
        aggregation: alpha in [0, 1] of :func:`aggregate`; 0 leaves the target as it is.
        target_valid, source_valid: (B, h2, w2) and (B, h, w) bool, False on padding, which is
            neither associated nor part of any mean, deviation or softmax; None counts all.

    Returns:
        The scalar mean over the kept source pixels of a pair, then over the pairs that have any;
        0 if none has. float32, float64 for float64 input.

    Raises:
        ValueError: the metric is unknown, or the shapes do not fit.
    """
    return cycle_association_sum(
        source, target, source_labels, metric, aggregation, target_valid, source_valid
    ).mean()


def cycle_association_sum(
    source: Tensor,
    target: Tensor,
    source_labels: Tensor,
    metric: str = "cosine",
    aggregation: float = 0.5,
    target_valid: Tensor | None = None,
    source_valid: Tensor | None = None,
) -> Sum:
    """:func:`cycle_association_loss` over pairs that have a kept source pixel."""
    if metric not in _SIMILARITIES:
        raise ValueError(f"metric must be one of {', '.join(_SIMILARITIES)}, got {metric!r}")
    if source.shape[:2] != target.shape[:2]:
        raise ValueError(f"target must have batch and channels {tuple(source.shape[:2])}, "
                         f"got {tuple(target.shape[:2])}")
    source_rows, source_valid = _rows(source, source_valid, "source_valid")
    target_rows, target_valid = _rows(target, target_valid, "target_valid")
    require_shape("source_labels", source_labels, (source.shape[0], *source.shape[2:]))
    labels = source_labels.flatten(1)
    with torch.autocast(source.device.type, enabled=False):
        target_rows = aggregate(target_rows, target_valid, metric, aggregation)
        similarity = _SIMILARITIES[metric](source_rows, target_rows)
        if metric == "cosine":
            returning = similarity.transpose(1, 2)
        else:
            returning = _SIMILARITIES[metric](target_rows, source_rows)
        to_target, there = _best(similarity, target_valid)
        to_source, back = _best(returning, source_valid)
        term = -(to_target + to_source.gather(1, there))
    same = labels == labels.gather(1, back.gather(1, there))
    kept = same & (labels != IGNORE) & source_valid & target_valid.any(dim=1, keepdim=True)
    return _sum_of_means(term, kept)


def aggregate(target: Tensor, valid: Tensor, metric: str, aggregation: float) -> Tensor:
    """Mix each pixel with those of its image that are like it.

    x_j becomes (1 - alpha) x_j + alpha * (the sum over j' of attention_jj' x_j'). The attention
    is the softmax over the valid j' of the similarity of x_j and x_j', j itself included; for
    "cosine" its rows are standardised first, as those of the associations are.

    Args:
        target: (B, M, D) features or probabilities of M pixels.
        valid: (B, M) bool, False on padding.
        metric: "cosine" or "kl".
        aggregation: alpha in [0, 1].

    Returns:
        (B, M, D); what is on padding is finite and means nothing.
    """
    if aggregation == 0:
        return target
    similarity = _SIMILARITIES[metric](target, target)
    if metric == "cosine":
        similarity = _standardise(similarity, valid)
    attention = similarity.masked_fill(~valid[:, None], _LOG_ZERO).softmax(dim=2)
    return (1 - aggregation) * target + aggregation * (attention @ target)


def label_smoothing(logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """The label smoothing of PLCA, which weighs itself.

    A pixel's l is the mean over the classes of -log p, at least the logarithm of their number.
    Its term is (l / 10 - 1) l, the factor in brackets without gradient: descent moves l to 10,
    so predictions become less certain above, more certain below.

    Args:
        logits: (B, K, h, w) class scores before the softmax.
        valid: (B, h, w) bool, False on padding; None counts every pixel.

    Returns:
        The scalar mean over the pixels of an image, then over the images that have any; 0 if
        none has. It may be negative.

    Raises:
        ValueError: the shape of valid does not fit.
    """
    return label_smoothing_sum(logits, valid).mean()


def label_smoothing_sum(logits: Tensor, valid: Tensor | None = None) -> Sum:
    """:func:`label_smoothing` over images that have a pixel."""
    rows, valid = _rows(logits, valid, "valid")
    level = -rows.log_softmax(dim=2).mean(dim=2)
    return _sum_of_means((level / _LSR_LEVEL - 1).detach() * level, valid)


def _cosine(rows: Tensor, others: Tensor) -> Tensor:
    """(B, N, D), (B, M, D) to the cosines (B, N, M)."""
    return directions(rows, dim=-1) @ directions(others, dim=-1).transpose(1, 2)


def _negative_divergence(rows: Tensor, others: Tensor) -> Tensor:
    """(B, N, K), (B, M, K) probabilities to -KL(row || other), (B, N, M)."""
    log_rows, log_others = (p.clamp_min(_MIN_PROBABILITY).log() for p in (rows, others))
    means, other_means = (log.mean(dim=2, keepdim=True) for log in (log_rows, log_others))
    # The sum of p log q is the mean of log q plus the sum of (p - 1/K)(log q - its mean). Of
    # nearly uniform probabilities, whose divergences are tiny, TensorFloat-32 would leave
    # nothing if the large terms went into the product.
    rows = rows - 1 / rows.shape[2]
    log_rows, log_others = log_rows - means, log_others - other_means
    own = (rows * log_rows).sum(dim=2, keepdim=True)
    return rows @ log_others.transpose(1, 2) - own + (other_means.transpose(1, 2) - means)


_SIMILARITIES = {"cosine": _cosine, "kl": _negative_divergence}


def _standardise(similarity: Tensor, valid: Tensor) -> Tensor:
    """Rows of (B, N, M) to mean 0 and deviation 1 over the valid (B, M) columns."""
    with torch.no_grad():
        columns = valid[:, None]
        count = columns.sum(dim=2, keepdim=True)
        mean = similarity.masked_fill(~columns, 0).sum(dim=2, keepdim=True) / count.clamp_min(1)
        squares = (similarity - mean).masked_fill(~columns, 0).square().sum(dim=2, keepdim=True)
        deviation = (squares / (count - 1).clamp_min(1)).sqrt()
        varied = deviation > _MIN_DEVIATION
        scale = torch.where(varied, 1 / torch.where(varied, deviation, 1), 0)
    return (similarity - mean) * scale


def _best(similarity: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The best valid column of each row of (B, N, M): log of its softmax, and index, (B, N)."""
    scores = _standardise(similarity, valid).masked_fill(~valid[:, None], _LOG_ZERO)
    best, index = scores.max(dim=2)
    return best - scores.logsumexp(dim=2), index


def _sum_of_means(values: Tensor, counted: Tensor) -> Sum:
    """Of (B, N), means over the counted ones of each row, over the rows that have any."""
    per_row = (values * counted).sum(dim=1) / counted.sum(dim=1).clamp_min(1)
    return Sum(per_row.sum(), counted.any(dim=1).sum())


def _rows(maps: Tensor, valid: Tensor | None, name: str) -> tuple[Tensor, Tensor]:
    """(B, K, h, w) as (B, h*w, K), at least float32 and 0 on padding; valid as (B, h*w)."""
    grid = (maps.shape[0], *maps.shape[2:])
    if valid is None:
        valid = torch.ones(grid, dtype=torch.bool, device=maps.device)
    require_shape(name, valid, grid)
    valid = valid.bool().flatten(1)
    rows = at_least_float32(maps).flatten(2).transpose(1, 2)
    return rows.masked_fill(~valid[:, :, None], 0), valid



# Pairs


def draw_sources(image_labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A source for each image: another one of the batch that shares a class with it.

    Args:
        image_labels: (B, C), positive means present.
        generator: on the CPU; None draws from the global random numbers of the CPU, so a seed
            gives the same pairs on every device.

    Returns:
        (B,) int64, drawn uniformly among the images that qualify; -1 where there is none.
    """
    present = (image_labels > 0).float()
    shared = present @ present.T > 0
    shared.fill_diagonal_(False)
    # The largest of independent draws is at each place equally often.
    draws = move(torch.rand(shared.shape, generator=generator), shared.device)
    score, source = draws.masked_fill(~shared, -1).max(dim=1)
    return source.masked_fill(score < 0, -1)


def prefer_partners(
    sources: Tensor, image_labels: Tensor, index: Tensor, partner_labels: Tensor
) -> Tensor:
    """Replace sources by single-label partners where these share a class with the target.

    Args:
        sources: (B,) int64 of :func:`draw_sources`.
        image_labels: (B, C), positive means present.
        index: (n,) int64, the images that have a partner.
        partner_labels: (n, C), positive means present.

    Returns:
        (B,) int64 in which B + k stands for partner k.
    """
    shared = ((image_labels[index] > 0) & (partner_labels > 0)).any(dim=1)
    partners = torch.arange(len(index), device=sources.device) + len(sources)
    return sources.index_copy(0, index, torch.where(shared, partners, sources[index]))


def confident_labels(targets: CamTargets, valid: Tensor, perplexity: float) -> Tensor:
    """(B, h, w) int64 pseudo-labels; ``IGNORE`` on padding and above that perplexity.

    Args:
        targets: pseudo-labels at the token grid.
        valid: (B, h, w) bool, False where a cell has padding in it.
        perplexity: the largest of a label that is kept.
    """
    return targets.labels.masked_fill(~valid | ~(targets.perplexity <= perplexity), IGNORE)


def keep_shared(labels: Tensor, image_labels: Tensor) -> Tensor:
    """Ignore source pixels of a class that the target does not hold.

    Args:
        labels: (P, h, w) int64 in 0..C or ``IGNORE``.
        image_labels: (P, C) of the targets, positive means present; background always is.
    """
    known = labels != IGNORE
    present = torch.cat([torch.ones_like(image_labels[:, :1]), image_labels], dim=1) > 0
    classes = labels.masked_fill(~known, 0).flatten(1)
    return labels.masked_fill(~present.gather(1, classes).view_as(known), IGNORE)


@dataclass
class Candidates:
    """The B images of the batch, then n partners: those that can be a source."""

    features: Tensor
    """(B + n, D, h, w); gradient for those of the batch only, as in ``seg``."""
    seg: Tensor
    """(B + n, C+1, h, w) segmentation logits."""
    labels: Tensor
    """(B + n, h, w) int64 in 0..C or ``IGNORE``."""
    valid: Tensor
    """(B + n, h, w) bool, False on padding."""
    image_labels: Tensor
    """(B + n, C), positive means present."""


def pair_terms(
    candidates: Candidates,
    sources: Tensor,
    names: list[str],
    aggregation: float = 0.5,
) -> dict[str, Sum]:
    """The terms of given pairs.

    Args:
        candidates: the first B of them are the targets.
        sources: (B,) int64, index of each target's source; -1 for a target that has none and
            takes no part. Of another device than the CPU they are waited for.
        names: of plca_feature, plca_probability and plca_lsr; others are not computed.
        aggregation: alpha of :func:`aggregate`.
    """
    # A look at values, which waits for a device that they are on: images without a source cost
    # nothing.
    targets = (sources >= 0).nonzero()[:, 0]
    sources, targets = (
        move(index, candidates.valid.device) for index in (sources[targets], targets)
    )
    labels = keep_shared(candidates.labels[sources], candidates.image_labels[targets])
    valid = candidates.valid

    def association(maps: Tensor, metric: str) -> Sum:
        return cycle_association_sum(
            maps[sources], maps[targets], labels, metric, aggregation,
            target_valid=valid[targets], source_valid=valid[sources],
        )

    terms = {}
    if "plca_feature" in names:
        terms["plca_feature"] = association(at_least_float32(candidates.features), "cosine")
    if "plca_probability" in names:
        probabilities = at_least_float32(candidates.seg).softmax(dim=1)
        terms["plca_probability"] = association(probabilities, "kl")
    if "plca_lsr" in names:
        terms["plca_lsr"] = label_smoothing_sum(candidates.seg[targets], valid[targets])
    return terms


# The regularizer


class CycleAssociation(Regularizer):
    """All terms of PLCA; every image of the batch is a target.

    Its source is the partner that CSD drew for it, if there is one of a class that it holds: as
    the assignment network sees it, so only the target learns. Or else it is a random image of the
    batch that shares a class, and both learn. Images without either take no part.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"cam"})

    def weights(self) -> dict[str, float]:
        options = self.options
        terms = {
            "plca_feature": options.feature,
            "plca_probability": options.probability,
            "plca_lsr": options.lsr,
        }
        return {name: options.weight * share for name, share in terms.items() if share > 0}

    def forward(self, context: Context) -> dict[str, Sum]:
        names = list(self.weights())
        image_labels, partner = context.batch["image_labels"], context.partner
        if len(image_labels) == 1 and "partner_class" not in context.batch:
            self.note_once("plca: a batch of one image without csd's partners holds no pair, so "
                           "its terms stay 0: raise train.batch_size or regularizers.csd.weight")
        sources = draw_sources(context.batch.get("host_labels", image_labels))
        views = [self._view(
            context, context.output, context.targets["cam"], context.batch["valid"], image_labels
        )]
        if partner is not None:
            sources = prefer_partners(
                move(sources, image_labels.device), image_labels, partner.index,
                partner.image_labels,
            )
            views.append(self._view(
                context, partner.output, partner.targets, partner.valid, partner.image_labels
            ))
        candidates = Candidates(*(torch.cat(parts) for parts in zip(*views, strict=True)))
        return pair_terms(candidates, sources, names, self.options.aggregation)

    def _view(
        self,
        context: Context,
        output: NetworkOutput,
        targets: CamTargets,
        valid: Tensor,
        image_labels: Tensor,
    ) -> tuple[Tensor, ...]:
        """The fields of ``Candidates`` for the images of one forward pass.

        A segmentation of a finer grid is averaged over the positions of the features.
        """
        valid = free_of_padding(valid, context.grid)
        labels = confident_labels(
            context.labeller.relabel(targets, context.grid), valid, self.options.perplexity
        )
        finer = output.seg.shape[-1] // context.grid[1]
        seg = F.avg_pool2d(output.seg, finer) if finer > 1 else output.seg
        return output.features, seg, labels, valid, image_labels
