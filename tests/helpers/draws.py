"""Random tensors that depend on their shape and seed alone."""

import torch

from cosa.core import IGNORE


def randn(*shape, seed=0, **options):
    """Standard normal, float64."""
    return torch.randn(*shape, generator=torch.manual_seed(seed), dtype=torch.float64, **options)


def rand(*shape, seed=0):
    """Uniform in [0, 1), float64."""
    return torch.rand(*shape, generator=torch.manual_seed(seed), dtype=torch.float64)


def labels_of(*shape, classes=3, ignored=0.2, seed=0):
    """Labels 0..classes-1, int64; about a share ``ignored`` of them is IGNORE."""
    generator = torch.manual_seed(seed)
    labels = torch.randint(0, classes, shape, generator=generator)
    return labels.masked_fill(torch.rand(shape, generator=generator) < ignored, IGNORE)
