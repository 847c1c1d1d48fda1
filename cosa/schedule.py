"""The learning rate over time."""

from __future__ import annotations


def learning_rate_factor(iteration: int, total: int, warmup: int, power: float) -> float:
    """Linear warm-up, then polynomial decay (1 - t/T)^power, as CoSA and ToCo train.

    Args:
        iteration: counted from 0; ``total``: T, the iterations of the whole run.
        warmup: iterations of the warm-up; 0 for none.

    Returns:
        The factor in (0, 1] of the peak learning rate.
    """
    if iteration < warmup:
        return (iteration + 1) / (warmup + 1)
    return (1.0 - iteration / total) ** power
