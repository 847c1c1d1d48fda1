"""Procedural drawing for generated images: shapes, patterns, colours and backgrounds.

Canvases are (S, S, 3) float32 RGB in [0, 1]; coverage maps ("alpha") are (S, S) in [0, 1].
Shapes live in a local frame (u, v) in which an object reaches from -1 to 1.
"""

from __future__ import annotations

import colorsys
import functools
import math

import numpy as np
from PIL import Image

EDGE = 7.0
"""Steepness of the outlines: about one pixel of soft edge at the sizes drawn here."""


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Noise (size, size) of about unit variance with features of size/cells pixels."""
    coarse = rng.normal(0.0, 1.0, (cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB (3,) of a hue on the unit circle; any real hue is wrapped."""
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), np.float32)


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A low-saturation canvas with noise of several scales."""
    base = colour(rng.random(), rng.uniform(0.0, 0.18), rng.uniform(0.35, 0.75))
    grain = 0.09 * smooth_noise(rng, size, 4) + 0.05 * smooth_noise(rng, size, 12)
    grain += 0.03 * smooth_noise(rng, size, 32)
    drift = np.stack([
        0.03 * smooth_noise(rng, size, 3) + 0.05 * smooth_noise(rng, size, 9) for _ in range(3)
    ], axis=-1)
    return (base + grain[..., None] + drift).astype(np.float32)


def local_frame(
    size: int, centre: np.ndarray, radius: float, aspect: float, angle: float
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates u (along the object) and v (across it), each (size, size).

    ``centre`` is (y, x) and ``radius`` the half length across, in pixels; the object is
    ``aspect`` times longer than wide and turned by ``angle`` radians.
    """
    y, x = _grid(size)
    dy, dx = y - float(centre[0]), x - float(centre[1])
    cos, sin = math.cos(angle), math.sin(angle)
    u = (cos * dx + sin * dy) / float(radius * aspect)
    v = (cos * dy - sin * dx) / float(radius)
    return u, v


@functools.lru_cache(maxsize=8)
def _grid(size: int) -> np.ndarray:
    """Pixel coordinates y and x, stacked (2, size, size) float32."""
    return np.mgrid[:size, :size].astype(np.float32)


