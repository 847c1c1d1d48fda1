"""The parts of a training from its configuration: networks, labeller, terms, step, stream."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import timm
import torch
from torch import Tensor, nn

from cosa import checkpoint
from cosa.config import Config, to_dict
from cosa.config.schedule import is_settled
from cosa.core import distributed
from cosa.core.device import allow_tf32, choose_autocast, choose_device
from cosa.core.errors import UserError, one_line
from cosa.core.terminal import note, say
from cosa.cotrain import Calls, CoTraining, Mark, Network
from cosa.data.loader import TrainingViews
from cosa.data.partners import PartnerViews
from cosa.encoders.pretrained import load_encoder_weights
from cosa.mixture import LEVELS
from cosa.network import CoSANetwork
from cosa.regularizers.registry import build_regularizers
from cosa.targets import Labeller
from cosa.terms import loss_terms
from cosa.threshold import DynamicThreshold, Fit
from cosa.training.compile import Compiled
from cosa.training.graphs import Graphed, Replays

WORTH_COMPILING = 10_000
"""Iterations that are shorter by more than compiling takes: of VOC's size by 5 of 32 ms on an H200,
after a minute."""

Step = Callable[..., tuple[Tensor, dict[str, Tensor]]]
"""``CoTraining.step``, or what calls it."""


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
        UserError: the encoder, its weights or the loss weights are not usable, or the encoder
            cannot compute its activations twice.
    """
    network = build_online(config, num_classes)
    if config.model.pretrained and pretrained:
        say(load_encoder_weights(network.encoder, config.model.encoder, config.model.weights))
    cotraining = assemble(network.to(device).train(), config, autocast)
    if config.train.activation_checkpointing:
        checkpoint_activations(network)  # of the online network: its copy has no way back
    return cotraining


def build_online(config: Config, num_classes: int) -> CoSANetwork:
    """The network with random weights, of which those are frozen that are not to be trained."""
    network = checkpoint.build_network(to_dict(config), num_classes)
    if config.model.freeze_position_embedding:
        network.freeze_position_embedding()
    network.freeze_first_layers(config.model.freeze_layers)
    return network


def configured_regularizers(config: Config, network: CoSANetwork) -> nn.ModuleDict:
    """The regularizers that are switched on, for the maps of a network, on its device."""
    regularizers = build_regularizers(
        config.regularizers, network.classifier.in_channels, network.num_classes,
        vars(config.loss), config.method.cls_iterations,
    )
    return regularizers.to(next(network.parameters()).device)


