"""A random network whose masks show several classes: where there is no trained one."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from cosa.checkpoint import build_network, save_weights
from cosa.config import load_config, to_dict
from cosa.core.errors import UserError
from cosa.data import coco, voc
from cosa.data.images import network_input, read_image
from cosa.data.scenes import dataset as scenes
from cosa.inference.jobs import Job
from cosa.network import CoSANetwork
from cosa.pictures.palette import voc_palette
from cosa.predict import scaled_size

SCENE_CLASSES = tuple(look.name for look in scenes.CLASSES)
SPREAD = 4.0
"""Standard deviation of the logits that a random network is given: enough for one class to stand
out among those of VOC."""


def write_random(path: Path, config_file: str, classes: int | None, job: Job) -> None:
    """Weights of a random network of a configuration's architecture, the same each time.

    Its decoder is changed so that an image shows several classes, with logits well apart: on
    probabilities that are all alike, or on a single class, a CRF drops the classes and is done.

    Args:
        classes: of the network, background included; None: as many as the configured data has.
        job: an image to scale the decoder by.

    Raises:
        UserError: the configuration is not usable.
    """
    config = load_config(config_file)
    known = {"scenes": SCENE_CLASSES, "voc": voc.CLASSES, "coco": coco.CLASSES}
    names = known.get(config.data.name)
    if classes is not None:
        names = tuple(f"class_{k}" for k in range(1, classes))
    elif names is None:
        raise UserError(f"{config_file} is for data of any classes: say how many, --classes K")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(to_dict(config), len(names)).eval()
    side, _ = scaled_size(2 * (config.evaluate.image_size,), 1.0, network.stride)
    _make_sure(network, network_input(read_image(job.source), side)[None])
    save_weights(path, network, config=to_dict(config), classes=names,
                 palette=voc_palette(len(names) + 1))


@torch.no_grad()
def _make_sure(network: CoSANetwork, image: torch.Tensor) -> None:
    last = network.decoder.conv8
    seen: list[torch.Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(image)
    hook.remove()
    # All features are positive: by their mean alone, one class would win everywhere.
    mean = F.normalize(seen[0].mean(dim=(0, 2, 3)), dim=0)[None, :, None, None]
    last.weight -= mean * (last.weight * mean).sum(dim=1, keepdim=True)
    last.weight *= SPREAD / last(seen[0]).std()
