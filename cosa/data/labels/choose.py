"""From a file or folder of labels to a table, by the reader that knows its format."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cosa.core.errors import UserError
from cosa.core.terminal import note
from cosa.data.labels import (
    class_folders,
    coco_json,
    csv_table,
    cvat_xml,
    label_studio,
    labelme,
    voc_xml,
    yolo,
)
from cosa.data.labels.source import Source
from cosa.data.labels.table import LabelTable

READERS = (
    csv_table.READER, coco_json.READER, label_studio.READER, labelme.READER, voc_xml.READER,
    cvat_xml.READER, yolo.READER, class_folders.READER,
)

KINDS = ("a CSV file, COCO's, LabelMe's or Label Studio's JSON, VOC's or CVAT's XML, YOLO's text "
         "files with their data.yaml, or a folder with a subfolder of images for each class")


def read_labels(
    path: Path,
    key: str = "data.labels",
    images: Path | None = None,
    known: Sequence[str] = (),
    separator: str = "",
) -> LabelTable:
    """Read image-level labels, of whatever format they are.

    Args:
        path: a file or folder; docs/data.md lists what is understood.
        key: where the path is set, for errors.
        images: the folder of the images: YOLO's labels lie beside or below it.
        known: names of the classes, if they are stated elsewhere: they tell a comma within a name
            from one between names.
        separator: between labels in a field of a table (``data.label_separator``); "": found.

    Raises:
        UserError: naming the file, and the place in it, that does not fit or is of no known
            format.
    """
    if not os.path.lexists(path):
        raise UserError(f"{path}: no such file or folder; set {key} to where the labels are")
    source = Source(path, key, images, known, separator)
    found = [reader for reader in READERS if reader.recognises(source)]
    if len(found) > 1 and class_folders.READER in found:
        found.remove(class_folders.READER)  # images lie in folders of any kind
    if not found:
        raise UserError(f"{path} holds no labels of a known format: set {key} to {KINDS}")
    if len(found) > 1:
        raise UserError(f"{path} holds labels of more than one format, {found[0].kind} and "
                        f"{found[1].kind}: set {key} to the file or folder of one of them")
    table = found[0].read(source)
    if not table.rows:
        raise UserError(f"{path} ({table.kind}) names no image: set {key} to labels of some")
    return table


def say_labels(table: LabelTable) -> None:
    """Tell in one line what was found."""
    images, classes = len(table.rows), len(table.names)
    note(f"{table.path}: {images} image{'s' * (images != 1)}, {classes} "
         f"class{'es' * (classes != 1)}, {table.kind}")
