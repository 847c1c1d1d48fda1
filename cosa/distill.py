"""Weights for a small plain ViT where no pretrained one can be had: a CNN teaches it.

The ViT, the student, learns to yield what the final map of a pretrained CNN, the teacher, holds at
each position, on photographs without labels. A linear map from the student's channels to the
teacher's stands between them, and is thrown away. Both see the same random crops.

    python -m cosa.distill PHOTOS --output weights/student.safetensors \\
        --student-options '{"depth": 6, "img_size": 192}'
    python train.py configs/photographs.yaml model.encoder=vit_tiny_patch16_224 \\
        model.encoder_options='{depth: 6, img_size: 192}' model.weights=weights/student.safetensors
"""

from __future__ import annotations

import argparse
import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from cosa.checkpoint.files import check_new_safetensors, save_safetensors
from cosa.core.device import (
    DEVICES,
    allow_tf32,
    choose_autocast,
    choose_device,
    describe,
    memory_errors_explained,
)
from cosa.core.errors import UserError, run_program
from cosa.core.ranges import BATCH, SEED, SIDE, WORKERS, real, whole
from cosa.core.terminal import Parser, progress_bar, say, warn
from cosa.core.threads import in_threads
from cosa.data.augmentations import apply_strong
from cosa.data.base import FileDataset
from cosa.data.folder import find_images
from cosa.data.images import LazyImage, network_input, read_image, to_planes
from cosa.data.loader import TrainingViews, training_loader
from cosa.data.transforms import Geometry, crop
from cosa.encoders.build import build_encoder, choose_reader
from cosa.encoders.normalization import per_channel, resolve
from cosa.encoders.pretrained import load_encoder_weights
from cosa.training.optimizer import learning_rate_factor

AREA = (0.2, 1.0)
"""Share of a photograph that a crop shows. 0.2 of a photograph of 500x375 pixels is one of 194x194,
about the least that a crop of configs/photographs.yaml shows of it."""
ASPECT = 4 / 3
"""Most that a crop is stretched, in either direction."""
JITTER = ("brightness", "contrast", "color")
STRENGTH = 0.2
"""Most by which a magnitude of ``JITTER`` differs from 1/2, which changes nothing."""

HELD_OUT = 20
"""One photograph in so many is held out."""
STATISTICS = 128
"""Photographs, at most, of which the mean and deviation of the teacher's channels are taken."""
LEAST_DEVIATION = 0.1
"""Share of the mean deviation of all channels: one that says nothing is not blown up."""

WEIGHT_DECAY = 0.05
CLIP_NORM = 1.0
WARMUP = 0.05
"""Share of the steps in which the learning rate rises."""
RECENT = 50
"""Steps of which the loss that is shown is the mean."""


class NormalizedEncoder(nn.Module):
    """An encoder of timm with random weights that reads RGB in [0, 1], as ``CoSANetwork``'s does.

    Args:
        name, options, output_stride: see ``cosa.encoders.build.build_encoder``; a stride of 0 is
            the encoder's own.

    Raises:
        UserError: timm has no such model or cannot build it so, or it yields no maps.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, options: Mapping[str, Any], output_stride: int = 0) -> None:
        super().__init__()
        self.encoder = build_encoder(name, options, output_stride)
        # Of the auxiliary map, which is not wanted, the last is one that every encoder has.
        self.reader = choose_reader(self.encoder, name, aux_layer=-1, aux_stage=-1)
        for key, colour in zip(("mean", "std"), resolve("encoder", name), strict=True):
            self.register_buffer(key, per_channel(colour))

    def forward(self, images: Tensor) -> Tensor:
        """The final map (B, D, h, w) of images (B, 3, H, W) in [0, 1]."""
        return self.reader.read(self.encoder, (images - self.mean) / self.std).final


class Teacher:
    """A frozen encoder whose channels are standardised: mean 0 and deviation 1 on photographs.

    Args:
        seen: the encoder.
        autocast: a factory of autocast contexts.
        examples: photographs (N, 3, S, S) in [0, 1] to take mean and deviation of.
        batch: images in a pass.
    """

    def __init__(
        self,
        seen: NormalizedEncoder,
        autocast: Callable[[], AbstractContextManager],
        examples: Tensor,
        batch: int,
    ) -> None:
        self._seen, self._autocast = seen.eval().requires_grad_(False), autocast
        self.width = seen.reader.width
        self._mean, self._deviation = torch.tensor(0.0), torch.tensor(1.0)
        maps = torch.cat([self(part) for part in examples.split(batch)])
        self._mean = maps.mean((0, 2, 3))[:, None, None]
        deviation = maps.std((0, 2, 3))[:, None, None]
        self._deviation = deviation.clamp_min(LEAST_DEVIATION * float(deviation.mean()))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Standardised features (B, D, h, w) float32, on the encoder's device."""
        device = self._seen.mean.device
        with self._autocast():
            maps = self._seen(images.to(device))
        return (maps.float() - self._mean.to(device)) / self._deviation.to(device)


