"""What a configuration needs at the very least, found out before anything large is made."""

from __future__ import annotations

import torch
from torch import nn

from cosa.config import Config
from cosa.core import distributed
from cosa.core.errors import UserError
from cosa.core.memory import require_memory
from cosa.training.build import build_online, configured_regularizers

FLOAT = 4
"""Bytes of a number."""
COPIES = 2
"""Of the weights: the online and the assignment network."""
TRAINED = 3
"""Numbers beside each weight that is trained: its gradient, and AdamW's two means."""
VIEWS = 2


def check_scenes(config: Config) -> None:
    """Refuse generated images that cannot be held in memory, those of the final scores included.

    Raises:
        UserError: they take more than there is.
    """
    data = config.data
    if data.name == "scenes":
        count = data.scenes_train + data.scenes_val + data.scenes_test
        require_memory(
            4 * count * data.scenes_size**2,  # RGB and a mask
            f"{count} generated images of {data.scenes_size} pixels a side",
            "lower data.scenes_train, data.scenes_val, data.scenes_test or data.scenes_size",
        )


def check_memory(
    config: Config, num_classes: int, val_images: int, device: torch.device
) -> None:
    """Refuse networks and batches that cannot fit into the memory.

    Lower bounds, each for itself: weights with what trains them, a training batch as the networks
    read it, and the images of a pass of teacher and evaluation. Activations come on top.

    Raises:
        UserError: naming the keys, what they ask for and what there is.
    """
    network, regularizers = count_weights(config, num_classes)
    for count, copies, what, remedy in (
        (network, COPIES, "networks", "take a smaller model.encoder or model.encoder_options, or "
         f"lower model.decoder_width={config.model.decoder_width}"),
        (regularizers, 1, "regularizers", "lower regularizers.plda.width or hidden"),
    ):
        require_memory(
            FLOAT * (copies * sum(count) + TRAINED * count[0]),
            f"{what} of {sum(count) / 1e6:.0f} million weights, with what trains them,", remedy,
            device,
        )
    share = distributed.share_of_batch(config.train.batch_size)
    count, crop = share.stop - share.start, config.augment.crop_size
    part, scale = -(-count // config.train.accumulate), max(config.teacher.scales)
    evaluated, side = config.evaluate, config.evaluate.image_size
    for number, pixels, what, remedy in (
        (VIEWS * count, crop, "views of training images", "train.batch_size or augment.crop_size"),
        (part, crop * scale, "images for the teacher", "teacher.scales or train.batch_size"),
        (min(evaluated.batch_size, -(-val_images // distributed.world())), side,
         "images in an evaluation", "evaluate.batch_size or evaluate.image_size"),
    ):
        require_memory(
            int(3 * FLOAT * number * pixels**2),
            f"{number} {what} of {pixels:.0f} pixels a side", f"lower {remedy}", device,
        )


Count = tuple[int, int]
"""Numbers that are trained, and the others."""


def count_weights(config: Config, num_classes: int) -> tuple[Count, Count]:
    """Numbers in the network and in the regularizers; nothing of them is allocated.

    Where an encoder cannot be built without content, there are none: it is not known then.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            network = build_online(config, num_classes)
            regularizers = configured_regularizers(config, network)
    except (UserError, RuntimeError):  # the same without "meta" tells
        return (0, 0), (0, 0)
    return _count(network), _count(regularizers)


def _count(module: nn.Module) -> Count:
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return trained, sum(tensor.numel() for tensor in module.state_dict().values()) - trained
