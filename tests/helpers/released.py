"""Checkpoints in the form of the authors' released program."""

from __future__ import annotations

import argparse
import pathlib

import torch

from cosa.network import CoSANetwork

DEPTH, PATCH, WIDTH = 4, 16, 128
GRID = 4  # patches per side of the position embedding


def make_state(classes: int = 20, patch: int = PATCH, width: int = WIDTH, depth: int = DEPTH):
    """The tensors of a small network under the names of the released program."""
    torch.manual_seed(0)
    options = {"img_size": GRID * patch, "patch_size": patch, "embed_dim": width, "depth": depth,
               "num_heads": width // 64}
    network = CoSANetwork(classes, encoder_options=options, aux_layer=0, decoder_width=24)
    torch.nn.init.normal_(network.encoder.pos_embed)
    return {k: v for k, v in network.state_dict().items() if k not in ("mean", "std")}


def save_release(path, state, **arguments) -> None:
    extra = {"encoder.head.weight": torch.zeros(1000, 128), "encoder.head.bias": torch.zeros(1000)}
    args = argparse.Namespace(work_dir=pathlib.PosixPath("/tmp/x"), crop_size=448, **arguments)
    torch.save({"model": {**state, **extra}, "args": args, "iter": 7}, path)
