"""A tiny co-training and a batch for it."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from cosa.checkpoint import build_network
from cosa.config import from_dict, to_dict
from cosa.regularizers.base import Context
from cosa.regularizers.registry import REGULARIZERS
from cosa.training.build import assemble
from tests.helpers.tiny import SIZE, tiny_tree

CLASSES = 4

TERMS = ("cls", "cls_aux", "c2s", "c2s_aux", "s2c", "csc")


def configuration(**sections):
    """Tiny, with all terms from the first iteration on."""
    sections.setdefault("method", {"cls_iterations": 0, "s2c_start": 0})
    return from_dict(tiny_tree(**sections))


def build(autocast=None, seed=0, classes=CLASSES, device="cpu", **sections):
    config = configuration(**sections)
    torch.manual_seed(seed)
    network = build_network(to_dict(config), classes).train()
    for weight in (network.classifier.weight, network.aux_classifier.weight):
        torch.nn.init.normal_(weight, std=0.3)  # CAMs with contrast, as after some training
    torch.nn.init.normal_(network.decoder.conv8.weight, std=0.3)
    return assemble(network.to(device), config, *([autocast] if autocast else []))


def only(*names, weight=1.0):
    """A loss section with these terms alone."""
    return {name: weight if name in names else 0.0 for name in TERMS}


def make_batch(size=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weak = torch.randn(size, 3, SIZE // 6, SIZE // 6, generator=generator)
    weak = torch.nn.functional.interpolate(weak, (SIZE, SIZE), mode="bilinear")
    labels = torch.zeros(size, CLASSES)
    for k in range(size):
        labels[k, k % CLASSES] = 1
        labels[k, (k + 1) % CLASSES] = 1
    return {
        "weak": weak,
        "strong": weak + 0.1 * torch.randn(weak.shape, generator=generator),
        "image_labels": labels,
        "valid": torch.ones(size, SIZE, SIZE, dtype=torch.bool),
        "index": torch.arange(size),
    }


ON = {name: {"weight": 0.5} for name in REGULARIZERS}
"""The section ``regularizers`` with all of them switched on."""


def context_of(batch, output, targets=None, relabel=None, label_view=None, **more):
    """What a regularizer sees, with only as much of it as the test has."""
    labeller = SimpleNamespace(
        relabel=relabel or (lambda targets, grid: targets), label_view=label_view
    )
    grid = next((tuple(m.shape[-2:]) for m in (output.cam, output.seg) if m is not None), None)
    given = {"online": None, "assignment": None, **more}
    return Context(
        batch=batch, targets=targets or {}, labeller=labeller, grid=grid, output=output, **given
    )


def means(sums):
    """Name -> scalar of what a regularizer returns."""
    return {name: term.mean() for name, term in sums.items()}


class InMeans:
    """A regularizer whose terms are divided, as a step does it."""

    def __init__(self, regularizer):
        self.regularizer = regularizer

    def __call__(self, context):
        return means(self.regularizer(context))

    def __getattr__(self, name):
        return getattr(self.regularizer, name)
