"""Images to maps and labels: the network whole or in windows, label filter, CRF."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cosa.cam import resize
from cosa.core.device import weights_cast_once
from cosa.core.errors import UserError
from cosa.core.memory import memory_size
from cosa.crf import dense_crf, working_memory
from cosa.data.images import network_input, to_tensor
from cosa.inference.jobs import CannotGoOn, Job
from cosa.inference.memory_budget import Room
from cosa.inference.pixels import Size
from cosa.inference.settings import CrfSettings, Settings
from cosa.inference.windows import SlidingNetwork
from cosa.network import CoSANetwork
from cosa.predict import believed, multi_scale, scaled_size

CELLS = 4
"""Cells per patch, along a side, of the maps that windows yield and of the maps that are saved."""


@dataclass
class Prepared:
    """What is needed of an image."""

    size: Size
    """(height, width) of the image itself."""
    pixels: Tensor
    """Whole: the square (3, S, S) float32 in [0, 1]. Slide: (H', W', 3) uint8."""
    photo: np.ndarray | None
    """(H', W', 3) uint8, shrunk to ``max_size``, where there will be a CRF."""
    present: list[int] | None
    """The foreground classes that the image holds, counted from 1, if that is known."""


@dataclass
class Maps:
    """What the network says about an image, on its own grid."""

    classes: list[int]
    """The labels of ``seg``'s channels: 0 the background, then the classes that take part."""
    cam_classes: list[int]
    """The labels of ``cam``'s channels: the present classes, else those that are predicted."""
    seg: Tensor | None
    """(K, h, w) logits summed over the passes, or probabilities after the CRF."""
    cam: Tensor | None
    """(N, h, w) in [0, 1], M' of the paper."""
    passes: int | None
    """In the sum of ``seg``; None where these are probabilities."""
    presence: Tensor
    """(K,) in [0, 1], how probably the image as a whole holds the classes of ``seg``; 1 for the
    background, and for all where labels tell."""


CRF_MEMORY = 0.25
"""Share of the main memory that CRFs on the CPU may need at the same time."""


