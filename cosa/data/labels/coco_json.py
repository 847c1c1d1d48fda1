"""Labels in COCO's JSON, with categories of one's own; boxes and outlines are not needed."""

from __future__ import annotations

from collections import defaultdict
from typing import TypedDict

from cosa.core.errors import UserError
from cosa.data.labels.source import Reader, Source, fitting
from cosa.data.labels.table import LabelTable, Row, composed, label_set


class _Named(TypedDict):
    id: int
    name: str


class _Category(_Named, total=False):
    supercategory: str | None


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
    """Which categories are annotated in an image; classes in the order of their ids.

    A category of which nothing is, and that others have for a supercategory, is no class: Roboflow
    writes one. Some tools write the ids of images as text in one place and not in the other.
    """
    (path,) = source.of_kind(".json")
    content: _Content = fitting(source.json, _Content, path)
    used = {item["category_id"] for item in content["annotations"]}
    groups = {category.get("supercategory") for category in content["categories"]
              if category.get("supercategory") != category["name"]}
    categories = [category for category in content["categories"]
                  if category["id"] in used or category["name"] not in groups]
    categories.sort(key=lambda category: category["id"])
    names = {category["id"]: composed(category["name"]).strip() for category in categories}
    images = {str(image["id"]): image["file_name"] for image in content["images"]}
    for what, ids, entries in (("categories", names, categories),
                               ("images", images, content["images"])):
        if len(ids) < len(entries):
            raise UserError(f"{path}: two of the {what} have one id; each must have its own")
    found = defaultdict(list)
    for number, item in enumerate(content["annotations"]):
        image, category = str(item["image_id"]), item["category_id"]
        if image not in images or category not in names:
            key = "category_id" if image in images else "image_id"
            raise UserError(f"{path}: annotations[{number}] has the {key} {item[key]!r}, which the "
                            "file does not list; complete it")
        found[image].append(names[category])
    rows = [Row(f"image {identity}", name, label_set(found[identity]))
            for identity, name in images.items()]
    return LabelTable(path, "COCO JSON", rows, tuple(names.values()), ordered=True)


READER = Reader("COCO JSON", _recognises, _read)
