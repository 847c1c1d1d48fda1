"""A small data set of the kind `folder`, written from arrays."""

from __future__ import annotations

import numpy as np
from PIL import Image

SIDE = 40


def blob(value, background=0, border=None, side=SIDE):
    """A mask with a square of ``value``, and of ``border`` around it, on the background."""
    mask = np.full((side, side), background, np.uint8)
    if border is not None:
        mask[8:32, 8:32] = border
    mask[10:30, 10:30] = value
    return mask


def write_folder(root, images, classes=None):
    """Write images, labels.csv and masks; the section ``data`` that describes them.

    ``images``: name -> (labels joined by ";", mask or None). Without ``classes``, these are the
    labels.
    """
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    lines = ["image,labels"]
    for number, (name, (labels, mask)) in enumerate(images.items()):
        noise = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(noise).save(root / f"images/{name}.png")
        if mask is not None:
            Image.fromarray(mask).save(root / f"masks/{name}.png")
        lines.append(f'{name},"{labels}"')
    (root / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = {"name": "folder", "root": str(root), "images": "images", "labels": "labels.csv"}
    if any(mask is not None for _, mask in images.values()):
        data["masks"] = "masks"
    if classes:
        (root / "classes.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
        data["classes"] = "classes.txt"
    return data
