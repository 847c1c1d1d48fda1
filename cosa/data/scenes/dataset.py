"""Generated scenes: a small data set with the difficulties of the real ones.

VOC and COCO are not ours to ship, so the demo, the tests and the ablation run on these images.
Each difficulty of image-level supervision is there on purpose:

* partial activation: an object is a large plain body and a small distinctive head; the head alone
  suffices to classify, the mask is both;
* coexistence: a boat nearly always floats on water, a train runs on rails, a bird sits on
  branches; these contexts are background, and occur without their class no more often than
  ``LONE_CONTEXT_PROBABILITY``;
* several classes per image, some of which like each other's company;
* plain blobs in the colours of the classes, textured background, shading, occlusion, scale.

Everything is a pure function of (seed, split, index).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cosa.core.errors import UserError
from cosa.core.ranges import SEED, whole
from cosa.core.terminal import Parser, say
from cosa.data.base import SegmentationDataset
from cosa.data.scenes import drawing
from cosa.pictures.palette import save_mask

SPLITS = ("train", "val", "test")
WEAVE = 5.0, 0.05
"""Wave length in pixels and amplitude of a texture that all bodies share and no blob has: it
tells objects from blobs, yet not classes apart, so that classification has no use for it."""
LONE_CONTEXT_PROBABILITY = 0.1
"""How often water, rails or branches are seen without their class."""


@dataclass(frozen=True)
class SceneClass:
    """How one class looks: what is drawn, in which colour, and where it tends to be."""

    name: str
    hue: float
    body: str
    head: str
    context: str = ""
    context_probability: float = 0.0
    companion: int = -1
    """Class that is often in the same image."""


CLASSES = (
    SceneClass("boat", 0.00, "hull", "sail", "water", 0.85),
    SceneClass("train", 0.14, "box", "bars", "rails", 0.75),
    SceneClass("bird", 0.86, "ellipse", "rings", "branches", 0.75),
    SceneClass("cat", 0.43, "ellipse", "checks", companion=4),
    SceneClass("sofa", 0.29, "box", "dots", companion=3),
    SceneClass("bottle", 0.57, "pear", "cross", companion=6),
    SceneClass("lamp", 0.71, "pear", "star", companion=5),
)

PALETTE = [
    (0, 0, 0), (228, 60, 60), (242, 172, 40), (232, 90, 200), (60, 190, 90), (170, 205, 50),
    (60, 170, 240), (110, 90, 240),
]
"""Mask colours, near those of the objects."""


def generate(seed: int, split: str, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene.

    Returns:
        image (size, size, 3) uint8 RGB and mask (size, size) uint8, 0 background, 1..7 classes.
    """
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    canvas = drawing.background(rng, size)
    mask = np.zeros((size, size), np.uint8)
    chosen = _choose_classes(rng)
    for style in CLASSES:
        alone = style.context and CLASSES.index(style) not in chosen
        if alone and rng.random() < LONE_CONTEXT_PROBABILITY:
            drawing.context(canvas, rng, style.context, centre=None)
    for _ in range(rng.integers(0, 3)):
        _draw_distractor(canvas, rng, size)
    spots = _spread(rng, len(chosen), size)
    radii = rng.uniform(0.13, 0.24, len(chosen)) * size
    for k, spot, radius in zip(chosen, spots, radii, strict=True):
        style = CLASSES[k]
        if style.context and rng.random() < style.context_probability:
            drawing.context(canvas, rng, style.context, (spot[0] + radius * 0.5, spot[1]))
    for k, spot, radius in zip(chosen, spots, radii, strict=True):
        _draw_object(canvas, mask, rng, k, spot, radius)
    noise = 0.02 * rng.standard_normal(canvas.shape, np.float32)
    image = np.clip((canvas + noise) * 255.0, 0, 255).astype(np.uint8)
    return image, mask


def _choose_classes(rng: np.random.Generator) -> list[int]:
    count = rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15])
    chosen = [int(rng.integers(len(CLASSES)))]
    while len(chosen) < count:
        companion = CLASSES[chosen[-1]].companion
        likes = companion >= 0 and companion not in chosen and rng.random() < 0.6
        k = companion if likes else int(rng.integers(len(CLASSES)))
        if k not in chosen:
            chosen.append(k)
    return chosen


