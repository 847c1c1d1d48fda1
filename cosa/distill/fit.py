"""A training of the student, from both encoders to what it has reached."""

from __future__ import annotations

import argparse
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from cosa.core.device import allow_tf32
from cosa.core.errors import UserError
from cosa.core.terminal import progress_bar
from cosa.distill.crops import RandomCrops
from cosa.distill.networks import (
    EARLY_STAGE,
    NormalizedEncoder,
    Student,
    Teacher,
    explained_variance,
    loss_of,
    require_positions,
)
from cosa.distill.photographs import Photographs
from cosa.encoders.pretrained import load_encoder_weights

STATISTICS = 128
"""Photographs, at most, of which the mean and deviation of the teacher's channels are taken."""

WEIGHT_DECAY = 0.05
CLIP_NORM = 1.0
WARMUP = 0.05
"""Share of the training in which the learning rate rises."""
FIRST = 0.05
"""Share of its peak that it rises from."""
RECENT = 50
"""Steps of which the loss that is shown is the mean, and after which the host looks at it: looking
waits for the device."""


@dataclass(frozen=True)
class Distillation:
    """What :func:`distill` has reached.

    Attributes:
        encoder: the student's, on the CPU.
        steps: that were made.
        loss: mean over the last ``RECENT`` of them.
        explained, early_explained: see ``explained_variance``, of the final and of the early map
            of the photographs held out, whole.
    """

    encoder: nn.Module
    steps: int
    loss: float
    explained: float
    early_explained: float


def build_encoders(given: argparse.Namespace) -> tuple[NormalizedEncoder, NormalizedEncoder]:
    """The student's, with random weights, and the teacher's, with its own; on the CPU.

    Args:
        given: of ``cosa.distill.command.parse``.

    Raises:
        UserError: an encoder, or the teacher's weights, are not usable, or their strides or that
            of the crops do not fit.
    """
    torch.manual_seed(given.seed)
    with _of_option("--student"):
        seen = NormalizedEncoder(given.student, given.student_options)
    stride = seen.reader.stride
    if given.crop % stride or given.crop == stride:  # of a single position nothing varies
        raise UserError(f"--crop {given.crop} must be a multiple of the student's stride, {stride}"
                        f", and at least {2 * stride}")
    require_positions(seen, given.student)
    with _of_option("--teacher"):
        master = NormalizedEncoder(given.teacher, {}, stride, EARLY_STAGE)
        load_encoder_weights(master.encoder, given.teacher, given.teacher_weights)
    if master.reader.stride != stride:
        raise UserError(f"--teacher {given.teacher} has a position for {master.reader.stride} "
                        f"pixels along each side, --student {given.student} for {stride}: choose "
                        "encoders of one stride")
    return seen, master


def distill(
    given: argparse.Namespace,
    seen: NormalizedEncoder,
    master: NormalizedEncoder,
    photographs: Photographs,
    autocast: Callable[[], AbstractContextManager],
    until: float | None,
) -> Distillation:
    """Train a student on the device that the photographs are on.

    Args:
        given: of ``cosa.distill.command.parse``.
        seen, master: of :func:`build_encoders`.
        autocast: a factory of autocast contexts.
        until: see :func:`shares`.

    Raises:
        UserError: the loss, or what the student yields in the end, is not finite, or there is no
            time for a step.
    """
    device = photographs.pixels.device
    allow_tf32(True)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # all batches have one size
    few = photographs.learnt[:: math.ceil(len(photographs.learnt) / STATISTICS)]
    examples = photographs.whole(few, given.crop)
    teacher = Teacher(master.to(device), autocast, examples, given.batch)
    student = Student(seen, teacher.widths).to(device)
    crops = RandomCrops(photographs, given.crop, given.batch, given.mix, given.seed)
    steps, loss = fit(student, teacher, crops, given, autocast, until)
    explained = score(student, teacher, photographs, given, autocast)
    if not all(map(math.isfinite, explained)):  # the last step alone can do that
        raise UserError(f"what the student yields after {steps} steps is not finite: lower --lr")
    return Distillation(seen.encoder.cpu(), steps, loss, *explained)