def shape(name: str, u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Coverage (S, S) of a named shape with a slightly irregular outline.

    Raises:
        KeyError: no shape of that name.
    """
    waves = rng.normal(0.0, 0.025, 4)
    phases = rng.uniform(0.0, 2 * np.pi, 4)
    # Harmonics 2..5 of the outline as powers of a unit complex number, without sines.
    turn = (u + 1j * v) / (np.hypot(u, v) + 1e-6)
    wobble = np.zeros_like(turn)
    for wave, phase in zip(waves[::-1], phases[::-1], strict=True):
        wobble = (wobble + np.complex64(wave * np.exp(1j * phase))) * turn
    distance = _SHAPES[name](u, v) + (wobble * turn).imag
    return np.clip((1.0 - distance) * EDGE + 0.5, 0.0, 1.0)


_SHAPES = {
    "ellipse": lambda u, v: np.sqrt(u**2 + v**2),
    "box": lambda u, v: np.maximum(np.abs(u), np.abs(v) * 1.1),
    "hull": lambda u, v: np.maximum(np.abs(u) + 0.45 * np.clip(v, -0.5, 1), np.abs(v) * 1.5),
    "pear": lambda u, v: np.sqrt(u**2 + (v * (1.2 + 0.6 * u)) ** 2),
    "triangle": lambda u, v: np.maximum(np.abs(v) * 1.3 + 0.5 * u + 0.2, -u),
    "diamond": lambda u, v: np.abs(u) + np.abs(v),
    "ring": lambda u, v: 2.2 * np.abs(np.sqrt(u**2 + v**2) - 0.65) + 0.1,
    "cross": lambda u, v: np.minimum(
        np.maximum(np.abs(u), 2.5 * np.abs(v)), np.maximum(np.abs(v), 2.5 * np.abs(u))
    ),
    "bean": lambda u, v: np.sqrt(u**2 + (1.4 * (v - 0.6 * u**2 + 0.2)) ** 2),
    "star": lambda u, v: np.sqrt(u**2 + v**2) * (1.25 + 0.3 * np.cos(5 * np.arctan2(v, u))),
}
SHAPES = tuple(_SHAPES)


def pattern(name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A high-contrast pattern (S, S) in [0, 1] in local coordinates.

    Raises:
        KeyError: no pattern of that name.
    """
    return _soft(_PATTERNS[name](u, v))


def _soft(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(2.0 * x)


_PATTERNS = {
    "sail": lambda u, v: np.sin(5.0 * (u + v)),
    "bars": lambda u, v: np.sin(6.0 * u),
    "rings": lambda u, v: np.sin(7.0 * np.sqrt(u**2 + v**2)),
    "checks": lambda u, v: 2 * np.sin(5.0 * u) * np.sin(5.0 * v),
    "dots": lambda u, v: np.cos(6.5 * u) + np.cos(6.5 * v) - 0.5,
    "cross": lambda u, v: 1.0 - 4.0 * np.minimum(np.abs(u), np.abs(v)),
    "star": lambda u, v: np.cos(5 * np.arctan2(v, u)),
    "spiral": lambda u, v: np.sin(6.0 * np.sqrt(u**2 + v**2) + np.arctan2(v, u)),
    "waves": lambda u, v: np.sin(6.0 * v + 2.0 * np.sin(3.0 * u)),
    "half": lambda u, v: 3.0 * u,
    "eye": lambda u, v: 1.5 - 4.0 * np.abs(np.sqrt(u**2 + v**2) - 0.5),
    "fan": lambda u, v: np.cos(8 * np.arctan2(v, u)),
    "zigzag": lambda u, v: np.sin(6.0 * (v + 0.5 * np.abs(((2 * u) % 2) - 1))),
    "brick": lambda u, v: np.sin(6 * v) + 0.8 * np.sin(4 * u + 1.5 * np.sign(np.sin(3 * v))),
}
PATTERNS = tuple(_PATTERNS)


def grating(
    size: int, wave_length: float, direction: float, turn: float, rng: np.random.Generator
) -> np.ndarray:
    """Sine grating (size, size) in [-1, 1]; wave length in pixels, angles in radians."""
    y, x = _grid(size)
    angle = direction + turn
    along = math.cos(angle) * x + math.sin(angle) * y
    return np.sin(along * (2 * math.pi / wave_length) + rng.uniform(0, 2 * math.pi))


def shade(rng: np.random.Generator, tint: np.ndarray, size: int) -> np.ndarray:
    """A fill (size, size, 3): the tint under uneven light."""
    light = 1.0 + 0.10 * smooth_noise(rng, size, 3) + 0.04 * smooth_noise(rng, size, 16)
    return (tint * light[..., None]).astype(np.float32)


def paint(canvas: np.ndarray, alpha: np.ndarray, fill: np.ndarray) -> None:
    """Lay a fill over the canvas, in place."""
    canvas += alpha[..., None].astype(np.float32) * (fill - canvas)


def context(
    canvas: np.ndarray,
    rng: np.random.Generator,
    name: str,
    centre: tuple[float, float] | None,
) -> None:
    """Draw water, rails or branches, in place, below ``centre`` (y, x) or anywhere.

    Raises:
        KeyError: no context of that name.
    """
    size = canvas.shape[0]
    if centre is None:
        centre = tuple(rng.uniform(0.3, 0.8, 2) * size)
    _CONTEXTS[name](canvas, rng, centre)


def _water(canvas: np.ndarray, rng: np.random.Generator, centre: tuple[float, float]) -> None:
    size = canvas.shape[0]
    y, x = _grid(size)
    edge = centre[0] + 1.5 * smooth_noise(rng, size, 5)
    depth = rng.uniform(0.18, 0.32) * size
    alpha = np.clip(y - edge, 0, 1) * np.clip(edge + depth - y, 0, 1) * 0.9
    wave = np.sin(1.1 * y + 2.0 * np.sin(0.13 * x + rng.uniform(0, 6.3)))
    tint = colour(0.58 + rng.normal(0, 0.02), 0.25, rng.uniform(0.5, 0.7))
    paint(canvas, alpha, tint + 0.08 * wave[..., None].astype(np.float32))


def _rails(canvas: np.ndarray, rng: np.random.Generator, centre: tuple[float, float]) -> None:
    size = canvas.shape[0]
    u, v = local_frame(size, np.array(centre), 0.075 * size, 1.0, rng.normal(0.0, 0.12))
    sleepers = (np.sin(2.2 * u) > 0.2) * (np.abs(v) < 1.0)
    tracks = np.abs(np.abs(v) - 0.7) < 0.15
    paint(canvas, sleepers * 0.75, colour(0.07, 0.25, 0.32))
    paint(canvas, tracks * 0.9, colour(0.6, 0.05, 0.82))


def _branches(canvas: np.ndarray, rng: np.random.Generator, centre: tuple[float, float]) -> None:
    size = canvas.shape[0]
    tint = colour(0.09, 0.35, rng.uniform(0.25, 0.38))
    for k in range(4):
        turn = rng.normal(0.0, 0.5) + (0.0 if k < 2 else 1.57)
        start = np.array(centre) + rng.normal(0.0, 0.05, 2) * size
        u, v = local_frame(size, start, 0.03 * size, 1.0, turn)
        bend = 0.5 * np.sin(0.25 * u + rng.uniform(0, 6.3))
        reach = rng.uniform(8, 13)
        paint(canvas, (np.abs(v + bend) < 0.7) * (np.abs(u) < reach) * 0.95, tint)


_CONTEXTS = {"water": _water, "rails": _rails, "branches": _branches}
