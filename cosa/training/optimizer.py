"""AdamW, the learning rate over time, and one move of the weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cosa.config import OptimizerConfig
from cosa.core import distributed
from cosa.core.errors import NotFiniteError, not_finite
from cosa.network import CoSANetwork


def learning_rate_factor(iteration: int, total: int, warmup: int, power: float) -> float:
    """Linear warm-up, then polynomial decay (1 - t/T)^power, as CoSA and ToCo train.

    Args:
        iteration: counted from 0; ``total``: T, the iterations of the whole run.
        warmup: iterations of the warm-up; 0 for none.

    Returns:
        The factor in (0, 1] of the peak learning rate.
    """
    if iteration < warmup:
        return (iteration + 1) / (warmup + 1)
    return (1.0 - iteration / total) ** power


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

    The gradient of the loss is added to what ``CoTraining.step`` may have left; clear it
    before. The host does not wait for the device. Where the loss or its gradient is not finite,
    the weights and the optimizer's state stay as they are, and whoever reads the loss or the norm
    finds out (:func:`require_finite`, ``cosa.training.step_log``).

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
    if norm.device.type == "mps" and optimizer.found_inf.item():
        return options.lr * factor, norm  # on Apple's GPUs PyTorch has long ignored the flag
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
