"""What is saved of an image, whole or not at all."""

from __future__ import annotations

import errno
import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cosa.cam import resize
from cosa.core.errors import UserError
from cosa.core.files import atomic, free_space
from cosa.data.images import image_size, read_image
from cosa.data.reading import BY_DEPTH, Reading
from cosa.export.annotations import find_regions, to_arrays
from cosa.inference.jobs import CannotGoOn, Job
from cosa.inference.pixels import Size
from cosa.inference.segmenter import Maps
from cosa.pictures.palette import Color, overlay, save_image, save_mask

LEAST_SAVED_PROBABILITY = 1e-3
"""Classes that are nowhere in an image as probable as this are not saved."""

HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""Errors that the next file will meet as well."""


@dataclass
class Results:
    """The content of an image's files; what is not saved is None."""

    mask: np.ndarray | None = None
    """(H, W) uint8, of the image's size; also what an overlay and regions show."""
    probability: np.ndarray | None = None
    """(H, W) float16, of the mask's classes, for regions."""
    cpl: np.ndarray | None = None
    """(H, W) uint8"""
    archives: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """The arrays of "cam", "probabilities" and "certainty"."""


def write(
    job: Job, results: Results, palette: Sequence[Color], reading: Reading = BY_DEPTH
) -> None:
    """Write the files of a job, each atomically; the image is read again for its overlay.

    Raises:
        UserError: naming the file that cannot be written, or no longer be read; ``CannotGoOn``
            if the disk is full or read-only.
    """
    try:
        for kind, path in job.results.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind in ("mask", "cpl"):
                save_mask(path, getattr(results, kind), palette)
            elif kind == "overlay":
                image = read_image(job.source, reading)
                if results.mask.shape != (image.height, image.width):
                    raise UserError(f"{job.source} changed while it was segmented; run again")
                save_image(path, overlay(image, results.mask, palette))
            elif kind == "index":
                save_image(path, Image.fromarray(results.mask))
            elif kind == "regions":
                regions = find_regions(results.mask, results.probability)
                save_arrays(path, to_arrays(regions, results.mask.shape))
            else:
                save_arrays(path, results.archives[kind])
    except OSError as error:
        reason = error.strerror or error
        if error.errno in HOPELESS:
            raise CannotGoOn(
                f"{path} cannot be written: {reason} ({free_space(path)}); make room, then the "
                "same command goes on where it left off"
            ) from error
        raise UserError(f"the result of {job.source} cannot be written: {reason}") from error


def fits(job: Job) -> bool:
    """Whether a job's files, which must be there, have the size that its image has now.

    The headers tell. A file that cannot be read, or has no size, is given the benefit of the
    doubt: whoever needs its content says what is wrong with it.
    """
    try:
        width, height = image_size(job.source)
    except UserError:
        return True
    return all(_size(path) in (None, (height, width)) for path in job.results.values())


def _size(path: Path) -> Size | None:
    """(height, width) of the image that a result belongs to, None if it does not tell."""
    try:
        if path.suffix == ".png":
            return image_size(path)[::-1]
        with np.load(path) as arrays:
            height, width = arrays["size"].tolist()
        return height, width
    except (UserError, OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a compressed .npz file atomically; the folder must exist."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    with atomic(path) as file:
        file.write(content.getbuffer())


@torch.inference_mode()
def probability_arrays(maps: Maps, size: Size, grid: Size) -> dict[str, np.ndarray]:
    """What is saved as "probabilities": the softmax of the mean logits, before any CRF.

    Args:
        maps: of one image.
        size: (height, width) of the image itself.
        grid: (h, w) of the result.

    Returns:
        ``probabilities`` (N, h, w) float16, of the classes that somewhere reach
        ``LEAST_SAVED_PROBABILITY``; ``classes`` (N,) uint8, their labels, 0 the background;
        ``size`` (2,) int32.
    """
    probabilities = (resize(maps.seg[None], grid)[0] / maps.passes).softmax(dim=0)
    saved = probabilities.amax(dim=(1, 2)) >= LEAST_SAVED_PROBABILITY
    kept = torch.nonzero(saved).flatten().tolist()
    labels = [maps.classes[index] for index in kept]
    return _archive("probabilities", probabilities[kept], labels, size)


@torch.inference_mode()
def cam_arrays(maps: Maps, size: Size, grid: Size) -> dict[str, np.ndarray]:
    """What is saved as "cam": M' of the present (else the predicted) classes.

    Returns:
        ``cam`` (N, h, w) float16 in [0, 1]; ``classes`` (N,) uint8, their labels from 1;
        ``size`` (2,) int32. For the arguments see ``probability_arrays``.
    """
    # PyTorch resizes no empty tensors.
    cam = resize(maps.cam[None], grid)[0] if len(maps.cam) else maps.cam.new_zeros(0, *grid)
    return _archive("cam", cam, maps.cam_classes, size)


def certainty_arrays(certainty: float, size: Size) -> dict[str, np.ndarray]:
    """What is saved as "certainty": ``certainty`` () float64 in [0, 1], ``size`` (2,) int32."""
    return {"certainty": np.array(certainty), "size": np.array(size, dtype=np.int32)}


def read_certainty(path: Path) -> float:
    """What ``certainty_arrays`` holds, from its file.

    Raises:
        UserError: the file cannot be read, or holds no such number.
    """
    try:
        with np.load(path) as arrays:
            value = float(arrays["certainty"])
        if not 0 <= value <= 1:
            raise ValueError(f"{value} is not between 0 and 1")
    except (OSError, ValueError, TypeError, LookupError, EOFError, zipfile.BadZipFile,
            zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error})") from error
    return value


def _archive(name: str, maps: Tensor, labels: list[int], size: Size) -> dict[str, np.ndarray]:
    return {
        name: maps.half().cpu().numpy(),
        "classes": np.array(labels, dtype=np.uint8),
        "size": np.array(size, dtype=np.int32),
    }
