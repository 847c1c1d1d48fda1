"""The kinds of output of infer.py, in one table: what ``--save`` may name.

A new kind gets its row here; ``pipeline`` collects what it is made of, ``outputs`` writes it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """What can be saved of an image."""

    suffix: str
    """Takes the place of the image's suffix."""
    plural: str
    """What messages call several of it."""
    map: str
    """The map of the network that it is made of: "seg" or "cam"."""
    of_labels: bool = False
    """Whether it shows the labels, which a CRF refines."""
    at_threshold: bool = False
    """Whether it depends on the threshold of the pseudo-labels."""


KINDS = {
    "mask": Kind(".png", "masks", "seg", of_labels=True),
    "overlay": Kind(".overlay.png", "overlays", "seg", of_labels=True),
    "cam": Kind(".cam.npz", "CAMs", "cam"),
    "cpl": Kind(".cpl.png", "CAM pseudo-labels", "cam", at_threshold=True),
    "probabilities": Kind(".probabilities.npz", "probabilities", "seg"),
    "index": Kind(".index.png", "index masks", "seg", of_labels=True),
    "regions": Kind(".regions.npz", "regions", "seg", of_labels=True),
    "certainty": Kind(".certainty.npz", "certainties", "seg"),
}
"""Masks come first: theirs is the shortest suffix, in which others end, too."""

SHEET = "review.png"
"""The contact sheet of ``--review``, the only picture in the folder of the results that is of no
single image."""