class Student(nn.Module):
    """The encoder that learns, and the linear map to the teacher's channels.

    Args:
        seen: the encoder.
        width: channels of the teacher.
    """

    def __init__(self, seen: NormalizedEncoder, width: int) -> None:
        super().__init__()
        self.seen = seen
        self.head = nn.Conv2d(seen.reader.width, width, 1)

    def forward(self, images: Tensor) -> Tensor:
        """What the teacher is thought to yield, (B, width, h, w), of images in [0, 1]."""
        return self.head(self.seen(images))


class RandomCrops(TrainingViews):
    """The endless stream of crops, without views and padding; see ``TrainingViews``.

    Args:
        augment: ``crop_size`` alone.
    """

    def views(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """A crop of image ``index``: pixels (S, S, 3) uint8."""
        image = self.dataset.open_image(index)
        return {"pixels": random_crop(image, rng, self.augment["crop_size"])}


def random_crop(image: Image.Image | LazyImage, rng: np.random.Generator, size: int) -> Tensor:
    """A part of an image, perhaps mirrored, of slightly other colours: (size, size, 3) uint8.

    Its area and aspect are uniform in ``AREA`` and, by their logarithm, within ``ASPECT``; what
    would exceed the image is cut off.
    """
    width, height = image.size
    area = rng.uniform(*AREA) * width * height
    stretch = ASPECT ** (rng.uniform(-1, 1) / 2)
    wide = min(width, math.sqrt(area) * stretch)
    high = min(height, math.sqrt(area) / stretch)
    left, top = rng.uniform(0, width - wide), rng.uniform(0, height - high)
    # Sums of fractions may exceed the image by a rounding error, which Pillow refuses.
    source = (left, top, min(width, left + wide), min(height, top + high))
    content = crop(image, Geometry(source, (0, 0, size, size), bool(rng.random() < 0.5)))
    for operation in JITTER:
        content = apply_strong(content, operation, 0.5 + rng.uniform(-STRENGTH, STRENGTH))
    return torch.from_numpy(np.array(content, dtype=np.uint8))


def distance(found: Tensor, wanted: Tensor) -> Tensor:
    """How far the student is off: mean squared error, plus 1 - cosine of each position.

    Args:
        found, wanted: (B, D, h, w) float, the latter standardised.

    Returns:
        A scalar, float32.
    """
    found = found.float()
    return F.mse_loss(found, wanted) + (1 - F.cosine_similarity(found, wanted, dim=1)).mean()


def explained_variance(found: Tensor, wanted: Tensor) -> float:
    """Share of the variance of ``wanted``, around the mean of each channel, that is explained.

    Args:
        found, wanted: (B, D, h, w) float.

    Returns:
        At most 1; 0 for what says no more than the means, below 0 for what says less.
    """
    spread = (wanted - wanted.mean((0, 2, 3), keepdim=True)).square().sum()
    return 1 - float((found - wanted).square().sum() / spread)


def find_photographs(folders: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """The images below some folders that can be read, of the others a warning each.

    Returns:
        Those to learn from, and those that are held out: one in ``HELD_OUT`` of the sorted names.

    Raises:
        UserError: there is no such folder, no image in one, or fewer than two can be read.
    """
    paths: set[Path] = set()
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder: give folders of photographs")
        paths.update(find_images(folder).values())
    readable = []
    ordered = sorted(paths)
    for path, fault in zip(ordered, in_threads(_fault, ordered), strict=True):
        if fault:
            warn(f"left out: {fault}")
        else:
            readable.append(path)
    if len(readable) < 2:
        raise UserError(f"{len(readable)} of {len(paths)} photographs can be read: give at least "
                        "two, one to learn from and one to be held out")
    held_out = readable[::HELD_OUT]
    return sorted({*readable} - {*held_out}), held_out


def _fault(path: Path) -> str:
    """Why an image cannot be read; "" if it can."""
    try:
        read_image(path)
    except UserError as error:
        return str(error)
    return ""


def squashed(paths: Sequence[Path], size: int) -> Tensor:
    """Whole photographs as squares, (N, 3, size, size) float32 in [0, 1]."""
    return torch.stack(in_threads(lambda path: network_input(read_image(path), size), paths))


@dataclass(frozen=True)
class Distillation:
    """What :func:`distill` has reached.

    Attributes:
        encoder: the student's, on the CPU.
        loss: mean over the last ``RECENT`` steps.
        explained: see :func:`explained_variance`, of the photographs held out, whole.
    """

    encoder: nn.Module
    loss: float
    explained: float


def distill(
    given: argparse.Namespace, learnt: Sequence[Path], held_out: Sequence[Path]
) -> Distillation:
    """Train a student.

    Args:
        given: of :func:`parse`.
        learnt, held_out: photographs, see :func:`find_photographs`.

    Raises:
        UserError: an encoder, its weights or the device are not usable, or the loss is not finite.
    """
    device = choose_device(given.device, "--device ")
    autocast = choose_autocast(device, given.precision)
    allow_tf32(True)
    torch.manual_seed(given.seed)
    with _of_option("--student"):
        seen = NormalizedEncoder(given.student, given.student_options)
    stride = seen.reader.stride
    if given.crop % stride:
        raise UserError(f"--crop {given.crop} must be a multiple of the student's stride, {stride}")
    with _of_option("--teacher"):
        master = NormalizedEncoder(given.teacher, {}, stride)
        load_encoder_weights(master.encoder, given.teacher, given.teacher_weights)
    if master.reader.stride != stride:
        raise UserError(f"--teacher {given.teacher} has a position for {master.reader.stride} "
                        f"pixels along each side, --student {given.student} for {stride}: choose "
                        "encoders of one stride")
    few = learnt[:: math.ceil(len(learnt) / STATISTICS)]
    teacher = Teacher(master.to(device), autocast, squashed(few, given.crop), given.batch)
    student = Student(seen, teacher.width).to(device)
    recent = fit(student, teacher, batches(given, learnt), given, autocast, device)
    whole = squashed(held_out, given.crop)
    student.eval()
    with torch.no_grad(), autocast():
        found = torch.cat([student(part.to(device)).float() for part in whole.split(given.batch)])
    wanted = torch.cat([teacher(part) for part in whole.split(given.batch)])
    return Distillation(seen.encoder.cpu(), recent, explained_variance(found, wanted))


def batches(given: argparse.Namespace, paths: Sequence[Path]) -> Iterator[Tensor]:
    """``given.steps`` batches of crops, (B, S, S, 3) uint8."""
    labels = np.ones((len(paths), 1), dtype=np.uint8)  # images without one are left out
    photographs = FileDataset(("photograph",), [str(path) for path in paths], labels, paths)
    loader = training_loader(
        photographs, batch_size=given.batch, seed=given.seed, iterations=given.steps,
        workers=given.workers, stream=RandomCrops, keep_decoded=given.keep_decoded,
        crop_size=given.crop,
    )
    return (batch["pixels"] for batch in loader)


def fit(
    student: Student,
    teacher: Teacher,
    pixels: Iterator[Tensor],
    given: argparse.Namespace,
    autocast: Callable[[], AbstractContextManager],
    device: torch.device,
) -> float:
    """Train the student; the mean loss of the last ``RECENT`` steps.

    Raises:
        UserError: the loss is not finite.
    """
    encoder = student.seen.encoder
    kept = encoder.no_weight_decay() if hasattr(encoder, "no_weight_decay") else ()
    groups = param_groups_weight_decay(
        student, WEIGHT_DECAY, [f"seen.encoder.{name}" for name in kept]
    )
    optimizer = torch.optim.AdamW(groups, lr=given.lr, fused=True)
    recent: deque[float] = deque(maxlen=RECENT)
    warmup = round(WARMUP * given.steps)
    student.train()
    with progress_bar(total=given.steps, desc="distill", unit="step") as bar:
        for step, batch in enumerate(pixels):
            images = to_planes(batch.to(device, non_blocking=device.type == "cuda"))
            factor = learning_rate_factor(step, given.steps, warmup, power=1.0)
            for group in optimizer.param_groups:
                group["lr"] = given.lr * factor
            with autocast():
                found = student(images)
            loss = distance(found, teacher(images))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), CLIP_NORM)
            optimizer.step()
            recent.append(loss.item())
            if not math.isfinite(recent[-1]):
                raise UserError(f"the loss is not finite at step {step + 1}: lower --lr")
            bar.set_postfix_str(f"loss {np.mean(recent):.4f}", refresh=False)
            bar.update()
    return float(np.mean(recent))


