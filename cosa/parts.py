"""A training step made in parts of the batch, for cards that hold no whole one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cosa import losses
from cosa.cam import free_of_padding
from cosa.cotrain import CAM_TO_SEG, CoTraining


def step_in_parts(
    cotraining: CoTraining, batch: dict[str, Tensor], iteration: int, parts: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """``cotraining.step`` with the memory of a part of the batch, for the same result.

    The thresholds take in the whole batch, and a term that is normalised over its pixels counts
    with the share of them that a part has. Regularizers see each part as a batch of its own: those
    that normalise over pixels, or pair images, come out slightly different.

    Args:
        batch, iteration: see ``CoTraining.step``.
        parts: how many, at most the batch's size; they differ by one image at most.

    Returns:
        What ``CoTraining.step`` does. The gradient of all parts but the last has been added to
        the parameters; the returned loss has the value of the whole and the gradient of the last.

    Raises:
        NotFiniteError: the assignment network's activations are NaN.
    """
    names, chunks = list(batch), [value.tensor_split(parts) for value in batch.values()]
    pieces = [dict(zip(names, values, strict=True)) for values in zip(*chunks, strict=True)]
    maps = cotraining.needed_maps(iteration)
    assigned = [cotraining.assign(piece, maps) for piece in pieces]
    cotraining.adapt_thresholds(assigned)
    cotraining.mark("teacher")
    targets = [cotraining.make_targets(part) for part in assigned]
    del assigned
    shares = _shares(cotraining, pieces, targets, iteration)
    cotraining.mark("targets")
    loss, sums = 0.0, {}
    for number, (piece, target) in enumerate(zip(pieces, targets, strict=True), start=1):
        output = cotraining.see(piece)
        cotraining.mark("student")
        weights, terms = cotraining.terms(piece, output, target, iteration)
        images = len(piece["weak"]) / len(batch["weak"])
        terms = {
            name: term * (shares[name][number - 1] if name in shares else images)
            for name, term in terms.items()
        }
        part = sum(weight * terms[name] for name, weight in weights.items())
        cotraining.mark("losses")
        for name, term in terms.items():
            sums[name] = sums.get(name, 0) + term.detach()
        if number < len(pieces):
            loss = loss + part.detach()
            part.backward()
            cotraining.mark("backward")
    return loss + part, sums


@torch.no_grad()
def _shares(
    cotraining: CoTraining,
    pieces: list[dict[str, Tensor]],
    targets: list[dict[str, Any]],
    iteration: int,
) -> dict[str, Tensor]:
    """Term that is a mean over pixels -> (parts,) which share of what it counts a part has."""
    counts: dict[str, list[Tensor]] = {}
    patch, raw = cotraining.online.patch_size, cotraining.config.method.raw
    for piece, target in zip(pieces, targets, strict=True):
        valid = piece["valid"]
        for name in cotraining.active_terms(iteration):
            if name in CAM_TO_SEG:
                cam = target[CAM_TO_SEG[name]]
                doubt = cam.perplexity if raw else None
                count = losses.pixel_weights(cam.labels, doubt, valid).sum()
            elif name == "s2c":
                grid = tuple(side // patch for side in valid.shape[-2:])
                count = free_of_padding(valid, grid).sum()
            else:
                continue
            counts.setdefault(name, []).append(count.float())
    stacked = {name: torch.stack(found) for name, found in counts.items()}
    # Where nothing counts, the term is 0 in every part.
    return {name: found / found.sum().clamp_min(1e-30) for name, found in stacked.items()}