def fit(
    student: Student,
    teacher: Teacher,
    crops: RandomCrops,
    given: argparse.Namespace,
    autocast: Callable[[], AbstractContextManager],
    until: float | None,
) -> tuple[int, float]:
    """Train the student; the number of steps and the mean loss of the last ``RECENT``.

    Within a step the host never waits for the device.

    Raises:
        UserError: the loss is not finite, or there is no time for a step.
    """
    optimizer = build_optimizer(student, given.lr)
    recent: deque[Tensor] = deque(maxlen=RECENT)
    step = 0
    student.train()
    with progress_bar(total=given.steps, desc="distill", unit="step") as bar:
        for share in shares(given.steps, until):
            for group in optimizer.param_groups:
                group["lr"] = given.lr * rate(share)
            images = crops.next()
            with autocast():
                found = student(images)
            loss = loss_of(found, teacher(images))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), CLIP_NORM)
            optimizer.step()
            recent.append(loss.detach())
            step += 1
            if step % RECENT == 0:
                bar.set_postfix_str(f"loss {mean_loss(recent, step):.4f}", refresh=False)
            bar.update()
    if not step:
        raise UserError(f"--minutes {given.minutes:g} were over before the first step: give more")
    return step, mean_loss(recent, step)


def build_optimizer(student: Student, lr: float) -> torch.optim.AdamW:
    """AdamW; biases, norms and what timm says of the encoder have no weight decay."""
    encoder = student.seen.encoder
    kept = encoder.no_weight_decay() if hasattr(encoder, "no_weight_decay") else ()
    groups = param_groups_weight_decay(
        student, WEIGHT_DECAY, [f"seen.encoder.{name}" for name in kept]
    )
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def shares(steps: int | None, until: float | None) -> Iterator[float]:
    """For each step the share of the training, in [0, 1), that is done before it.

    Args:
        steps: how many there are, or None.
        until: else the moment of ``time.monotonic`` after which none begins.
    """
    if steps is not None:
        yield from (step / steps for step in range(steps))
        return
    begun = time.monotonic()
    while (now := time.monotonic()) < until:
        yield (now - begun) / (until - begun)


def rate(share: float) -> float:
    """The learning rate as a part of its peak: it rises linearly, then falls linearly to 0.

    Args:
        share: of the training that is done, in [0, 1).
    """
    return min(FIRST + (1 - FIRST) * share / WARMUP, (1 - share) / (1 - WARMUP))


def mean_loss(recent: deque[Tensor], step: int) -> float:
    """Wait for the device: the mean of the losses of the steps up to this one.

    Raises:
        UserError: one of them is not finite.
    """
    mean = float(torch.stack(list(recent)).mean())
    if not math.isfinite(mean):
        raise UserError(f"the loss is not finite in steps {step - len(recent) + 1} to {step}: "
                        "lower --lr")
    return mean


@torch.no_grad()
def score(
    student: Student,
    teacher: Teacher,
    photographs: Photographs,
    given: argparse.Namespace,
    autocast: Callable[[], AbstractContextManager],
) -> tuple[float, float]:
    """What of the teacher's final and early maps of the photographs held out is explained."""
    student.eval()
    found, wanted = [], []
    for part in photographs.held_out.split(given.batch):
        images = photographs.whole(part, given.crop)
        with autocast():
            maps = student(images)
        # On the CPU, and without what is alike: of thousands they exceed a GPU's memory.
        for kept, seen in ((found, maps), (wanted, teacher(images))):
            kept.append((seen.final.float().cpu(), seen.early.float().cpu()))
    final, early = (
        explained_variance(torch.cat(student_maps), torch.cat(teacher_maps))
        for student_maps, teacher_maps in zip(zip(*found, strict=True), zip(*wanted, strict=True),
                                              strict=True)
    )
    return final, early


@contextmanager
def _of_option(option: str) -> Iterator[None]:
    """Say which encoder an error is about: its messages name the keys of the configuration."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{option}: {error}") from error