def assemble(
    network: CoSANetwork,
    config: Config,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> CoTraining:
    """The co-training of a network, on the device where it is, as configured.

    Raises:
        UserError: no loss term is switched on at the first iteration.
        ValueError: the schedule is not settled (``cosa.config.settled``).
    """
    if not is_settled(config):
        raise ValueError("the schedule must be in iterations")
    method, threshold = config.method, config.threshold
    fitted = {
        key: DynamicThreshold(
            queue_length=threshold.queue_length,
            initial=threshold.initial,
            smoothing=threshold.smoothing,
            min_confidence=threshold.min_confidence,
            variance_floor=threshold.variance_floor,
            all_sum=distributed.all_sum,
            on_gpu=fit_on_gpu,
        )
        for key in ("cam", "aux_cam")
    }
    labeller = Labeller(
        fitted,
        fixed=None if threshold.dynamic else threshold.fixed,
        cell=threshold.cell,
        alpha=method.perplexity_alpha,
        beta=method.perplexity_beta,
        temperature=method.temperature,
    )
    terms = loss_terms(
        vars(config.loss), method.cls_iterations, method.s2c_start, method.raw, method.csc_epsilon,
        method.csc_temperature,
    )
    return CoTraining(
        network,
        terms=terms,
        labeller=labeller,
        regularizers=configured_regularizers(config, network),
        scales=config.teacher.scales,
        flip=config.teacher.flip,
        momentum=config.teacher.momentum,
        momentum_ramp=config.teacher.momentum_ramp,
        iterations=config.train.iterations,
        accumulate=config.train.accumulate,
        autocast=autocast,
        **choose_calls(config, next(network.parameters()).device),
        all_mean=distributed.all_mean,
    )


def fit_on_gpu(*given: Any) -> Fit | None:
    """A ``cosa.mixture.device.DeviceFit`` of these arguments; None where there can be none."""
    kind = _device_fit(given[-1])
    return None if kind is None else kind(*given)


@functools.cache
def _device_fit(device: torch.device) -> type[Fit] | None:
    """``DeviceFit``, if it works on the device; a failure of Triton's is told, once."""
    try:
        from cosa.mixture.device import DeviceFit

        tried = DeviceFit(0.5, torch.zeros(0, LEVELS, dtype=torch.int32), 2, 0.0, 1.0, device)
        tried.push(torch.zeros(LEVELS + 2, dtype=torch.int64, device=device))
        return DeviceFit
    except torch.OutOfMemoryError:
        raise
    except ImportError:  # PyTorch brings no Triton: on Windows, for one
        return None
    except Exception as error:  # it compiles, which fails in many ways, none of which is ours
        note(f"Triton failed, the threshold is fitted by the host ({one_line(error)})")
        return None


def calls_of(config: Config, device: torch.device) -> tuple[bool, bool]:
    """Whether the step's networks are compiled, and whether it is replayed as CUDA graphs."""
    options, on_gpu = config.train, device.type == "cuda"
    compiles = options.compile
    if compiles is None:
        compiles = on_gpu and options.iterations >= WORTH_COMPILING
    # Parts of a batch would share the memory of one pass; several processes exchange gradients
    # while they are made; what is computed twice looks at the random generator's state.
    graphs = (on_gpu and options.cuda_graphs and options.accumulate == distributed.world() == 1
              and not options.activation_checkpointing)
    return compiles, graphs


def choose_calls(config: Config, device: torch.device) -> dict[str, Any]:
    """How the step calls its networks and its functions, as arguments of ``CoTraining``."""
    compiles, graphs = calls_of(config, device)

    def wrap(network: nn.Module) -> Network:
        call = Compiled(network) if compiles else network
        return Graphed(call) if graphs else call

    return {"wrap": wrap, "replay": Replays() if graphs else Calls()}


def checkpoint_activations(network: CoSANetwork) -> None:
    """Keep no activations inside the encoder's blocks: the way back computes them again.

    Raises:
        UserError: timm does not do so for this encoder, or batch statistics would move twice.
    """
    if network.moving_statistics():
        raise UserError("train.activation_checkpointing computes activations twice, which would "
                        "move the batch statistics twice: set model.freeze_batch_norm=true")
    encoder = network.encoder
    refusal = (f"timm {timm.__version__} cannot compute the activations of this encoder, a "
               f"{type(encoder).__name__}, twice: set train.activation_checkpointing=false, and "
               "train.accumulate above 1 to save memory")
    before = _kept_bytes(network)
    try:
        encoder.set_grad_checkpointing()
    except (AssertionError, AttributeError) as error:
        raise UserError(refusal) from error
    if _kept_bytes(network) >= before:
        raise UserError(refusal)


def _kept_bytes(network: CoSANetwork) -> int:
    """Bytes that a pass of a small image through the encoder keeps for the way back."""
    side = 4 * network.stride
    image = torch.zeros(1, 3, side, side, device=next(network.parameters()).device)
    kept: list[int] = []
    # In evaluation mode no random number is drawn, which would change what is trained.
    network.eval()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.nbytes) or tensor, lambda tensor: tensor
    ):
        network.encode(image)
    network.train()
    return sum(kept)


def build_step(cotraining: CoTraining) -> Step:
    """``cotraining.step``, with gradients that are averaged over the processes, if there are more.

    DistributedDataParallel wraps the step as a whole and not the online network: regularizers send
    images of their own through the network, if they have any, and have parameters of their own.
    What the loss does not reach, such as the decoder during the warm-up, it finds in each step;
    it keeps no gradient, as in a single process. Where there is nothing of the kind, PyTorch warns
    once that it looked in vain.

    """
    if distributed.world() == 1:
        return cotraining.step
    # Buffers are constants, or the statistics that update_assignment makes equal: not to be sent.
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
    """Raise ``UserError`` if the crop is no multiple of the network's stride."""
    crop, stride = config.augment.crop_size, network.stride
    if crop % stride:
        near = max(1, round(crop / stride)) * stride
        raise UserError(f"augment.crop_size={crop} is no multiple of the encoder's stride "
                        f"{stride}: use {near}")


class _Step(nn.Module):
    """One training step as a module of all that has weights."""

    def __init__(self, cotraining: CoTraining) -> None:
        super().__init__()
        self.online, self.assignment = cotraining.online, cotraining.assignment
        self.regularizers = cotraining.regularizers
        self.step = cotraining.step

    def forward(
        self, batch: dict[str, Tensor], iteration: int, mark: Mark = lambda phase: None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.step(batch, iteration, mark)


def choose_stream(config: Config) -> type[TrainingViews]:
    """What makes the training samples: with CSD, images have partners to be pasted from."""
    return PartnerViews if config.regularizers.csd.weight > 0 else TrainingViews
