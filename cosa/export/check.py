"""Whether an exported program gives the network's own outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from cosa.core.errors import UserError, one_line
from cosa.export.formats import Runner
from cosa.export.forward import MIN_PATCHES, OUTPUTS
from cosa.network import CoSANetwork
from cosa.predict import scaled_size

TOLERANCE = 1e-4
"""Largest difference allowed, relative to the largest magnitude of the output in question."""

Case = tuple[int, int, int]
"""Batch size, height and width of an input."""


@torch.no_grad()
def compare(run: Runner, network: CoSANetwork, cases: Iterable[Case]) -> list[float]:
    """Differences of an exported program from the network on random images.

    Args:
        run: takes images in [0, 1] and returns the maps ``OUTPUTS``.
        network: the original, in eval mode on the CPU.
        cases: batch size, height and width of each input.

    Returns:
        For each case and output the largest absolute difference over the output's largest
        magnitude; infinite where the shapes differ.

    Raises:
        UserError: the network itself yields values that are not finite.
    """
    generator = torch.Generator().manual_seed(0)
    differences = []
    for batch, height, width in cases:
        images = torch.rand(batch, 3, height, width, generator=generator)
        expected, found = network(images), run(images)
        for name in OUTPUTS:
            wanted, given = getattr(expected, name), found[name]
            if not wanted.isfinite().all():
                raise UserError(f"the network's own {name} is not finite, its training has "
                                "diverged: give another checkpoint")
            if wanted.shape != given.shape:
                differences.append(float("inf"))
                continue
            scale = wanted.abs().max().clamp(min=torch.finfo(wanted.dtype).tiny)
            differences.append(float((wanted - given).abs().max() / scale))
    return differences


def within_tolerance(differences: Iterable[float]) -> bool:
    return all(difference <= TOLERANCE for difference in differences)  # not so for NaN


def check_cases(size: int, patch: int, any_size: bool) -> list[Case]:
    """What a file is verified on: two batch sizes and, where free, two image sizes."""
    other = (size, size)
    if any_size:
        smaller = (scaled_size((size, size), scale, patch)[0] for scale in (0.5, 0.75))
        other = tuple(max(side, MIN_PATCHES * patch) for side in smaller)
    return [(1, size, size), (3, *other)]


def verify(
    path: str, runner: Callable[[str], Runner], network: CoSANetwork, cases: Iterable[Case]
) -> float:
    """The largest difference of a file's outputs from the network's; see :func:`compare`.

    Raises:
        UserError: the file cannot be run, or differs by more than ``TOLERANCE``.
    """
    try:
        differences = compare(runner(path), network, cases)
    except UserError:
        raise
    except Exception as error:  # onnxruntime's errors have no base of their own.
        raise UserError(f"the exported program cannot be run, so no file is written: "
                        f"{one_line(error)}") from error
    if not within_tolerance(differences):
        worst = next((d for d in differences if d != d), max(differences))
        raise UserError(f"the exported program's outputs differ from the network's by {worst:.1e} "
                        f"of their range, more than the tolerance {TOLERANCE:.0e}: no file is "
                        "written; try another --opset or version of PyTorch")
    return max(differences)
