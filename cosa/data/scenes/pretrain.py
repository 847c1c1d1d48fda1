"""Pretraining of the small encoder that the demo starts from: a stand-in for ImageNet.

CoSA starts from features that already are local and general. For the generated scenes such an
encoder is trained here on *other* generated images: one object each, of none of the scenes'
classes, drawn with an independent hue, texture and shape. The only labels are the three
attributes of the image, as an image-level classification.

First the encoder learns without attention, as BagNet does: pooled to one label, tokens that may
look at each other soon all say the same, and nothing local is left for a CAM. Then attention
joins for a short while, so that, as after ImageNet, the deeper tokens know of their surroundings.

    python -m cosa.data.scenes.pretrain --output weights/scenes_encoder.safetensors
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from cosa.core.errors import run_program
from cosa.core.ranges import SEED, whole
from cosa.core.terminal import Parser, progress_bar, say
from cosa.data.scenes import drawing

HUES = 10
TEXTURES = ("plain", "grating4", "grating7", "spiral", "waves", "half", "eye", "fan", "zigzag",
            "brick")
SHAPES = ("ellipse", "box", "triangle", "diamond", "ring", "bean")
SIZE = 64
BATCH_SIZE = 64

ENCODER = "vit_tiny_patch16_224"
ENCODER_OPTIONS = {"img_size": SIZE, "patch_size": 8, "embed_dim": 96, "depth": 6,
                   "num_heads": 3, "init_values": 1.0}
"""Options of the encoder, as in configs/demo.yaml."""

ATTENTION_START = 0.1
"""Layer scale of the attention when it joins."""


def generate(rng: np.random.Generator) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Draw one image (SIZE, SIZE, 3) uint8 and its attributes (hue, texture, shape)."""
    canvas = drawing.background(rng, SIZE)
    if rng.random() < 0.3:
        drawing.context(canvas, rng, str(rng.choice(["water", "rails", "branches"])), None)
    for _ in range(rng.integers(0, 3)):
        _draw(canvas, rng, rng.uniform(3, 7), rng.random(), 0, rng.integers(len(SHAPES)), 0.3)
    hue, texture, shape = (int(rng.integers(n)) for n in (HUES, len(TEXTURES), len(SHAPES)))
    tint = (hue + 0.5 + rng.uniform(-0.4, 0.4)) / HUES
    _draw(canvas, rng, rng.uniform(11, 22), tint, texture, shape, rng.uniform(0.35, 0.7))
    noise = 0.02 * rng.standard_normal(canvas.shape, np.float32)
    return np.clip((canvas + noise) * 255.0, 0, 255).astype(np.uint8), (hue, texture, shape)


def _draw(
    canvas: np.ndarray,
    rng: np.random.Generator,
    radius: float,
    hue: float,
    texture: int,
    shape: int,
    saturation: float,
) -> None:
    angle = rng.uniform(0, 2 * np.pi)
    centre = rng.uniform(0.3, 0.7, 2) * SIZE
    u, v = drawing.local_frame(SIZE, centre, radius, rng.uniform(1.0, 1.4), angle)
    fill = drawing.shade(rng, drawing.colour(hue, saturation, rng.uniform(0.45, 0.8)), SIZE)
    name = TEXTURES[texture]
    if name.startswith("grating"):
        wave = drawing.grating(SIZE, float(name[7:]) + rng.uniform(-0.5, 0.5), angle, 0.0, rng)
        fill = fill + rng.uniform(0.04, 0.15) * wave[..., None]
    elif name != "plain":
        zoom = rng.uniform(1.2, 2.4)
        fill = fill * (0.7 + 0.5 * drawing.pattern(name, u * zoom, v * zoom)[..., None])
    drawing.paint(canvas, drawing.shape(SHAPES[shape], u, v, rng), fill)