class Segmenter:
    """A network with the settings under which it is used.

    Args:
        network: in evaluation mode; runs on the device where it is.
        settings: see ``Settings``.
        seg, cam: which maps are wanted.
        batch_size: images, or windows, per forward pass (twice as many with flips).
        autocast: makes the context of the forward pass, such as bfloat16 autocast.
    """

    def __init__(
        self,
        network: CoSANetwork,
        settings: Settings,
        *,
        seg: bool = True,
        cam: bool = False,
        batch_size: int = 4,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        self.network, self.settings = network, settings
        self.maps = ("seg",) * seg + ("cam",) * cam
        self.batch_size, self.autocast = batch_size, autocast
        self.device = next(network.parameters()).device
        self._room = Room(int(CRF_MEMORY * memory_size()))

    def prepare(self, image: Image.Image, present: list[int] | None) -> Prepared:
        """What to keep of an RGB image until its turn; for threads that read ahead."""
        settings, size = self.settings, (image.height, image.width)
        photo = None
        if settings.crf:
            photo = np.array(resized(image, shrunk(size, settings.max_size)))
        if settings.mode == "whole":
            return Prepared(size, network_input(image, settings.size), photo, present)
        patches = scaled_size(shrunk(size, settings.max_size), 1.0, self.network.stride)
        pixels = torch.from_numpy(np.array(resized(image, patches)))
        return Prepared(size, pixels, photo, present)

    def predict(self, batch: Sequence[Prepared]) -> Iterator[Maps]:
        """The maps of some images, in order; in mode "whole" in a single batch."""
        if self.settings.mode == "whole" and batch:
            squares = torch.stack([prepared.pixels for prepared in batch]).to(self.device)
            yield from self._maps(squares, batch, None)
        elif self.settings.mode == "slide":
            for prepared in batch:
                image = to_tensor(prepared.pixels.numpy()).to(self.device)[None]
                yield from self._maps(image, [prepared], self.saved_grid(prepared.size))

    def _maps(
        self, images: Tensor, batch: Sequence[Prepared], grid: Size | None
    ) -> Iterator[Maps]:
        settings, network = self.settings, self.network
        if settings.mode == "slide":
            network = SlidingNetwork(
                network, settings.window, settings.stride, self.batch_size, self.maps
            )
        with torch.no_grad(), self.autocast(), weights_cast_once(self.network):
            fused = multi_scale(network, images, settings.scales, settings.flip, grid, self.maps)
        for index, prepared in enumerate(batch):
            classes, cam_classes = list(range(self.network.num_classes + 1)), []
            scores = fused.logits[index]
            seg, cam = (None if maps is None else maps[index] for maps in (fused.seg, fused.cam))
            # Leaving channels out is to set them to -inf, which would not survive resizing.
            if prepared.present is not None:
                classes, cam_classes = [0, *prepared.present], prepared.present
                seg = None if seg is None else seg[classes]
            else:
                if settings.min_class_score and seg is not None:
                    classes = [0, *_labels(believed(scores, settings.min_class_score))]
                    seg = seg[classes]
                if cam is not None:
                    cam_classes = _labels(scores > 0)  # a probability of 1/2
            cam = None if cam is None else cam[[label - 1 for label in cam_classes]]
            presence = scores.new_ones(len(classes))
            if prepared.present is None:
                presence[1:] = scores[[label - 1 for label in classes[1:]]].sigmoid()
            yield Maps(classes, cam_classes, seg, cam, settings.passes, presence)

    def saved_grid(self, size: Size) -> Size:
        """(h, w) of the maps that are saved of an image of ``size``: ``CELLS`` per patch."""
        settings, patch = self.settings, self.network.stride
        if settings.mode == "slide":
            height, width = scaled_size(shrunk(size, settings.max_size), 1.0, patch)
            return height // patch * CELLS, width // patch * CELLS
        side = min(settings.size, CELLS * max(1, round(settings.size / patch)))
        return side, side

    @property
    def crf_in_threads(self) -> bool:
        """Whether the CRF runs on the CPU."""
        crf = self.settings.crf
        return crf is not None and (self.device.type == "cpu" or crf.backend == "pydensecrf")

    @property
    def finishes_in_threads(self) -> bool:
        """Whether threads make the masks out of the maps, while the network is at work.

        On a GPU they are made where the network is, in its turn.
        """
        return self.crf_in_threads or self.device.type == "cpu"

    def room_for_crf(self, prepared: Prepared | None) -> AbstractContextManager:
        """A context that a thread enters, for an image's CRF on the CPU, when memory is free."""
        if prepared is None or prepared.photo is None:
            return nullcontext()
        height, width = prepared.photo.shape[:2]
        present = prepared.present
        classes = 1 + (self.network.num_classes if present is None else len(present))
        return self._room.take(working_memory(height * width, classes))

    @torch.inference_mode()
    def refine(self, maps: Maps, photo: np.ndarray) -> Maps:
        """Put the CRF's probabilities, at the size of ``photo``, in the place of the logits.

        It starts from the softmax of the mean logits of all passes, at temperature 1, at which
        the network was trained: the softmax of their sum is so close to 0 and 1 that a CRF
        could hardly move it.

        Raises:
            UserError: the parameters do not suit the photo.
        """
        if len(maps.classes) == 1:
            return maps
        device = torch.device("cpu") if self.crf_in_threads else self.device
        logits = resize(maps.seg[None].to(device) / maps.passes, photo.shape[:2])[0]
        refined = run_crf(photo, logits.softmax(dim=0), self.settings.crf)
        return replace(maps, seg=refined, passes=None)

    @property
    def shrinks(self) -> bool:
        """Whether ``max_size`` has a say."""
        return self.settings.mode == "slide" or self.settings.crf is not None

    def too_large(self, job: Job) -> UserError:
        """What to tell when an image is too large for the memory, beside the network."""
        options = self._lower("--workers", *(["--size"] if self.settings.mode == "whole" else []))
        return UserError(f"out of memory at {job.source}: {options}, or shrink the image")

    def out_of_memory(self) -> CannotGoOn:
        """What to tell when the device's memory is too small for the network."""
        sides = ["--window" if self.settings.mode == "slide" else "--size"]
        if max(self.settings.scales) > 1:
            sides.append("--scales")
        return CannotGoOn(f"out of memory on {self.device}: {self._lower('--batch-size', *sides)}")

    def _lower(self, *options: str) -> str:
        """Advice to lower one of the options, or ``max_size`` where that helps."""
        options += ("--max-size",) * self.shrinks
        return f"lower {', '.join(options[:-1])} or {options[-1]}"


def _labels(chosen: Tensor) -> list[int]:
    """The classes, from 1, that a (C,) bool tensor marks."""
    return (1 + torch.nonzero(chosen).flatten()).tolist()


def run_crf(photo: np.ndarray, probabilities: Tensor, crf: CrfSettings) -> Tensor:
    """``dense_crf`` of an image (H, W, 3) uint8 and probabilities (K, H, W), on their device.

    Raises:
        UserError: a parameter is out of range, or the backend is not installed.
    """
    try:
        return dense_crf(
            photo,
            probabilities,
            iterations=crf.iterations,
            gaussian=crf.gaussian,
            bilateral=crf.bilateral,
            backend=crf.backend,
        )
    except ValueError as error:
        raise UserError(f"the CRF cannot run with these parameters: {error}") from error


def shrunk(size: Size, longest: int) -> Size:
    """``size`` (height, width), in proportion, so that no side is above ``longest``."""
    factor = min(1.0, longest / max(size))
    height, width = (max(1, round(side * factor)) for side in size)
    return height, width


def resized(image: Image.Image, size: Size) -> Image.Image:
    """An RGB image at (height, width), bilinear, antialiased; itself where that is its size."""
    if (image.height, image.width) == size:
        return image
    return image.resize(size[::-1], Image.Resampling.BILINEAR)
