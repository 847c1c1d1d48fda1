"""Labels in LabelMe's JSON: a file for each image, with the labels of its shapes and its flags."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import TypedDict

from cosa.core.foreign import read_json
from cosa.core.threads import in_threads
from cosa.data.labels.source import MOST_BYTES, Reader, Source
from cosa.data.labels.table import LabelTable, Row, label_set

NO_CLASSES = {"_background_", "__ignore__"}
"""What LabelMe's own scripts take for no class."""


class _Shape(TypedDict):
    label: str


class _Content(TypedDict, total=False):
    shapes: list[_Shape]
    flags: dict[str, bool] | None
    imagePath: str | None


def _recognises(source: Source) -> bool:
    content = source.json
    return isinstance(content, dict) and bool({"shapes", "imagePath"} & set(content))


def _read(source: Source) -> LabelTable:
    """An image has the labels of its shapes and the flags that are set.

    It is the one that the file names, else the one that is named like the file.
    """
    flags: set[str] = set()

    def row(path: Path) -> Row:
        content: _Content = read_json(path, "the file", _Content, most=MOST_BYTES)
        stated = content.get("flags") or {}
        flags.update(label_set(stated))
        labels = [shape["label"] for shape in content.get("shapes", ())]
        labels += [flag for flag, is_set in stated.items() if is_set]
        place = source.below(path)
        stem = place[: -len(path.suffix)]
        named = (content.get("imagePath") or "").replace("\\", "/")
        image = posixpath.join(posixpath.dirname(place), named) if named else stem
        return Row(place, image, [label for label in label_set(labels) if label not in NO_CLASSES],
                   other=stem)

    rows = in_threads(row, source.of_kind(".json"))
    return LabelTable(source.path, "LabelMe JSON", rows, tuple(sorted(flags - NO_CLASSES)))


READER = Reader("LabelMe JSON", _recognises, _read)
