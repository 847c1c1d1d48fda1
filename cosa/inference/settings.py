"""What decides the result, apart from the weights and the image."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from cosa.crf import PRESETS
from cosa.data.reading import BY_DEPTH, Reading
from cosa.inference.kinds import KINDS

MODES = ("whole", "slide")
BACKENDS = ("torch", "pydensecrf")
MAX_SIZE = 1024
"""Default of ``max_size``: twice the longer side of the benchmarks' photographs, the most that
training enlarges them."""


@dataclass(frozen=True)
class CrfSettings:
    """Arguments of ``cosa.crf.dense_crf``."""

    iterations: int
    gaussian: tuple[float, float]
    """Weight and sigma_xy in pixels."""
    bilateral: tuple[float, float, float]
    """Weight, sigma_xy in pixels and sigma_rgb in grey levels."""
    backend: str = BACKENDS[0]
    """One of ``BACKENDS``."""

    @classmethod
    def of_preset(cls, name: str, backend: str = BACKENDS[0], **own: Any) -> CrfSettings:
        """A preset of ``cosa.crf.PRESETS``, with the arguments that replace its own."""
        chosen = PRESETS[name] | own
        return cls(
            iterations=chosen["iterations"],
            gaussian=tuple(map(float, chosen["gaussian"])),
            bilateral=tuple(map(float, chosen["bilateral"])),
            backend=backend,
        )


@dataclass(frozen=True)
class Settings:
    """How images are segmented."""

    size: int
    """Side of the square that images are squashed to, in mode "whole"."""
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    mode: str = "whole"
    """One of ``MODES``: the whole image as a square, or windows of the image as it is."""
    window: int = 448
    """Side of the windows, in mode "slide"."""
    stride: int = 299
    """Largest step between windows, in mode "slide"."""
    max_size: int = MAX_SIZE
    """Longer sides are shrunk to this for windows and for the CRF."""
    crf: CrfSettings | None = None
    threshold: float | None = None
    """xi, where M' becomes pseudo-labels; only these need it."""
    min_class_score: float = 0.0
    """Where there are no labels, classes of a lower image-level probability are left out, but for
    the likeliest; 0 leaves out none."""
    labels: str | None = field(default=None)
    """Digest of the image-level labels that filter the results."""
    reading: Reading = BY_DEPTH
    """What becomes of the values in the image files."""

    @property
    def passes(self) -> int:
        """Predictions that are summed up for each image."""
        return len(self.scales) * (1 + self.flip)

    def of(self, kind: str) -> dict[str, Any]:
        """The settings on which what is saved as ``kind`` (of ``KINDS``) depends, as JSON."""
        slide, crf = self.mode == "slide", self.crf if KINDS[kind].of_labels else None
        relevant = {"mode": self.mode, "scales": list(self.scales), "flip": self.flip}
        relevant |= {"window": self.window, "stride": self.stride} if slide else {"size": self.size}
        if slide or crf:
            relevant["max-size"] = self.max_size
        relevant |= {"crf": crf and asdict(crf), "labels": self.labels}
        if self.min_class_score and self.labels is None and KINDS[kind].map == "seg":
            relevant["min-class-score"] = self.min_class_score
        if KINDS[kind].at_threshold:
            relevant["threshold"] = self.threshold
        relevant |= self.reading.tree()
        return relevant
