"""A tiny network in a file, random images, and infer.py run in the test's own process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from cosa.checkpoint import save_weights
from cosa.config import from_dict, to_dict
from cosa.inference.kinds import KINDS
from cosa.network import CoSANetwork
from cosa.pictures.palette import voc_palette
from infer import main

PLAIN = {name: kind for name, kind in KINDS.items() if name != "geotiff"}
"""The kinds of result that need no further package."""
ALL = ("--save", ",".join(PLAIN))
"""All of these."""

ROOT = Path(__file__).resolve().parents[2]
SIZE = 32
PATCH = 8
SCALES = (1.0, 0.5)
CLASSES = ("cat", "dog, big", "ship")


def write_weights(path, classes=CLASSES, thresholds=(0.4, 0.6)):
    torch.manual_seed(0)
    options = dict(patch_size=PATCH, embed_dim=24, depth=3, num_heads=2, img_size=SIZE)
    network = CoSANetwork(len(classes), "vit_tiny_patch16_224", options, decoder_width=16)
    show_all_classes(network)
    model = dict(encoder="vit_tiny_patch16_224", encoder_options=options, decoder_width=16)
    scores = dict(image_size=SIZE, scales=list(SCALES))
    exact = dict(precision="fp32", tf32=False)
    config = to_dict(from_dict(dict(model=model, evaluate=scores, train=exact)))
    palette = (2 * voc_palette(256))[: len(classes) + 1]
    save_weights(
        path, network, config=config, classes=classes, palette=palette, thresholds=thresholds
    )
    return path


@torch.no_grad()
def show_all_classes(network):
    """Let a random network's decoder and classifier see only what differs between pixels.

    All their features are positive, so that one class would win everywhere by their mean alone.
    """
    seen = []
    heads = (network.decoder.conv8, network.classifier)
    hooks = [head.register_forward_pre_hook(lambda _, x: seen.append(x[0])) for head in heads]
    network.eval()(torch.randn(8, 3, SIZE, SIZE))
    for hook in hooks:
        hook.remove()
    # The classifier is called for the pooled features first, then for the map.
    for head, features in ((network.decoder.conv8, seen[-1]), (network.classifier, seen[0])):
        mean = F.normalize(features.mean((0, 2, 3)), dim=0)
        weight = head.weight[:, :, 0, 0]
        head.weight[:, :, 0, 0] = weight - torch.outer(weight @ mean, mean)
    network.decoder.conv8.weight *= 100  # so that probabilities differ, too


def run_main(weights, source, output, *options):
    command = [source, "--weights", weights, "--output", output, *options, "--device", "cpu"]
    return main(list(map(str, command)))


def refusal(weights, source, output, *options):
    """The one line that says why the program does not start."""
    with pytest.raises(Exception) as caught:
        run_main(weights, source, output, *options)
    kinds = ("UserError", "CannotGoOn", "DamagedError")
    assert type(caught.value).__name__ in kinds, caught.value
    assert "\n" not in str(caught.value)
    return str(caught.value)


def save(path, size=(20, 12), mode="RGB", seed=0, **options):
    """Write a random image; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = len(Image.new(mode, (1, 1)).getbands())
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.frombytes(mode, size, noise.tobytes())
    image.save(path, **options)
    return path


def save_smooth(path, size=(40, 30), seed=0):
    """Write an image of a few soft blobs, of which a random network makes several classes."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def read(path):
    with Image.open(path) as image:
        assert image.mode == "P"
        return np.array(image)


def files(folder):
    """All files but the record, hidden ones included."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".cosa.json")
    return sorted(path.relative_to(folder).as_posix() for path in found)
