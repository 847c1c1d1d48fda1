"""Folders of images with labels of any format, read as a training reads them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cosa.config import from_dict
from cosa.core.errors import UserError
from cosa.data import build_dataset


def save_images(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 8), (200, 100, 50)).save(
            path, format="PNG" if path.suffix.lower() == ".png" else "JPEG")


def dataset_of(root, split="train", **data):
    data = {"name": "folder", "root": str(root), "images": "images"} | data
    return build_dataset(from_dict({"data": data}).data, split)


def labels_of(root, split="train", **data):
    """Image name -> set of label names, of the images that take part."""
    dataset = dataset_of(root, split, **data)
    return {
        name: {dataset.classes[index] for index in np.flatnonzero(row)}
        for name, row in zip(dataset.names, dataset.labels, strict=True)
    }


def refusal(root, split="train", **data):
    """The one sentence by which a data set is refused."""
    with pytest.raises(UserError) as raised:
        dataset_of(root, split, **data)
    assert "\n" not in str(raised.value)
    return str(raised.value)