@contextmanager
def _of_option(option: str) -> Iterator[None]:
    """Say which encoder an error is about: its messages name the keys of the configuration."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{option}: {error}") from error


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no JSON: {error.msg}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"'{text}' is no JSON object such as {{\"depth\": 6}}")
    return value


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        UserError: the output cannot be written there.
    """
    parser = Parser(prog="python -m cosa.distill", description=main.__doc__)
    parser.add_argument("photos", nargs="+", metavar="PHOTOS",
                        help="folders of photographs, searched with their subfolders")
    parser.add_argument("--output", required=True,
                        help="the .safetensors file to write; it must not exist")
    parser.add_argument("--student", default="vit_tiny_patch16_224", help="timm name (%(default)s)")
    parser.add_argument("--student-options", type=_json_object, default={}, metavar="JSON",
                        help="as model.encoder_options, such as '{\"depth\": 6}'")
    parser.add_argument("--teacher", default="tf_efficientnet_lite2",
                        help="timm name (%(default)s)")
    parser.add_argument("--teacher-weights", default="", metavar="FILE",
                        help="as model.weights; else they are looked up by name")
    parser.add_argument("--steps", type=whole(1, 10**8), default=5000, help="%(default)s")
    parser.add_argument("--crop", type=whole(1, SIDE.high), default=192,
                        help="side of the crops in pixels (%(default)s)")
    parser.add_argument("--batch", type=whole(1, BATCH.high), default=16,
                        help="crops in a step (%(default)s)")
    parser.add_argument("--lr", type=real(1e-12, 1e30), default=1e-3,
                        help="learning rate at its peak (%(default)s)")
    parser.add_argument("--seed", type=whole(0, SEED.high), default=0)
    parser.add_argument("--device", default="auto", help=f"{DEVICES}; default: auto")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto",
                        help="auto: bf16 on CUDA, fp32 on the CPU, where bf16 is faster if the "
                             "processor has it")
    parser.add_argument("--workers", type=whole(-1, WORKERS.high), default=-1,
                        help="processes that load photographs; -1 chooses a number")
    parser.add_argument("--keep-decoded", action="store_true",
                        help="keep the decoded photographs in memory")
    given = parser.parse_args(arguments)
    check_new_safetensors(given.output)
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Distill a pretrained CNN into a small ViT, on photographs without labels."""
    given = parse(arguments)
    learnt, held_out = find_photographs(given.photos)
    device = choose_device(given.device, "--device ")
    say(f"{len(learnt)} photographs to learn from, {len(held_out)} held out; on "
        f"{describe(device, choose_autocast(device, given.precision))}")
    try:
        with memory_errors_explained("lower --batch or --crop"):
            result = distill(given, learnt, held_out)
    except KeyboardInterrupt:
        say(f"interrupted: {given.output} is not written", error=True)
        return 130
    about = {
        "program": "cosa.distill",
        "photographs": len(learnt),
        "loss": round(result.loss, 4),
        "explained_variance": round(result.explained, 4),
        **{key: getattr(given, key) for key in (
            "student", "student_options", "teacher", "steps", "crop", "batch", "lr", "seed",
        )},
    }
    save_safetensors(given.output, result.encoder.state_dict(), {"cosa": json.dumps(about)})
    say(f"{given.output}: loss {result.loss:.4f}, {100 * result.explained:.1f} % of the variance "
        f"of the teacher's features explained on {len(held_out)} photographs held out")
    return 0


if __name__ == "__main__":
    run_program(main)
