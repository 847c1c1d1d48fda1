"""From the section ``data`` to a data set.

The names are ``cosa.config.sections.DATASETS``; a new one is built here.
"""

from __future__ import annotations

from pathlib import Path

from cosa.config import DataConfig
from cosa.config.sections import DATASETS
from cosa.core.errors import UserError, did_you_mean
from cosa.core.terminal import note
from cosa.data.base import SegmentationDataset, expanded
from cosa.data.coco import CocoDataset
from cosa.data.folder import FolderDataset, class_names
from cosa.data.scenes.dataset import ScenesDataset
from cosa.data.subset import halves
from cosa.data.voc import VocDataset

SPLITS = ("train", "val", "test")


def build_dataset(data: DataConfig, split: str) -> SegmentationDataset:
    """The data set that ``data`` describes.

    Args:
        data: the ``data`` section of the configuration; ``data.name`` is one of ``DATASETS``.
        split: "train", "val" or "test". Only the generated scenes have a test split of their own.
            For the others it is the validation split; with ``data.hold_out`` "val" is the first
            half of that one and "test" the second.

    Raises ``UserError`` for an unknown name or a data set that is not there. Call ``check`` on
    the result to look at every file.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, not {split!r}")
    whole = _build(data, split)
    if split == "train" or not data.hold_out:
        return whole
    if len(whole) < 2:
        raise UserError(f"data.hold_out needs two or more validation images, here are {len(whole)}:"
                        " add images, or set data.hold_out=false")
    first, second = halves(whole)
    return first if split == "val" else second


def _build(data: DataConfig, split: str) -> SegmentationDataset:
    """The data set of a split, the validation split whole."""
    training = split == "train"
    if data.name == "scenes":
        counts = {"train": data.scenes_train, "val": data.scenes_val, "test": data.scenes_test}
        return ScenesDataset(
            split, seed=data.scenes_seed, count=counts[split], size=data.scenes_size
        )
    if data.name in ("voc", "coco") and not data.root:
        raise UserError(f"data.root is empty; set it to the folder of the {data.name} data set")
    if data.name == "voc":
        name = (data.train_split or "train_aug") if training else (data.val_split or "val")
        return VocDataset(data.root, name, training)
    if data.name == "coco":
        name = (data.train_split or "train2014") if training else (data.val_split or "val2014")
        return CocoDataset(data.root, name, training)
    if data.name == "folder":
        return _folder(data, training)
    raise UserError(
        f"data.name: there is no data set '{data.name}'{did_you_mean(data.name, DATASETS)}; "
        f"choose one of {', '.join(DATASETS)}"
    )


def _folder(data: DataConfig, training: bool) -> FolderDataset:
    if not data.images:
        raise UserError("data.images is empty; set it to the folder of the training images")
    if not data.labels:
        raise UserError("data.labels is empty; set it to the CSV file of the image-level labels")
    classes = class_names(_path(data, "labels"), _path(data, "classes"))
    if training:
        return FolderDataset(
            classes,
            _path(data, "images"),
            _path(data, "labels"),
            _path(data, "masks"),
            training=True,
            colors=_path(data, "colors"),
        )
    own_images = bool(data.val_images)
    labels = _path(data, "val_labels") or (None if own_images else _path(data, "labels"))
    masks = _path(data, "val_masks") or (None if own_images else _path(data, "masks"))
    if labels is None and masks is None:
        raise UserError("data.val_images needs data.val_labels, data.val_masks or both beside it")
    if data.colors and masks is None:
        raise UserError("data.colors is of use with masks only: set data.masks or data.val_masks, "
                        "or leave it out")
    named = masks is not None and (masks.suffix.lower() == ".json" or data.colors)
    if masks is not None and not data.classes and not named:
        note("without data.classes, mask value k is taken for the k-th class name in sorted order")
    return FolderDataset(
        classes,
        _path(data, "val_images") or _path(data, "images"),
        labels,
        masks,
        # Without a list of its own, the validation set is all that has a mask.
        masked_only=not data.val_labels and masks is not None,
        colors=_path(data, "colors"),
    )


def _path(data: DataConfig, key: str) -> Path | None:
    value = getattr(data, key)
    return expanded(data.root) / expanded(value) if value else None
