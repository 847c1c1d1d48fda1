"""The files of a model on the hub: safetensors, JSON, YAML, Markdown and PNG, nothing else."""

from __future__ import annotations

import json
from pathlib import Path

from cosa.checkpoint import describe, save_weights, shareable
from cosa.config import to_dict, to_yaml
from cosa.core.files import write_atomically, writing
from cosa.core.hub import WEIGHTS, Model
from cosa.hub.card import card, panel_names
from cosa.hub.run import Trained


def write_files(folder: Path, model: Model, trained: Trained, licence: str) -> list[str]:
    """Write what is to be pushed; returns the paths in the folder, which needs not exist.

    None of the files says where somebody's images or weights were.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    network, config = trained.network, shareable(trained.config)
    about = {"config": to_dict(shareable(network.config)), "classes": network.classes,
             "palette": network.palette, "thresholds": network.thresholds}
    save_weights(folder / WEIGHTS, network, **about)
    texts = {
        "README.md": card(model, trained, licence),
        "config.json": json.dumps(describe(**about), indent=2) + "\n",
        "config.yaml": to_yaml(config),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text)
    panels = dict(zip(panel_names(len(trained.panels)), trained.panels, strict=True))
    for name, content in panels.items():
        path = folder / name
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
    return [WEIGHTS, *texts, *panels]
