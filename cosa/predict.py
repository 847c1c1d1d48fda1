"""Multi-scale and flip prediction, shared by the teacher, the evaluation and infer.py."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cosa.cam import normalize, resize
from cosa.network import NetworkOutput
from cosa.present import PresentClasses

MAPS = ("cam", "aux_cam", "seg")


@dataclass
class Prediction:
    """Fused maps at pixel resolution, float32; None for a map that was not asked for.

    C are all classes, or the K places of the present ones where only these were asked for.
    """

    cam: Tensor | None  # (B, C, H, W) in [0, 1], M' of the paper
    aux_cam: Tensor | None  # (B, C, H, W) in [0, 1], the auxiliary M'
    seg: Tensor | None  # (B, C+1, H, W) logits summed over scales and flips, S'; 0: background
    logits: Tensor  # (B, C) class scores, mean over scales and flips


@torch.no_grad()
def multi_scale(
    network: Callable[[Tensor], NetworkOutput],
    images: Tensor,
    scales: Sequence[float] = (1.0, 0.5, 1.5),
    flip: bool = True,
    size: tuple[int, int] | None = None,
    maps: Collection[str] = MAPS,
    present: PresentClasses | None = None,
    normalized: bool = True,
) -> Prediction:
    """CAMs and segmentation logits, fused over scales and horizontal flips (Sec. 3 of CoSA).

    CAMs: resized to the output, maximum over the two flips, ReLU, sum over the scales, then
    min-max normalised per image and class. Logits: summed over flips and scales, so that their
    size grows with the number of passes (the temperature of Eq. 7 is meant for this sum).

    Args:
        network: a ``CoSANetwork`` in evaluation mode, or an ``AssignmentNetwork``; its
            ``stride`` is read. Its mode is left as it is.
        images: (B, 3, H, W) float, RGB in [0, 1]. Any size: each scaled size is rounded to a
            multiple of the stride, at least one position; images that have that size already
            are not resampled.
        scales: factors of the image size, at least one, all above 0.
        flip: see the mirrored images too, in the same forward pass.
        size: (height, width) of the output; the images' own by default.
        maps: names of the maps to fuse, of ``MAPS``; the others cost nothing.
        present: fuse the maps of these classes of each image alone, and the background's.
        normalized: False leaves out the last step for CAMs, for who normalises otherwise: they
            are then sums over the scales, at least 0.

    Returns:
        A ``Prediction`` without gradients.

    Raises:
        ValueError: there is no scale, or one is not above 0.
    """
    views = passes(network, images, scales, flip, maps)
    size = (images.shape[-2], images.shape[-1]) if size is None else size
    return fuse(views, size, flip, present, normalized)


@torch.no_grad()
def passes(
    network: Callable[[Tensor], NetworkOutput], images: Tensor, scales: Sequence[float], flip: bool,
    maps: Collection[str] = MAPS,
) -> Iterator[dict[str, Tensor]]:
    """What a network says of images at each scale, before it is fused.

    Args:
        network, images, scales, flip, maps: see :func:`multi_scale`.

    Yields:
        For each scale the maps and the "logits", on the network's grid; with ``flip`` those of the
        mirrored images follow.

    Raises:
        ValueError: there is no scale, or one is not above 0.
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales must be one or more positive numbers, not {list(scales)}")
    for scale in scales:
        scaled = resize(images, scaled_size(images.shape[-2:], scale, network.stride))
        if flip:
            scaled = torch.cat([scaled, scaled.flip(-1)])
        output = network(scaled)
        yield {name: getattr(output, name) for name in (*maps, "logits")}


@torch.no_grad()
def fuse(
    views: Iterable[dict[str, Tensor]], size: tuple[int, int], flip: bool,
    present: PresentClasses | None = None, normalized: bool = True,
) -> Prediction:
    """The prediction of what :func:`passes` gave; for the other arguments see multi_scale."""
    total: dict[str, Tensor | None] = dict.fromkeys(MAPS)
    logits: list[Tensor] = []
    for view in views:
        logits += view["logits"].float().chunk(2 if flip else 1)
        for name in (name for name in MAPS if name in view):
            sides = _unflip(view[name], flip)
            if present is not None:
                sides = [present.select(side, background=name == "seg") for side in sides]
            fused = _fuse_seg(sides, size) if name == "seg" else _fuse_cam(sides, size)
            total[name] = _add(total[name], fused)
    if normalized:
        for name in ("cam", "aux_cam"):
            if total[name] is not None:
                total[name] = normalize(total[name])
    return Prediction(**total, logits=torch.stack(logits).mean(dim=0))


def believed(logits: Tensor, least: float) -> Tensor:
    """The classes that an image seems to hold by its class scores.

    Args:
        logits: (..., C) class scores before the sigmoid.
        least: probability in [0, 1] from which a class counts; the likeliest always does.

    Returns:
        A bool tensor of the same shape and device.
    """
    likeliest = logits == logits.amax(dim=-1, keepdim=True)
    return likeliest | (logits.sigmoid() >= least)


def strongest(seg: Tensor, allowed: Tensor) -> Tensor:
    """The class of the largest of (C + 1, H, W) logits at each position, the first of equal ones.

    Args:
        allowed: (C,) bool, which foreground classes are compared; the background always is.

    Returns:
        (H, W) int64 in 0..C, on the device of the logits.
    """
    channels = 1 + allowed.nonzero()[:, 0].to(seg.device)
    channels = torch.cat([channels.new_zeros(1), channels])
    if len(channels) == len(seg):
        return seg.max(dim=0).indices  # on the CPU several times as fast as argmax
    return channels[seg[channels].max(dim=0).indices]


def scaled_size(size: tuple[int, int], scale: float, stride: int) -> tuple[int, int]:
    """``size`` (height, width) times ``scale``, rounded to whole positions, at least one each."""
    height, width = (max(1, int(side * scale / stride + 0.5)) * stride for side in size)
    return height, width


def _fuse_cam(views: list[Tensor], size: tuple[int, int]) -> Tensor:
    # The maximum is taken at full resolution, as the released programs do: at the token grid it
    # would be cheaper, but interpolating maxima gives larger values than the maximum of both.
    views = [resize(view, size) for view in views]
    fused = torch.maximum(*views) if len(views) > 1 else views[0]
    return F.relu(fused)


def _fuse_seg(views: list[Tensor], size: tuple[int, int]) -> Tensor:
    # Resizing is linear: the sum over the flips may come first, at the small token grid.
    return resize(sum(views), size)


def _unflip(maps: Tensor, flip: bool) -> list[Tensor]:
    """Float32 maps of the images, and those of the mirrored images turned back."""
    maps = maps.float()
    if not flip:
        return [maps]
    straight, mirrored = maps.chunk(2)
    return [straight, mirrored.flip(-1)]


def _add(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total.add_(term)