def draw_set(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (count, 3, SIZE, SIZE) uint8 and attributes (count, 3) int64."""
    rng = np.random.default_rng(seed)
    bar = progress_bar(iterable=range(count), desc="drawing", leave=False)
    drawn = [generate(rng) for _ in bar]
    images = torch.from_numpy(np.stack([image for image, _ in drawn])).permute(0, 3, 1, 2)
    return images.contiguous(), torch.tensor([attributes for _, attributes in drawn])


class NoAttention(nn.Module):
    """Stands in for a block's attention and adds nothing."""

    def forward(self, tokens: torch.Tensor, **options: object) -> torch.Tensor:
        """Tokens (B, N, D) to a zero that broadcasts to them."""
        return tokens.new_zeros(())


class AttributeClassifier(nn.Module):
    """The encoder and one linear head per attribute on the mean of its final tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = timm.create_model(ENCODER, num_classes=0, dynamic_img_size=True,
                                         **ENCODER_OPTIONS)
        self._attention = [block.attn for block in self.encoder.blocks]
        for block in self.encoder.blocks:
            block.attn = NoAttention()
            # With timm's 0.02 the GELU is all but linear, and no linear map sees a texture
            # of random phase.
            for linear in (block.mlp.fc1, block.mlp.fc2):
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        width = self.encoder.num_features
        self.heads = nn.ModuleList(
            nn.Linear(width, n) for n in (HUES, len(TEXTURES), len(SHAPES)))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Normalised images (B, 3, SIZE, SIZE) to logits of hue, texture and shape."""
        tokens = self.encoder.forward_features(images)
        pooled = tokens[:, self.encoder.num_prefix_tokens:].mean(1)
        return [head(pooled) for head in self.heads]

    def switch_attention_on(self) -> None:
        """Put the untrained attention into its place, at a faint layer scale."""
        for block, attention in zip(self.encoder.blocks, self._attention, strict=True):
            block.attn = attention
            nn.init.constant_(block.ls1.gamma, ATTENTION_START)


@torch.no_grad()
def whiten_patch_embedding(encoder: nn.Module, images: torch.Tensor) -> None:
    """Start the patch embedding as a PCA whitening of the training images' patches.

    Patches are dominated by their mean colour; from random weights, fine texture is a whisper
    that takes long to be heard. ``images``: uint8 (N, 3, SIZE, SIZE).
    """
    projection = encoder.patch_embed.proj
    side = projection.kernel_size[0]
    still = torch.Generator().manual_seed(0)
    patches = F.unfold(augment(images, still), side, stride=side).transpose(1, 2).flatten(0, 1)
    mean = patches.mean(0)
    variance, basis = torch.linalg.eigh(torch.cov(patches.T))
    noise = 0.01  # keeps directions without content from being blown up
    width = projection.out_channels
    rows = (basis / (variance + noise).sqrt()).T.flip(0)[:width]
    projection.weight.copy_(rows.view_as(projection.weight))
    projection.bias.copy_(-rows @ mean)


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Normalise a uint8 batch, with random flips and a shift of up to half a patch.

    By ImageNet's mean and deviation, which configs/demo.yaml names for this encoder.
    """
    mean = torch.tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1)
    std = torch.tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1)
    x = (images.float() / 255.0 - mean) / std
    if torch.rand((), generator=generator) < 0.5:
        x = x.flip(3)
    if torch.rand((), generator=generator) < 0.5:
        x = x.flip(2)
    dy, dx = torch.randint(-4, 5, (2,), generator=generator).tolist()
    return x.roll((dy, dx), (2, 3))


@torch.no_grad()
def accuracy(network: AttributeClassifier, data: tuple[torch.Tensor, torch.Tensor]) -> list[float]:
    """Accuracy in 0..1 of hue, texture and shape."""
    network.eval()
    still = torch.Generator().manual_seed(0)
    hits = torch.zeros(3)
    for x, y in zip(data[0].split(256), data[1].split(256), strict=True):
        for k, logits in enumerate(network(augment(x, still))):
            hits[k] += (logits.argmax(1) == y[:, k]).sum()
    network.train()
    return (hits / len(data[0])).tolist()


def fit(
    network: AttributeClassifier,
    data: tuple[torch.Tensor, torch.Tensor],
    steps: int,
    lr: float,
    generator: torch.Generator,
    decay: bool = True,
) -> None:
    """Train on images (N, 3, SIZE, SIZE) uint8 and attributes (N, 3), ``BATCH_SIZE`` images a step.

    The learning rate warms up and, with ``decay``, falls along a cosine.
    """
    optimizer = torch.optim.AdamW(
        [p for p in network.parameters() if p.requires_grad], lr=lr, weight_decay=0.05)
    warmup = max(1, min(200, steps // 10))
    for step in progress_bar(iterable=range(steps), desc="pretraining"):
        rate = lr * min(1.0, (step + 1) / warmup)
        if decay:
            rate *= 0.5 + 0.5 * math.cos(math.pi * step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        pick = torch.randint(len(data[0]), (BATCH_SIZE,), generator=generator)
        outputs = network(augment(data[0][pick], generator))
        loss = sum(F.cross_entropy(o, data[1][pick, k], label_smoothing=0.05)
                   for k, o in enumerate(outputs))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()


def pretrain(steps: int, attention_steps: int, count: int, seed: int) -> nn.Module:
    """Train on ``count`` images, without and then with attention, and return the encoder."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    train, val = draw_set(seed, count), draw_set(seed + 1, 1000)
    network = AttributeClassifier()
    whiten_patch_embedding(network.encoder, train[0][:1000])
    fit(network, train, steps, 1.5e-3, generator)
    report("without attention", network, val)
    network.switch_attention_on()
    fit(network, train, attention_steps, 5e-4, generator, decay=False)
    report("with attention", network, val)
    return network.encoder


def report(
    stage: str, network: AttributeClassifier, data: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Print the accuracies."""
    hue, texture, shape = accuracy(network, data)
    say(f"{stage}: validation accuracy hue {hue:.3f} texture {texture:.3f} shape {shape:.3f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Pretrain the demo's encoder and write it as safetensors."""
    parser = Parser(
        prog="python -m cosa.data.scenes.pretrain", description=main.__doc__
    )
    parser.add_argument("--output", required=True, help="the .safetensors file to write")
    parser.add_argument("--steps", type=whole(0, 10**8), default=3000, help="without attention")
    parser.add_argument("--attention-steps", type=whole(0, 10**8), default=600)
    parser.add_argument("--images", type=whole(1, 10**6), default=24000)
    parser.add_argument("--seed", type=whole(0, SEED.high), default=1000)
    given = parser.parse_args(arguments)
    encoder = pretrain(given.steps, given.attention_steps, given.images, given.seed)
    save_file(encoder.state_dict(), given.output)
    say(f"encoder written to {given.output}")
    return 0


if __name__ == "__main__":
    run_program(main)
