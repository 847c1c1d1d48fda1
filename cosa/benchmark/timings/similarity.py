"""What the feature similarity loss (FSL) costs, against comparing all pairs of cells."""

from __future__ import annotations

import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cosa.benchmark import stamp
from cosa.benchmark.tables import (
    add_report_option,
    markdown,
    print_section,
    read_report,
    write_report,
)
from cosa.benchmark.timings.memory import peak, start_peak
from cosa.core.device import choose_device
from cosa.core.ranges import whole
from cosa.core.terminal import Parser
from cosa.core.text import aligned
from cosa.data import voc
from cosa.regularizers.feature_similarity import feature_similarity_loss

TOPIC = "similarity"
SHAPE = (8, len(voc.CLASSES), 56)
"""Images, classes and the grid's side, as hfpl trains on VOC."""

_EPSILON = 1e-5


def pairwise_similarity_loss(
    activations: Tensor,
    images: Tensor,
    mu: float = 2.5,
    sigma: float = 5.0,
    valid: Tensor | None = None,
) -> Tensor:
    """``feature_similarity_loss`` as Eq. (9)-(13) of hfpl are written: all pairs, all classes.

    With N = h w cells it holds tensors of (B, K, N, N).
    """
    maps = activations.flatten(2)
    gate = 0.5 * (maps[:, :, :, None] - maps[:, :, None, :]).square().sum(dim=1)
    return _weigh(gate, activations, images, mu, sigma, valid)


def product_similarity_loss(
    activations: Tensor,
    images: Tensor,
    mu: float = 2.5,
    sigma: float = 5.0,
    valid: Tensor | None = None,
) -> Tensor:
    """The same with the distances of all pairs from one matrix product, (B, N, N)."""
    maps = activations.flatten(2)
    norm = maps.square().sum(dim=1)
    gate = 0.5 * (norm[:, :, None] + norm[:, None, :]) - maps.transpose(1, 2) @ maps
    return _weigh(gate, activations, images, mu, sigma, valid)


def _weigh(
    gate: Tensor, activations: Tensor, images: Tensor, mu: float, sigma: float,
    valid: Tensor | None,
) -> Tensor:
    """Eq. (9), (10), (12) and (13) for given g (B, N, N)."""
    height, width = activations.shape[2:]
    rows = torch.arange(height, device=gate.device, dtype=gate.dtype)
    columns = torch.arange(width, device=gate.device, dtype=gate.dtype)
    places = torch.cartesian_prod(rows, columns)
    distance = (places[:, None] - places).square().sum(dim=2)
    weight = torch.exp(-distance / (2 * sigma**2)) / (2 * math.pi * sigma**2)
    colours = images.detach().flatten(2)
    delta = (colours[:, :, :, None] - colours[:, :, None, :]).abs().sum(dim=1) / 3
    unlike = torch.tanh(mu + torch.log((delta + _EPSILON) / (1 - delta + _EPSILON)))
    pairs = weight * gate * unlike
    if valid is None:
        return -pairs.sum(dim=(1, 2)).mean() / (height * width)
    inside = valid.flatten(1)
    pairs = pairs * (inside[:, :, None] & inside[:, None, :])
    return -(pairs.sum(dim=(1, 2)) / inside.sum(dim=1).clamp_min(1)).mean()


