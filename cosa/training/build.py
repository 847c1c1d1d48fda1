"""The parts of a training that train.py and the supervised bound have in common."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor, nn

from cosa import checkpoint
from cosa.config import Config, to_dict
from cosa.core import distributed
from cosa.core.device import allow_tf32, choose_autocast, choose_device
from cosa.core.errors import UserError
from cosa.cotrain import CoTraining
from cosa.data.loader import TrainingViews
from cosa.data.partners import PartnerViews
from cosa.encoders.pretrained import load_encoder_weights
from cosa.network import CoSANetwork
from cosa.parts import step_in_parts


def prepare(config: Config) -> tuple[torch.device, Callable[[], AbstractContextManager]]:
    """Seed, set the precision, and choose the device and the autocast context.

    Raises:
        UserError: there is no such device.
    """
    device = choose_device(config.device)
    allow_tf32(config.train.tf32)
    torch.manual_seed(config.seed)
    return device, choose_autocast(device, config.train.precision)


def build_cotraining(
    config: Config,
    num_classes: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
    pretrained: bool = True,
) -> CoTraining:
    """Both networks on their device.

    Args:
        pretrained: start from the encoder weights that the configuration names; a run that is
            resumed has its own.

    Raises:
        UserError: the encoder, its weights or the loss weights are not usable.
    """
    network = checkpoint.build_network(to_dict(config), num_classes)
    if config.model.pretrained and pretrained:
        print(load_encoder_weights(network.encoder, config.model.encoder, config.model.weights))
    if config.model.freeze_position_embedding:
        network.freeze_position_embedding()
    network.activation_checkpointing = config.train.activation_checkpointing
    return CoTraining(network.to(device).train(), config, autocast)


def build_step(
    cotraining: CoTraining,
) -> Callable[[dict[str, Tensor], int], tuple[Tensor, dict[str, Tensor]]]:
    """``cotraining.step``, with gradients that are averaged over the processes, if there are more.

    With ``train.accumulate`` the step is made in parts of the batch; the gradients of all but the
    last are there when it returns.

    DistributedDataParallel wraps the step as a whole and not the online network: regularizers send
    images of their own through the network, if they have any, and have parameters of their own.
    What the loss does not reach, such as the decoder during the warm-up, it finds in each step;
    it keeps no gradient, as in a single process. Where there is nothing of the kind, PyTorch warns
    once that it looked in vain.

    Raises:
        UserError: see :func:`check_processes`.
    """
    check_processes(cotraining.config)
    parts = cotraining.config.train.accumulate
    if distributed.world() == 1:
        return cotraining.step if parts == 1 else partial(step_in_parts, cotraining, parts=parts)
    # Of buffers the networks have only constants: to send them in each step would be for nothing.
    return nn.parallel.DistributedDataParallel(
        _Step(cotraining), find_unused_parameters=True, broadcast_buffers=False
    )


def check_processes(config: Config) -> None:
    """Whether the configuration can be trained by as many processes as there are.

    Raises:
        UserError: they cannot have equal parts of the batch, or several are to accumulate.
    """
    distributed.share_of_batch(config.train.batch_size)
    if distributed.world() > 1 and config.train.accumulate > 1:
        raise UserError("train.accumulate is for a single process, several split the batch by "
                        "their number already: set train.accumulate=1")


def check_crop(config: Config, network: CoSANetwork) -> None:
    """Raise ``UserError`` if the crop is no whole number of the network's patches."""
    crop, patch = config.augment.crop_size, network.patch_size
    if crop % patch:
        near = max(1, round(crop / patch)) * patch
        raise UserError(f"augment.crop_size={crop} is no multiple of the encoder's patch size "
                        f"{patch}: use {near}")


class _Step(nn.Module):
    """One training step as a module of all that has weights."""

    def __init__(self, cotraining: CoTraining) -> None:
        super().__init__()
        self.online, self.assignment = cotraining.online, cotraining.assignment
        self.regularizers = cotraining.regularizers
        self.step = cotraining.step

    def forward(
        self, batch: dict[str, Tensor], iteration: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.step(batch, iteration)


def choose_stream(config: Config) -> type[TrainingViews]:
    """What makes the training samples: with CSD, images have partners to be pasted from."""
    return PartnerViews if config.regularizers.csd.weight > 0 else TrainingViews
