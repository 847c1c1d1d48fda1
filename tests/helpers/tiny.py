"""A network, a configuration and a batch so small that a training takes seconds."""

from __future__ import annotations

import copy
from pathlib import Path

import yaml

from cosa.cotrain import CoTraining

ROOT = Path(__file__).resolve().parents[2]

SIZE = 48

TINY = {
    "name": "tiny",
    "seed": 3,
    "device": "cpu",
    "data": {
        "name": "scenes",
        "workers": 0,
        "scenes_train": 14,
        "scenes_val": 4,
        "scenes_test": 5,
        "scenes_size": SIZE,
    },
    "augment": {"crop_size": SIZE, "scale_min": 0.8, "scale_max": 1.25, "blur_max": 0.6},
    "model": {
        "encoder": "vit_tiny_patch16_224",
        "encoder_options": {
            "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2,
        },
        "pretrained": False,
        "decoder_width": 16,
        "decoder_dilation": 1,
        "freeze_position_embedding": False,
    },
    "teacher": {"momentum": 0.9, "scales": [1.0]},
    "threshold": {"cell": 8, "smoothing": 0.5},
    "method": {"cls_iterations": 3, "s2c_start": 4},
    "optimizer": {"lr": 1e-3, "warmup_iterations": 2, "clip_norm": 1.0},
    "train": {
        "iterations": 12, "batch_size": 4, "log_every": 1, "evaluate_every": 0,
        "checkpoint_every": 1000, "report": False,
    },
    "evaluate": {"image_size": SIZE, "scales": [1.0], "batch_size": 4, "panels": 2},
}


CNN = {"encoder": "resnet10t", "encoder_options": {"channels": [8, 16, 24, 32]}}
"""Of the section ``model``: a ResNet of stride 16 in the place of the ViT."""


def tiny_tree(output: Path | str = "runs", **sections) -> dict:
    """The tiny configuration as nested dictionaries; keyword arguments change its sections."""
    tree = copy.deepcopy(TINY) | {"output": str(output)}
    for name, section in sections.items():
        if isinstance(section, dict):
            tree[name] = tree.get(name, {}) | section
        else:
            tree[name] = section
    return tree


def write_yaml(path: Path, tree: dict) -> Path:
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path

BENCHMARK_TINY = [
    "device=cpu", "model.pretrained=false", "model.weights=''", "data.scenes_train=8",
    "data.scenes_val=2", "data.scenes_test=3", "data.scenes_size=48", "augment.crop_size=48",
    "model.encoder_options={img_size: 32, patch_size: 8, embed_dim: 24, depth: 4, num_heads: 3}",
    "model.decoder_width=16", "train.iterations=4", "train.batch_size=2", "train.log_every=1",
    "method.cls_iterations=1", "method.s2c_start=2", "optimizer.warmup_iterations=1",
    "evaluate.image_size=48", "evaluate.scales=[1.0]", "evaluate.panels=0", "data.workers=0",
    "train.report=false",
]


def update_that_acts(iterations, act):
    """In the place of ``CoTraining.update_assignment``: acts once so many iterations are done."""
    original = CoTraining.update_assignment

    def update(self, iteration):
        original(self, iteration)
        if iteration + 1 == iterations:
            act()

    return update