def make_inputs(
    batch: int, classes: int, side: int, device: torch.device | str = "cpu", seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Max-normalised maps of smooth blobs, all classes present, and noisy patches of colour."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, classes, side // 8, side // 8, generator=rng)
    maps = F.interpolate(coarse, (side, side), mode="bicubic").sub(0.4).relu()
    patches = torch.rand(batch, 3, side // 7, side // 7, generator=rng)
    noise = 0.04 * torch.randn(batch, 3, side, side, generator=rng)
    images = (F.interpolate(patches, (side, side)) + noise).clamp(0, 1)
    return (maps / maps.amax(dim=(2, 3), keepdim=True)).to(device), images.to(device)


FORMS: dict[str, tuple[Callable[..., Tensor], bool]] = {
    "all pairs and classes": (pairwise_similarity_loss, True),
    "all pairs, matrix product": (product_similarity_loss, True),
    "windowed (`fsl`)": (feature_similarity_loss, False),
}
"""Name -> loss, and whether it takes the images of the batch one by one, to need less memory."""


def value_and_gradient(
    loss: Callable[..., Tensor], activations: Tensor, images: Tensor, one_by_one: bool
) -> tuple[float, Tensor]:
    """Forward and backward pass; of one image after the other, if so chosen."""
    step = 1 if one_by_one else len(images)
    activations = activations.clone().requires_grad_()
    value = 0.0
    for maps, colours in zip(activations.split(step), images.split(step), strict=True):
        part = loss(maps, colours) * (len(colours) / len(images))
        part.backward()
        value += part.item()
    return value, activations.grad


def measure(form: str, device_name: str, repeats: int) -> dict[str, Any]:
    """Cost and result of one form, in a process of its own.

    Returns:
        seconds (the kind of time -> median over the passes), mebibytes (highest growth of the
        memory in any pass), value and gradient (an array).
    """
    device = torch.device(device_name)
    loss, one_by_one = FORMS[form]
    # Libraries load their parts on first use.
    value_and_gradient(loss, *make_inputs(2, 2, 16, device), one_by_one)
    inputs = make_inputs(*SHAPE, device)
    spent: dict[str, list[float]] = {}
    before = start_peak(device)
    for _ in range(repeats):
        start = _clock(device)
        value, gradient = value_and_gradient(loss, *inputs, one_by_one)
        for kind, seconds in _clock(device).items():
            spent.setdefault(kind, []).append(seconds - start[kind])
    grown = peak(device) - before
    medians = {kind: statistics.median(passes) for kind, passes in spent.items()}
    return {"seconds": medians, "mebibytes": grown / 2**20, "value": value,
            "gradient": gradient.cpu().numpy()}


def _clock(device: torch.device) -> dict[str, float]:
    """Seconds so far: of the clock for a GPU; else of the processor, in all and in user mode."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return {"s": time.perf_counter()}
    import resource  # not there on every system

    spent = resource.getrusage(resource.RUSAGE_SELF)
    return {"CPU s": spent.ru_utime + spent.ru_stime, "user s": spent.ru_utime}


def compare(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Header and one line for each form; ratios are to the last one, differences to the first."""
    reference, windowed = (found[name] for name in (next(iter(FORMS)), list(FORMS)[-1]))
    kinds = list(windowed["seconds"])
    head = ["form"] + [part for kind in (*kinds, "peak MiB") for part in (kind, "ratio")]
    cells = [[*head, "value", "difference", "gradient's"]]
    for name, result in found.items():
        row = [name]
        for kind in kinds:
            row += [f"{result['seconds'][kind]:.3f}",
                    f"{result['seconds'][kind] / windowed['seconds'][kind]:.0f}"]
        row += [f"{result['mebibytes']:.0f}", f"{result['mebibytes'] / windowed['mebibytes']:.0f}"]
        value = abs(result["value"] / reference["value"] - 1)
        gradient = np.linalg.norm(result["gradient"] - reference["gradient"])
        gradient /= np.linalg.norm(reference["gradient"])
        row += [f"{result['value']:.5f}", f"{100 * value:.2f} %", f"{100 * gradient:.2f} %"]
        cells.append(row)
    return cells


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare forward and backward pass of the feature similarity loss with those of all pairs."""
    parser = Parser(
        prog=f"python -m cosa.benchmark {TOPIC}", description=main.__doc__
    )
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--repeats", type=whole(1, 10**6), default=3, help="passes of each form")
    add_report_option(parser)
    given = parser.parse_args(arguments)
    device = choose_device(given.device, "--device ")
    started = stamp.begin(TOPIC, arguments, given.report)
    read_report(given.report, TOPIC)
    found = {}
    for form in FORMS:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            found[form] = process.submit(measure, form, str(device), given.repeats).result()
    cells = compare(found)
    print_section(aligned(cells))
    section = ["## Feature similarity loss", stamp.heading(started.facts(device)),
               _explain(given.repeats), markdown(cells)]
    write_report(given.report, "\n\n".join(section), TOPIC)
    return 0


def _explain(repeats: int) -> str:
    images, classes, side = SHAPE
    return (
        f"Forward and backward pass for {images} images, {classes} classes and {side}x{side} "
        f"cells: the median of {repeats} passes, and by how much the memory grew at its peak, each "
        "form in a process of its own. *CPU s* includes the system's time, which goes into handing "
        "out memory; *user s* does not. Ratios are to the last line; the differences, of the value "
        "and of the gradient (relative, Euclidean norm), to the first. The forms with all pairs "
        "take one image at a time: for the whole batch, each of the first one's large tensors "
        f"would have {4 * images * classes * side**4 / 1e9:.1f} GB."
    )
