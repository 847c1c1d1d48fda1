"""Labels in COCO's JSON, with categories of one's own; boxes and outlines are not needed."""

from __future__ import annotations

from collections import defaultdict
from typing import TypedDict

from cosa.core.errors import UserError
from cosa.data.labels.source import Reader, Source, fitting
from cosa.data.labels.table import LabelTable, Row, composed, label_set


class _Category(TypedDict):
    id: int
    name: str


class _Image(TypedDict):
    id: int | str
    file_name: str


class _Annotation(TypedDict):
    image_id: int | str
    category_id: int


class _Content(TypedDict):
    categories: list[_Category]
    images: list[_Image]
    annotations: list[_Annotation]


def _recognises(source: Source) -> bool:
    content = source.json if len(source.of_kind(".json")) == 1 else None
    return isinstance(content, dict) and any(
        isinstance(content.get(key), list) for key in ("images", "categories", "annotations"))


def _read(source: Source) -> LabelTable:
    """Which categories are annotated in an image; classes in the order of their ids."""
    (path,) = source.of_kind(".json")
    content: _Content = fitting(source.json, _Content, path)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    names = {category["id"]: composed(category["name"]).strip() for category in categories}
    images = {image["id"]: image["file_name"] for image in content["images"]}
    for what, ids, entries in (("categories", names, categories),
                               ("images", images, content["images"])):
        if len(ids) < len(entries):
            raise UserError(f"{path}: two of the {what} have one id; each must have its own")
    found = defaultdict(list)
    for number, item in enumerate(content["annotations"]):
        for key, known in (("image_id", images), ("category_id", names)):
            if item[key] not in known:
                raise UserError(f"{path}: annotations[{number}] has the {key} {item[key]!r}, which "
                                "the file does not list; complete it")
        found[item["image_id"]].append(names[item["category_id"]])
    rows = [Row(f"image {identity}", name, label_set(found[identity]))
            for identity, name in images.items()]
    return LabelTable(path, "COCO JSON", rows, tuple(names.values()), ordered=True)


READER = Reader("COCO JSON", _recognises, _read)
