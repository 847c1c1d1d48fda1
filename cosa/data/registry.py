"""From the section ``data`` to a data set.

The names are ``cosa.config.sections.DATASETS``; a new one is built here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cosa.config import DataConfig
from cosa.config.sections import DATASETS
from cosa.core.errors import UserError, did_you_mean
from cosa.core.terminal import note
from cosa.data.base import FileDataset, SegmentationDataset, existing_folder, expanded
from cosa.data.coco import CocoDataset
from cosa.data.folder import FolderDataset, checked_classes, listed_classes
from cosa.data.labels import LabelTable, read_labels, say_labels
from cosa.data.reading import Reading
from cosa.data.scenes.dataset import ScenesDataset
from cosa.data.subset import halves
from cosa.data.value_range import measured
from cosa.data.voc import VocDataset

SPLITS = ("train", "val", "test")


def build_dataset(data: DataConfig, split: str) -> SegmentationDataset:
    """The data set that ``data`` describes.

    Args:
        data: the ``data`` section of the configuration; ``data.name`` is one of ``DATASETS``.
        split: "train", "val" or "test". Only the generated scenes have a test split of their own.
            For the others it is the validation split; with ``data.hold_out`` "val" is the first
            half of that one and "test" the second.

    Where ``data.value_range`` is "auto", it is measured on the training images; see
    ``resolved``.

    Raises ``UserError`` for an unknown name or a data set that is not there. Call ``check`` on
    the result to look at every file.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, not {split!r}")
    whole = _build(data, split)
    if isinstance(whole, FileDataset):
        whole.reading = Reading.of(_measured(data, whole if split == "train" else None))
    if split == "train" or not data.hold_out:
        return whole
    if len(whole) < 2:
        raise UserError(f"data.hold_out needs two or more validation images, here are {len(whole)}:"
                        " add images, or set data.hold_out=false")
    first, second = halves(whole)
    return first if split == "val" else second


def resolved(data: DataConfig, training: SegmentationDataset) -> DataConfig:
    """``data`` with the value range that its training set was built with in the place of "auto".

    To be kept with all that is made of the training.
    """
    if data.value_range != "auto":
        return data
    return replace(data, value_range=training.reading.value_range)


def _measured(data: DataConfig, training: FileDataset | None) -> DataConfig:
    """``data`` with numbers in the place of "auto".

    Args:
        training: the training set, None if it is to be built.
    """
    if data.value_range != "auto":
        return data
    files = _build(data, "train") if training is None else training
    return replace(data, value_range=measured(files, data.bands or None))


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
    images, listed = _path(data, "images"), _path(data, "classes")
    known = listed_classes(listed) if listed else ()
    table = _labels(data, "labels", images, known)
    classes = known or checked_classes(table.names, table.path)
    order = f"the order of {table.path}" if table.ordered else "sorted order"
    if training:
        say_labels(table)
        return FolderDataset(
            classes, images, table, _path(data, "masks"), training=True,
            colors=_path(data, "colors"),
        )
    own_images = _path(data, "val_images")
    masks = _path(data, "val_masks") or (None if own_images else _path(data, "masks"))
    if data.val_labels:
        table = _labels(data, "val_labels", own_images or images, classes)
    elif own_images and masks is None:
        if data.labels:
            raise UserError("data.val_images needs data.val_labels, data.val_masks or both beside "
                            "it")
        table = _labels(data, "val_labels", own_images, classes)
    elif own_images:
        table = None
    if data.val_labels or own_images and table:
        say_labels(table)
    if data.colors and masks is None:
        raise UserError("data.colors is of use with masks only: set data.masks or data.val_masks, "
                        "or leave it out")
    dataset = FolderDataset(
        classes,
        own_images or images,
        table,
        masks,
        # Without a list of its own, the validation set is all that has a mask.
        masked_only=not data.val_labels and masks is not None,
        colors=_path(data, "colors"),
    )
    if masks is not None and not listed and not dataset.masks.by_name:
        note(f"without data.classes, mask value k is taken for the k-th class name in {order}")
    return dataset


def _labels(data: DataConfig, key: str, images: Path, known: Sequence[str]) -> LabelTable:
    """The labels that ``data.<key>`` names, or those that lie in the folder of the images."""
    path, told = _path(data, key), f"data.{key}"
    if path is not None:
        return read_labels(path, told, images, known, data.label_separator)
    existing_folder(images, "data.images or data.val_images")
    try:
        return read_labels(images, told, images, known, data.label_separator)
    except UserError as error:
        raise UserError(f"{told} is empty, and {error}") from error


def _path(data: DataConfig, key: str) -> Path | None:
    value = getattr(data, key)
    return expanded(data.root) / expanded(value) if value else None
