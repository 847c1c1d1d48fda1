"""The parts of a training that train.py and the supervised bound have in common."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cosa import checkpoint, distributed
from cosa.config import Config, OptimizerConfig, to_dict
from cosa.cotrain import CoTraining
from cosa.data import SegmentationDataset
from cosa.data.loader import TrainingViews
from cosa.data.partners import PartnerViews
from cosa.device import allow_tf32, choose_autocast, choose_device
from cosa.errors import NotFiniteError, UserError, not_finite
from cosa.evaluate import evaluate
from cosa.network import CoSANetwork
from cosa.parts import step_in_parts
from cosa.schedule import learning_rate_factor
from cosa.weights import load_encoder_weights


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
    return nn.parallel.DistributedDataParallel(_Step(cotraining), find_unused_parameters=True)


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


def build_optimizer(
    network: CoSANetwork, options: OptimizerConfig, regularizers: nn.Module | None = None
) -> torch.optim.AdamW:
    """AdamW over the network's parameter groups and, at the heads' rate, over regularizers."""
    groups = network.parameter_groups(options.lr, options.head_lr_factor, options.weight_decay)
    own = list(regularizers.parameters()) if regularizers else []
    for name, params, decay in (
        ("regularizers", [p for p in own if p.ndim > 1], options.weight_decay),
        ("regularizers_no_decay", [p for p in own if p.ndim <= 1], 0.0),
    ):
        if params:
            groups.append({
                "name": name, "params": params, "lr": options.lr * options.head_lr_factor,
                "lr_scale": options.head_lr_factor, "weight_decay": decay,
            })
    # Fused: one pass over all weights, and a step can be skipped on the device.
    return torch.optim.AdamW(groups, betas=(options.beta1, options.beta2), fused=True)


def optimizer_step(
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    options: OptimizerConfig,
    iteration: int,
    total: int,
    mark: Callable[[str], None] = lambda phase: None,
) -> tuple[float, Tensor]:
    """Set the learning rate, go backward, clip, and move the weights.

    The gradient of the loss is added to what :func:`build_step`'s step may have left; clear it
    before. The host does not wait for the device. Where the loss or its gradient is not finite,
    the weights and the optimizer's state stay as they are, and whoever reads the loss or the norm
    finds out (:func:`require_finite`, ``cosa.step_log``).

    Args:
        optimizer: of :func:`build_optimizer`.
        loss: a scalar with gradient.
        iteration: counted from 0, of ``total``.
        mark: called with "backward" and with "optimizer" at the end of these phases.

    Returns:
        The learning rate of the encoder, and the norm of the gradient before clipping, a scalar.
    """
    factor = learning_rate_factor(iteration, total, options.warmup_iterations, options.power)
    for group in optimizer.param_groups:
        group["lr"] = options.lr * group["lr_scale"] * factor
    loss.backward()
    mark("backward")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if options.clip_norm:
        nn.utils.clip_grads_with_norm_(parameters, options.clip_norm, norm)
    whole = distributed.all_mean(loss.detach())  # so that all processes make the step, or none
    # How GradScaler tells PyTorch's fused optimizers to skip a step, without reading the flag.
    optimizer.found_inf = (~torch.isfinite(whole + norm)).float()
    optimizer.grad_scale = None
    optimizer.step()
    return options.lr * factor, norm


def require_finite(loss: Tensor, norm: Tensor) -> None:
    """Wait for a step and check it.

    Raises:
        NotFiniteError: the loss or the norm of its gradient is not finite.
    """
    if not torch.isfinite(loss.detach() + norm):
        raise NotFiniteError(not_finite(loss.item()))


def score(
    network: CoSANetwork,
    config: Config,
    dataset: SegmentationDataset,
    thresholds: tuple[float | None, float | None],
    panels_folder: Path | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """``cosa.evaluate.evaluate`` with the ``evaluate`` section of the configuration.

    Args:
        network: evaluated on the device where it is.
        thresholds: (xi, xi_aux), in [0, 1] or None.
        panels_folder: where to write pictures.
    """
    options, method = config.evaluate, config.method
    device = next(network.parameters()).device
    return evaluate(
        network,
        dataset,
        thresholds=thresholds,
        image_size=options.image_size,
        scales=options.scales,
        flip=options.flip,
        batch_size=options.batch_size,
        coexistence_classes=options.coexistence_classes,
        device=device,
        panels_folder=panels_folder if options.panels else None,
        panels=options.panels,
        perplexity_alpha=method.perplexity_alpha,
        perplexity_beta=method.perplexity_beta,
        epsilon=method.csc_epsilon,
        autocast=choose_autocast(device, config.train.precision),
        max_images=options.max_images,
        should_stop=should_stop,
    )


def scored_split(config: Config) -> str:
    """Where final scores come from: only the generated scenes have test images of their own."""
    return "test" if config.data.name == "scenes" else "val"
