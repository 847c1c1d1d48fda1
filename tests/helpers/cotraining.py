"""A tiny co-training and a batch for it."""

from __future__ import annotations

import torch

from cosa.checkpoint import build_network
from cosa.config import from_dict, to_dict
from cosa.cotrain import CoTraining
from cosa.regularizers.registry import REGULARIZERS
from tests.helpers.tiny import SIZE, tiny_tree

CLASSES = 4

TERMS = ("cls", "cls_aux", "c2s", "c2s_aux", "s2c", "csc")


def build(autocast=None, seed=0, classes=CLASSES, **sections):
    sections.setdefault("method", {"cls_iterations": 0, "s2c_start": 0})
    config = from_dict(tiny_tree(**sections))
    torch.manual_seed(seed)
    network = build_network(to_dict(config), classes).train()
    for weight in (network.classifier.weight, network.aux_classifier.weight):
        torch.nn.init.normal_(weight, std=0.3)  # CAMs with contrast, as after some training
    torch.nn.init.normal_(network.decoder.conv8.weight, std=0.3)
    return CoTraining(network, config, *([autocast] if autocast else []))


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
