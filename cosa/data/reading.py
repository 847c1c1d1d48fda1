"""How the values of image files become levels: the part of the configuration that decides it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cosa.config import DataConfig
from cosa.core.errors import UserError

SMALL = 1 / 4
"""Share of a range that values should fill: 14 bits in a file of 16 do not."""


@dataclass(frozen=True)
class Reading:
    """What becomes of the values in image files, decided once for a training and all its results.

    Attributes:
        value_range: (low, high), in the files' own values, that become black and white; what lies
            beyond is clipped. None: the depth of each file decides.
        bands: the numbers, from 1, of the bands that become red, green and blue; nothing is taken
            for opacity then. None: those that the file says.
    """

    value_range: tuple[float, float] | None = None
    bands: tuple[int, int, int] | None = None

    @classmethod
    def of(cls, data: DataConfig) -> Reading:
        """What the section ``data`` says, whose value range is resolved.

        Raises:
            UserError: the value range is "auto" still: see ``cosa.data.resolved``.
        """
        if data.value_range == "auto":
            raise UserError("data.value_range is auto where no training images are looked at: set "
                            "it to [low, high]")
        return cls(data.value_range or None, data.bands or None)

    def tree(self) -> dict[str, Any]:
        """What differs from the default, by the names of the options of infer.py, as JSON."""
        named = {"value-range": self.value_range, "bands": self.bands}
        return {name: list(value) for name, value in named.items() if value is not None}


BY_DEPTH = Reading()
"""Files by their depth, with the bands that they say."""


@dataclass(frozen=True)
class Extent:
    """The values that were found in an image, and what they were held against.

    Attributes:
        lowest, highest: of the image, in the file's own values.
        low, high: what became black and white.
        known: whether the file or the user told these two; else they are a guess.
        above: share of the values that are larger than ``high``, in [0, 1].
    """

    lowest: float
    highest: float
    low: float
    high: float
    known: bool = True
    above: float = 0.0

    @property
    def doubt(self) -> str:
        """A clause that says what may be wrong; "" if nothing seems to be."""
        found, range_ = (f"{a:.6g}..{b:.6g}" for a, b in (
            (self.lowest, self.highest), (self.low, self.high)))
        if not self.known:
            return f"the file does not tell which values are black and white, {range_} is a guess"
        if self.highest - self.lowest < SMALL * (self.high - self.low):
            return f"its values, {found}, use a small part of {range_}"
        if self.above > 1 / 2:
            return f"most of its values, {found}, are above {range_}"
        return ""
