"""Pseudo-labels of the assignment network and their perplexity (Eq. 3, 4 and 7 of CoSA).

Everything here is a target: no result carries a gradient. A training step makes its targets by
way of the :class:`Labeller`, which knows the thresholds and the constants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cosa.cam import filter_by_labels, free_of_padding, normalize, resize
from cosa.core.tensors import at_least_float32
from cosa.present import PresentClasses
from cosa.threshold import DynamicThreshold

# The smallest distance to the threshold that enters the logarithm of Eq. (4). With the default
# constants it bounds the perplexity at 14.
MIN_DISTANCE = 1e-6


@dataclass
class CamTargets:
    """What a CAM of the assignment network becomes."""

    cam: Tensor
    """(B, K, H, W) in [0, 1]: of the K present classes, or of all C, absent ones 0."""
    labels: Tensor
    """(B, H, W) CAM pseudo-labels, 0 the background."""
    perplexity: Tensor
    """(B, H, W)"""
    threshold: float | Tensor
    """The xi that split foreground and background; a scalar."""
    present: PresentClasses | None = None
    """Which classes the maps of ``cam`` are of; None: of all C."""

    def all_classes(self, grid: tuple[int, int]) -> Tensor:
        """(B, C, h, w), the CAM averaged to a coarser grid, 0 for absent classes."""
        cam = F.interpolate(self.cam, tuple(grid), mode="area")
        return cam if self.present is None else self.present.spread(cam)


@dataclass
class SegTargets:
    """What the segmentation of the assignment network becomes."""

    probabilities: Tensor
    """(B, K + 1, H, W) of the background and the K present classes."""
    present: PresentClasses

    def all_classes(self, grid: tuple[int, int]) -> Tensor:
        """(B, C + 1, h, w) averaged to a coarser grid, 0 for absent classes."""
        probabilities = F.interpolate(self.probabilities, tuple(grid), mode="area")
        return self.present.spread(probabilities, background=True)


@torch.no_grad()
def cam_pseudo_labels(cam: Tensor, threshold: float | Tensor) -> tuple[Tensor, Tensor]:
    """Label every position with its strongest class, or background: Eq. (3) of CoSA.

    Args:
        cam: (B, C, H, W) activations in [0, 1], absent classes set to 0
            (``cosa.cam.filter_by_labels``).
        threshold: ξ in [0, 1], the confidence from which a position is foreground; a number, or a
            tensor () on the device of ``cam``.

    Returns:
        ``labels`` (B, H, W) int64 in 0..C with 0 for the background, and ``confidence``
        (B, H, W), ν, the strongest activation, in the dtype of ``cam``.

    A position without any activation is background at every threshold, ξ = 0 included:
    otherwise it would be given the first class, present in the image or not.
    """
    confidence, strongest = cam.max(dim=1)
    # Compared in the precision that `perplexity` uses, so both agree on the side of ξ.
    wide = at_least_float32(confidence)
    foreground = (wide >= threshold) & (wide > 0)
    labels = torch.where(foreground, strongest + 1, 0)
    return labels, confidence


@torch.no_grad()
def perplexity(
    confidence: Tensor, threshold: float | Tensor, alpha: float = 0.8, beta: float = 1.0
) -> Tensor:
    """How doubtful a CAM pseudo-label is: Eq. (4) of CoSA.

    The perplexity is ``(-log(alpha * d)) ** beta``, where d in [0, 1] is the distance of the
    confidence to the threshold, divided by the largest possible one on that side. It is least
    at d = 1 (0.223 for the default constants) and largest at the threshold, where d is bounded
    from below by ``MIN_DISTANCE`` so that the result is finite.

    Args:
        confidence: ν, any shape (usually (B, H, W)), in [0, 1]; values outside count as the
            nearer bound.
        threshold: ξ in [0, 1], a number or a tensor () on the same device, at whose value nobody
            looks.
        alpha: λα in (0, 1]; larger values lower the least perplexity.
        beta: λβ > 0; the sharpness.

    Returns:
        A tensor of the shape of ``confidence``, float32 (float64 for float64 input), >= 0.

    Raises:
        ValueError: a constant or the threshold is out of range.
    """
    known = not isinstance(threshold, Tensor)
    if known and not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1], got {threshold}")
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must be in (0, 1], got {alpha}")
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    confidence = at_least_float32(confidence)
    # At ξ = 0 or 1 one side has no extent: what lies there is at the threshold, d = 0.
    extents = (1 - threshold, threshold)
    over, under = ((max(side, MIN_DISTANCE) if known else side.clamp_min(MIN_DISTANCE))
                   for side in extents)
    above = (confidence - threshold) / over
    below = (threshold - confidence) / under
    distance = torch.where(confidence >= threshold, above, below).clamp(MIN_DISTANCE, 1)
    return (-torch.log(alpha * distance)).clamp_min(0).pow(beta)


@torch.no_grad()
def seg_pseudo_labels(seg: Tensor, image_labels: Tensor, temperature: float = 0.01) -> Tensor:
    """Sharpened class probabilities over the classes an image holds: Eq. (7) of CoSA.

    Args:
        seg: (B, C+1, H, W) segmentation logits, channel 0 the background.
        image_labels: (B, C) image-level labels of any dtype; positive means present. The
            background is always present.
        temperature: τ > 0.

    Returns:
        (B, C+1, H, W) probabilities, float32 (float64 for float64 input), under autocast too;
        exactly 0 for absent classes.

    Raises:
        ValueError: the shapes do not fit, or the temperature is not positive.
    """
    batch, channels = seg.shape[:2]
    if image_labels.shape != (batch, channels - 1):
        raise ValueError(
            f"image_labels must have shape {(batch, channels - 1)}, got {tuple(image_labels.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    absent = (image_labels <= 0).to(seg.device)
    absent = torch.cat([absent.new_zeros(batch, 1), absent], dim=1)[:, :, None, None]
    with torch.autocast(seg.device.type, enabled=False):
        logits = at_least_float32(seg) / temperature
        return logits.masked_fill(absent, float("-inf")).softmax(dim=1)


class Labeller:
    """What turns the assignment network's maps into pseudo-labels, at the thresholds in force.

    Args:
        thresholds: "cam" -> ξ and "aux_cam" -> ξ† of Eq. (6), each fitted to its own map.
        fixed: a threshold in [0, 1] for both maps instead, which never moves.
        cell: side in pixels of the squares over which confidences are averaged before the fit.
        alpha, beta: λα and λβ of Eq. (4).
        temperature: τ of Eq. (7).
    """

    def __init__(
        self,
        thresholds: Mapping[str, DynamicThreshold],
        fixed: float | None = None,
        cell: int = 16,
        alpha: float = 0.8,
        beta: float = 1.0,
        temperature: float = 0.01,
    ) -> None:
        self.thresholds = dict(thresholds)
        self.fixed = fixed
        self.cell = cell
        self.alpha, self.beta = alpha, beta
        self.temperature = temperature

    def threshold(self, key: str) -> float | Tensor:
        """The threshold of the map ``key`` with all that it was adapted to.

        Returns:
            A number, or a tensor () of a GPU that fits it, see ``DynamicThreshold.newest``.

        Raises:
            NotFiniteError: the assignment network's activations are NaN.
        """
        return self.thresholds[key].newest if self.fixed is None else self.fixed

    def known_thresholds(self) -> tuple[float | None, float | None]:
        """(ξ, ξ†); None for one that no batch has adapted: no term uses it, or none has begun."""
        if self.fixed is not None:
            return self.fixed, self.fixed
        xi, xi_aux = (self.thresholds[key] for key in ("cam", "aux_cam"))
        return xi.value if xi.started else None, xi_aux.value if xi_aux.started else None

    @torch.no_grad()
    def count(self, maps: Mapping[str, Tensor], valid: Tensor) -> dict[str, Tensor]:
        """The confidences of a batch, or of a part of it, for :meth:`adapt`; nobody waits for them.

        Args:
            maps: name -> CAM (B, K, H, W) in [0, 1], filtered by the labels; other maps are passed
                over.
            valid: (B, H, W) bool, False on padding.
        """
        if self.fixed is not None:
            return {}
        return {
            key: threshold.count(*self._pooled_confidence(maps[key], valid))
            for key, threshold in self.thresholds.items() if key in maps
        }

    def adapt(self, parts: Sequence[Mapping[str, Tensor]]) -> None:
        """Take in what :meth:`count` gave for each part of a batch, without waiting for it."""
        for key, threshold in self.thresholds.items():  # in one order in all processes
            if key in parts[0]:
                threshold.push_counts(sum(part[key] for part in parts))

    def _pooled_confidence(self, cam: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """ν averaged over squares, (B, h, w), and which of these are free of padding."""
        grid = [side // self.cell for side in cam.shape[-2:]]
        confidence = F.interpolate(cam.amax(dim=1, keepdim=True), grid, mode="area")[:, 0]
        return confidence, free_of_padding(valid, grid)

    def targets(
        self, maps: Mapping[str, Tensor], present: PresentClasses | None,
        xi: Mapping[str, Tensor] | None = None,
    ) -> dict[str, CamTargets | SegTargets]:
        """The pseudo-labels of the maps of present classes that the assignment network yields.

        Args:
            maps: "cam" and "aux_cam" as for :meth:`count`; "seg" (B, K + 1, H, W) logits. Those
                that are missing have no targets.
            xi: the thresholds as scalars on the device of the maps, by name, instead of those in
                force.

        Raises:
            NotFiniteError: the assignment network's activations are NaN.
        """
        found: dict[str, CamTargets | SegTargets] = {
            key: self.label(maps[key], self.threshold(key) if xi is None else xi[key], present)
            for key in self.thresholds if key in maps
        }
        if "seg" in maps:
            sharpened = seg_pseudo_labels(maps["seg"], present.held, self.temperature)
            found["seg"] = SegTargets(sharpened, present)
        return found

    def label(
        self, cam: Tensor, xi: float | Tensor, present: PresentClasses | None
    ) -> CamTargets:
        """Labels, Eq. (3), and perplexity, Eq. (4), of a CAM (B, K, H, W) of present classes."""
        places, confidence = cam_pseudo_labels(cam, xi)
        doubt = perplexity(confidence, xi, self.alpha, self.beta)
        labels = places if present is None else present.name(places)
        return CamTargets(cam, labels, doubt, xi, present)

    @torch.no_grad()
    def relabel(self, targets: CamTargets, grid: tuple[int, int]) -> CamTargets:
        """The same CAM averaged to a coarser grid, and labelled there."""
        cam = F.interpolate(targets.cam, grid, mode="area")
        return self.label(cam, targets.threshold, targets.present)

    @torch.no_grad()
    def label_view(
        self, cam: Tensor, image_labels: Tensor, valid: Tensor, index: Tensor | None = None
    ) -> CamTargets:
        """Pseudo-labels of other images, or of another view, at the threshold of M'.

        The threshold stays as it is.

        Args:
            cam: (n, C, h, w) raw activations of the assignment network.
            image_labels: (n, C), positive means present.
            valid: (n, H, W) bool, False on what is to set no scale and have no activation.
            index: see :meth:`PresentClasses.of`; without it the host waits for the labels' device.
        """
        present = PresentClasses.of(image_labels, index)
        cam = resize(present.select(cam), valid.shape[-2:])
        cam = filter_by_labels(normalize(F.relu(cam), valid[:, None]), present.held)
        return self.label(cam, self.threshold("cam"), present)

    def state_dict(self) -> dict[str, Any]:
        """The state of both thresholds."""
        return {key: threshold.state_dict() for key, threshold in self.thresholds.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`."""
        for key, threshold in self.thresholds.items():
            threshold.load_state_dict(state[key])