def _spread(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Centres (count, 2) as (y, x) in pixels that keep some distance: best of a few draws."""
    draws = rng.uniform(0.2, 0.8, (12, count, 2))
    if count == 1:
        return draws[0] * size
    gap = np.linalg.norm(draws[:, :, None] - draws[:, None], axis=-1)
    gap += np.eye(count) * 9
    return draws[gap.min(axis=(1, 2)).argmax()] * size


def _draw_distractor(canvas: np.ndarray, rng: np.random.Generator, size: int) -> None:
    centre = rng.uniform(0.1, 0.9, 2) * size
    body = rng.choice(["ellipse", "box", "pear"])
    u, v = drawing.local_frame(size, centre, rng.uniform(0.07, 0.15) * size, 1.0,
                               rng.uniform(0, 6.3))
    alpha = drawing.shape(body, u, v, rng)
    hue = CLASSES[rng.integers(len(CLASSES))].hue + rng.normal(0.0, 0.025)
    colour = drawing.colour(hue, rng.uniform(0.3, 0.6), rng.uniform(0.45, 0.75))
    drawing.paint(canvas, alpha, drawing.shade(rng, colour, size))


def _draw_object(
    canvas: np.ndarray,
    mask: np.ndarray,
    rng: np.random.Generator,
    k: int,
    spot: np.ndarray,
    radius: float,
) -> None:
    style, size = CLASSES[k], canvas.shape[0]
    aspect = rng.uniform(1.2, 1.7)
    angle = rng.normal(0.0, 0.25) + (np.pi if rng.random() < 0.5 else 0.0)
    u, v = drawing.local_frame(size, spot, radius, aspect, angle)
    body = drawing.shape(style.body, u, v, rng)
    hue = style.hue + rng.normal(0.0, 0.025)
    tint = drawing.colour(hue, rng.uniform(0.35, 0.6), rng.uniform(0.45, 0.75))
    fill = drawing.shade(rng, tint, size)
    length, amplitude = WEAVE
    fill += amplitude * drawing.grating(size, length, 0.8, angle, rng)[..., None]
    hu, hv = (u - 0.78) / 0.42, v / (0.42 * aspect)
    head = drawing.shape("ellipse", hu, hv / 1.0, rng)
    pattern = drawing.pattern(style.head, hu, hv)
    head_fill = fill * (0.65 + 0.6 * pattern[..., None])
    drawing.paint(canvas, body, fill)
    drawing.paint(canvas, head, head_fill)
    mask[np.maximum(body, head) > 0.5] = k + 1


class ScenesDataset(SegmentationDataset):
    """One split of the generated scenes, held in memory.

    Args:
        split: "train", "val" or "test"; the splits never share an image.
        seed: of the whole data set.
        count: number of images.
        size: side of the square images in pixels.
    """

    def __init__(self, split: str, seed: int = 0, count: int = 1200, size: int = 96) -> None:
        if split not in SPLITS:
            raise UserError(f"scenes have no split {split!r}: use one of {', '.join(SPLITS)}")
        drawn = [generate(seed, split, i, size) for i in range(count)]
        self._images = np.stack([image for image, _ in drawn])
        self._masks = np.stack([mask for _, mask in drawn])
        self.classes = tuple(c.name for c in CLASSES)
        self.palette = list(PALETTE)
        self.names = [f"{split}_{i:05d}" for i in range(count)]
        ids = np.arange(1, len(CLASSES) + 1)
        self.labels = np.stack([np.isin(ids, m) for m in self._masks]).astype(np.uint8)
        self.has_masks = True

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> Image.Image:
        """RGB image of (size, size) pixels."""
        return Image.fromarray(self._images[index])

    def mask(self, index: int) -> np.ndarray:
        """Truth (size, size) uint8; read by the evaluation only."""
        return self._masks[index]

    def check(self) -> None:
        """Nothing can be missing: the images were just drawn."""


def export(dataset: SegmentationDataset, folder: str | Path) -> None:
    """Write a data set as a `folder` data set: images/, masks/, labels.csv, classes.txt."""
    folder = Path(folder)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "labels"])
        for i, name in enumerate(dataset.names):
            dataset.image(i).save(folder / "images" / f"{name}.png")
            save_mask(folder / "masks" / f"{name}.png", dataset.mask(i), dataset.palette)
            present = [c for c, on in zip(dataset.classes, dataset.labels[i], strict=True) if on]
            writer.writerow([f"{name}.png", ";".join(present)])
    (folder / "classes.txt").write_text("\n".join(dataset.classes) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m cosa.data.scenes FOLDER`: write scenes as files, to look at or to train on."""
    parser = Parser(prog="python -m cosa.data.scenes", description=main.__doc__)
    parser.add_argument("folder", help="where images/, masks/, labels.csv and classes.txt go")
    parser.add_argument("--split", default="test", choices=SPLITS)
    parser.add_argument("--count", type=whole(1, 100_000), default=24)
    parser.add_argument("--size", type=whole(32, 1024), default=96, help="side in pixels")
    parser.add_argument("--seed", type=whole(0, SEED.high), default=0)
    given = parser.parse_args(arguments)
    export(ScenesDataset(given.split, given.seed, given.count, given.size), given.folder)
    say(f"{given.count} scenes written to {given.folder}")
    return 0
