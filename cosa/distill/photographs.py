"""Photographs, decoded once and held on the device as squares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cosa.core.errors import UserError
from cosa.core.terminal import warn
from cosa.core.threads import in_threads
from cosa.data.folder import find_images
from cosa.data.images import open_image
from cosa.data.transforms import Geometry, crop

HELD_OUT = 20
"""One photograph in so many is held out."""
FINER = 2
"""Side of the squares, as a multiple of that of the crops. Between two and one of their pixels then
become one of a crop that shows at least a quarter of a photograph, and none is skipped."""


@dataclass(frozen=True)
class Photographs:
    """Whole photographs, squashed to squares.

    Attributes:
        pixels: (N, 3, S, S) uint8, on the device.
        aspects: (N,) float32, on the device: width by height before they were squashed.
        learnt, held_out: indices of those to learn from, and of one in ``HELD_OUT`` of the others,
            by sorted name; (n,) int64, on the device.
    """

    pixels: Tensor
    aspects: Tensor
    learnt: Tensor
    held_out: Tensor

    def whole(self, indices: Tensor, size: int) -> Tensor:
        """Some of them as smaller squares, (n, 3, size, size) float32 in [0, 1]."""
        pixels = self.pixels[indices].float().div_(255)
        return F.interpolate(pixels, (size, size), mode="area")


def load_photographs(folders: Sequence[str], size: int, device: torch.device) -> Photographs:
    """The images below some folders that can be read; of the others a warning each.

    Args:
        folders: searched with their subfolders; a file that is found twice, by whatever way,
            counts once.
        size: S, the side of the squares.

    Raises:
        UserError: there is no such folder, no image in one, or fewer than two can be read.
    """
    paths = find_paths(folders)
    pixels = torch.empty((len(paths), 3, size, size), dtype=torch.uint8, device=device)

    def load(place: int) -> float | str:
        """Puts a photograph in its place; its aspect, or why it cannot be read."""
        try:
            square, aspect = squashed(paths[place], size)
        except UserError as error:
            return str(error)
        pixels[place] = square.to(device)
        return aspect

    found = in_threads(load, range(len(paths)))
    readable = []
    for place, aspect in enumerate(found):
        if isinstance(aspect, str):
            warn(f"left out: {aspect}")
        else:
            readable.append(place)
    if len(readable) < 2:
        raise UserError(f"{len(readable)} of {len(paths)} photographs can be read: give at least "
                        "two, one to learn from and one to be held out")
    held_out = readable[::HELD_OUT]
    learnt = sorted({*readable} - {*held_out})
    aspects = [1.0 if isinstance(aspect, str) else aspect for aspect in found]
    return Photographs(pixels, torch.tensor(aspects, device=device),
                       torch.tensor(learnt, device=device), torch.tensor(held_out, device=device))


def find_paths(folders: Sequence[str]) -> list[Path]:
    """The images below some folders, sorted, each once.

    Raises:
        UserError: there is no such folder, or no image in one.
    """
    paths: dict[Path, Path] = {}
    for folder in folders:
        # "" would be the working directory, of which a variable that is not set is not to tell.
        if not folder or not Path(folder).is_dir():
            raise UserError(f"'{folder}' is no folder: give folders of photographs")
        for path in find_images(Path(folder)).values():
            paths.setdefault(path.resolve(), path)
    return sorted(paths.values())


def squashed(path: Path, size: int) -> tuple[Tensor, float]:
    """A photograph as a square (3, size, size) uint8, and its width by its height.

    Raises:
        UserError: naming the file, if it cannot be read.
    """
    image = open_image(path)
    width, height = image.size
    content = crop(image, Geometry((0, 0, width, height), (0, 0, size, size), flip=False))
    planes = torch.from_numpy(np.array(content, dtype=np.uint8)).permute(2, 0, 1)
    return planes.contiguous(), width / height
