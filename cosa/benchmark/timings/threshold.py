"""What the dynamic threshold costs, against the fit that the released program makes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.mixture import GaussianMixture

from cosa.benchmark import stamp
from cosa.benchmark.tables import add_report_option, read_report, write_report
from cosa.core.ranges import whole
from cosa.core.terminal import Parser, say
from cosa.threshold import DynamicThreshold

TOPIC = "threshold"
SHAPE = (4, 784)
"""Confidences of a batch: four images at 28x28 cells, as in the paper's training on VOC."""


def confidences(rng: np.random.Generator, batches: int) -> torch.Tensor:
    """Two overlapping clusters (batches, 4, 784), a quarter of them foreground, in [0, 1]."""
    size = (batches, *SHAPE)
    foreground = rng.random(size) < 0.25
    drawn = np.where(foreground, rng.normal(0.65, 0.13, size), rng.normal(0.25, 0.09, size))
    return torch.from_numpy(drawn).clamp(0, 1).float()


def crossing(mixture: GaussianMixture) -> float:
    """Where the two weighted densities are equal between the means, on a grid of 1e-5."""
    low, high = np.sort(mixture.means_.ravel())
    grid = np.linspace(low, high, int((high - low) * 1e5))
    order = np.argsort(mixture.means_.ravel())
    gap = mixture.predict_proba(grid[:, None])[:, order[1]] - 0.5
    return float(grid[np.abs(gap).argmin()])


def measure(queue_length: int, updates: int, seed: int = 0) -> dict[str, float]:
    """Time updates with a full queue, and scikit-learn's fit on the same queue.

    One core computes if the process is limited to it (OMP_NUM_THREADS=1).

    Returns:
        ours_ms and worst_ms (median and maximum of the updates), sklearn_ms (median of three
        fits with its defaults), ratio, and the two thresholds.
    """
    data = confidences(np.random.default_rng(seed), queue_length + updates)
    threshold = DynamicThreshold(queue_length=queue_length, smoothing=0.0)
    spent = []
    for batch in data:
        start = time.perf_counter()
        threshold.update(batch)
        spent.append(1e3 * (time.perf_counter() - start))
    samples = data[-queue_length:].numpy().astype(np.float64).reshape(-1, 1)
    samples = samples[samples > threshold.min_confidence][:, None]
    fits = []
    for _ in range(3):
        start = time.perf_counter()
        GaussianMixture(2, random_state=seed).fit(samples)
        fits.append(1e3 * (time.perf_counter() - start))
    # Its default tolerance stops early: for the comparison of the results it must converge.
    mixture = GaussianMixture(2, random_state=seed, tol=1e-6, max_iter=500).fit(samples)
    ours, theirs = statistics.median(spent[queue_length:]), statistics.median(fits)
    return {
        "ours_ms": ours, "worst_ms": max(spent[queue_length:]), "sklearn_ms": theirs,
        "ratio": theirs / ours, "xi": threshold.value, "xi_sklearn": crossing(mixture),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Time the dynamic threshold against scikit-learn's GaussianMixture on the same queue."""
    parser = Parser(
        prog=f"python -m cosa.benchmark {TOPIC}", description=main.__doc__
    )
    parser.add_argument("--queue", type=whole(1, 100_000), default=100, help="batches in the queue")
    parser.add_argument("--updates", type=whole(1, 10**6), default=200, help="how many to time")
    add_report_option(parser)
    given = parser.parse_args(arguments)
    started = stamp.begin(TOPIC, arguments, given.report)
    read_report(given.report, TOPIC)
    found = measure(given.queue, given.updates)
    lines = [
        f"an update of the dynamic threshold takes {found['ours_ms']:.2f} ms (median of "
        f"{given.updates}; worst {found['worst_ms']:.2f} ms) at a queue of {given.queue} batches "
        f"of {SHAPE[0]}x{SHAPE[1]} confidences,",
        f"scikit-learn's GaussianMixture (its defaults) on that queue "
        f"{found['sklearn_ms']:.0f} ms: "
        f"{found['ratio']:.0f} times as long.",
        f"The thresholds are {found['xi']:.4f} and {found['xi_sklearn']:.4f}.",
    ]
    say(*lines)
    head = stamp.heading(started.facts(torch.device("cpu")))
    told = " ".join(lines)
    section = ["## Dynamic threshold", head, told[0].upper() + told[1:]]
    write_report(given.report, "\n\n".join(section), TOPIC)
    return 0
