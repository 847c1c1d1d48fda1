"""Pictures for people: what a network makes of one image, side by side in a PNG file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from cosa.cam import filter_by_labels, resize
from cosa.core import IGNORE
from cosa.core.text import NAME, shown
from cosa.pictures.legend import BAR, DARK, GAP, PALE, Item, Legend, text_font
from cosa.pictures.palette import Color, full_palette, overlay, save_image
from cosa.predict import Prediction, believed, strongest
from cosa.targets import cam_pseudo_labels, perplexity

MIN_HEIGHT, MAX_HEIGHT = 192, 384
"""Images outside this range of pixels are scaled, as far as ``MAX_WIDTH`` allows."""

MAX_WIDTH = 4 * MAX_HEIGHT
"""Wider images are made smaller: a line of pixels would else become a picture of gigabytes."""

_HATCH_PERIOD, _HATCH_WIDTH = 8, 3
# Dark violet over red to pale yellow: even in brightness, so that it also reads in print.
_HEAT = np.array(
    [(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)]
)


def save_prediction_panel(
    path: str | PathLike[str],
    *,
    image: Image.Image,
    truth: np.ndarray | None,
    prediction: Prediction,
    image_labels: Tensor,
    threshold: float,
    perplexity_alpha: float,
    perplexity_beta: float,
    epsilon: float,
    classes: Sequence[str],
    palette: Sequence[Color],
    min_class_score: float = 0.0,
) -> None:
    """:func:`save_panel` of what a network makes of one image.

    Args:
        path, image, truth, classes, palette: as there.
        prediction: of a batch of 1, of any size.
        image_labels: (C,), positive means present.
        threshold: xi in [0, 1], where M' becomes a pseudo-label.
        perplexity_alpha, perplexity_beta: of Eq. (4); positions above ``epsilon`` are hatched.
        min_class_score: of ``cosa.evaluate.evaluate``.
    """
    small = shown_size(image.size)
    if small < image.size:
        # Maps of a photograph's full size would need gigabytes for a picture of this height.
        image = image.resize(small, Image.Resampling.BICUBIC, reducing_gap=3.0)
        if truth is not None:
            truth = np.asarray(Image.fromarray(truth).resize(small, Image.Resampling.NEAREST))
    size = (image.height, image.width)
    cam = filter_by_labels(resize(prediction.cam, size).cpu(), image_labels[None])
    labels, confidence = cam_pseudo_labels(cam, threshold)
    seg = strongest(
        resize(prediction.seg, size)[0], believed(prediction.logits[0], min_class_score)
    )
    doubt = perplexity(confidence, threshold, perplexity_alpha, perplexity_beta)
    save_panel(
        path,
        image=image,
        cam=cam[0].numpy(),
        cam_labels=labels[0].numpy(),
        uncertain=(doubt > epsilon)[0].numpy(),
        prediction=seg.cpu().numpy(),
        truth=truth,
        classes=classes,
        palette=palette,
    )


def save_panel(
    path: str | PathLike[str],
    *,
    image: Image.Image,
    cam: np.ndarray,
    cam_labels: np.ndarray,
    uncertain: np.ndarray,
    prediction: np.ndarray,
    truth: np.ndarray | None,
    classes: Sequence[str],
    palette: Sequence[Color],
) -> None:
    """Write image | CAM | pseudo-label | prediction | truth, with a legend, atomically.

    Args:
        path: of the PNG file; missing folders are made.
        image: RGB, W x H.
        cam: (C, H, W) float in [0, 1], filtered by the image's labels; its maximum is shown.
        cam_labels: (H, W) integers 0..C, the pseudo-label of the CAM.
        uncertain: (H, W) bool, hatched on the pseudo-label.
        prediction: (H, W) integers 0..C.
        truth: (H, W) integers 0..C and 255 for ignored pixels; None leaves the column out.
        classes: names of the C foreground classes.
        palette: C + 1 colours, the background first.

    Raises:
        ValueError: if a map does not have the image's size.
        OSError: if the file cannot be written.
    """
    size = (image.height, image.width)
    maps = dict(cam=cam, cam_labels=cam_labels, uncertain=uncertain)
    maps |= dict(prediction=prediction, truth=truth)
    for name, array in maps.items():
        if array is not None and array.shape[-2:] != size:
            raise ValueError(f"{name} {array.shape} does not fit the image {size}")

    canvas = _Canvas(image, palette)
    heat = cam.max(axis=0) if len(cam) else np.zeros(size)
    columns = {
        "image": canvas.image,
        "CAM": canvas.heat(heat),
        "pseudo-label": canvas.hatched(canvas.labels(cam_labels), uncertain),
        "prediction": canvas.labels(prediction),
    }
    if truth is not None:
        columns["truth"] = canvas.labels(truth)
    # Without masks the filtered CAM says best which classes are there.
    there = set(np.flatnonzero(cam.any(axis=(1, 2))) + 1)
    if truth is not None:
        there |= set(np.unique(truth))
    labels = there | set(np.unique(cam_labels)) | set(np.unique(prediction))
    legend = [
        (palette[label], shown(classes[label - 1], NAME), label in there)
        for label in sorted(labels, key=lambda label: (label not in there, label))
        if 0 < label <= len(classes)
    ]
    if IGNORE in there:
        legend.append((tuple(full_palette(palette)[IGNORE].tolist()), "not counted", True))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(path, _compose(columns, legend))


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) in a panel of an image of this size, in its proportions if it has room."""
    width, height = size
    if height < MIN_HEIGHT:
        factor = math.ceil(MIN_HEIGHT / height)  # whole pixels stay square
    else:
        factor = min(1, MAX_HEIGHT / height)
    factor = min(factor, MAX_WIDTH // width or MAX_WIDTH / width)
    return max(1, round(width * factor)), max(1, round(height * factor))


@dataclass
class _Canvas:
    """Draws maps over one image at the size of the panel."""

    source: Image.Image
    palette: Sequence[Color]

    def __post_init__(self) -> None:
        self.size = shown_size(self.source.size)
        self.image = self.source.convert("RGB").resize(self.size, Image.Resampling.BICUBIC)
        # The image in pale grey below colours, so that these are not mistaken for its own.
        white = Image.new("L", self.size, 255)
        self.backdrop = Image.blend(self.image.convert("L"), white, 0.35).convert("RGB")

    def labels(self, labels: np.ndarray) -> Image.Image:
        mask = Image.fromarray(labels.astype(np.uint8))
        mask = np.asarray(mask.resize(self.size, Image.Resampling.NEAREST))
        return overlay(self.backdrop, mask, self.palette, alpha=0.7)

    def hatched(self, picture: Image.Image, where: np.ndarray) -> Image.Image:
        where = Image.fromarray(where.astype(np.uint8))
        where = np.asarray(where.resize(self.size, Image.Resampling.NEAREST)) > 0
        y, x = np.indices(where.shape)
        stripes = (x + y) % _HATCH_PERIOD < _HATCH_WIDTH
        opacity = np.where(where, np.where(stripes, 230, 40), 0).astype(np.uint8)
        white = Image.new("RGB", self.size, "white")
        return Image.composite(white, picture, Image.fromarray(opacity))

    def heat(self, heat: np.ndarray) -> Image.Image:
        heat = Image.fromarray(heat.astype(np.float32))
        heat = np.asarray(heat.resize(self.size, Image.Resampling.BILINEAR)).clip(0, 1)
        stops = np.linspace(0, 1, len(_HEAT))
        colors = np.stack([np.interp(heat, stops, _HEAT[:, k]) for k in range(3)], axis=-1)
        grey = self.image.convert("L").convert("RGB")
        return Image.blend(grey, Image.fromarray(colors.round().astype(np.uint8)), 0.65)


def _compose(columns: dict[str, Image.Image], legend: list[tuple[Color, str, bool]]) -> Image.Image:
    width, height = next(iter(columns.values())).size
    total_width = len(columns) * (width + GAP) + GAP
    items = [Item(color, name if there else f"{name} (not there)", DARK if there else PALE)
             for color, name, there in legend]
    below = Legend([*items, Item(None, "hatched: uncertain", PALE)], total_width)
    panel = Image.new("RGB", (total_width, BAR + height + below.height + GAP // 2), "white")
    draw, font = ImageDraw.Draw(panel), text_font()
    for index, (title, picture) in enumerate(columns.items()):
        left = GAP + index * (width + GAP)
        draw.text((left + width / 2, BAR / 2), title, DARK, font, anchor="mm")
        panel.paste(picture, (left, BAR))
    below.draw(draw, BAR + height + GAP // 2)
    return panel
