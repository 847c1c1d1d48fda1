"""Labels in CVAT's XML, "CVAT for images 1.1": tags of images, and labels of shapes."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from cosa.core.errors import UserError
from cosa.data.labels.source import Reader, Source
from cosa.data.labels.table import LabelTable, Row, known_label, label_set


def _recognises(source: Source) -> bool:
    return source.xml is not None and source.xml.tag == "annotations"


def _read(source: Source) -> LabelTable:
    """An image's tags and the labels of its boxes, polygons, masks, ...; all label alike."""
    path, *others = source.of_kind(".xml")
    if others:
        raise UserError(f"{source.path} holds more than one XML file: set {source.key} to that of "
                        f"CVAT, such as {path}")
    root = source.xml
    if root.find("track") is not None:
        raise UserError(f"{path} is an export of a video: choose 'CVAT for images 1.1'")
    stated = label_set(filter(None, map(_name, root.iterfind("meta//labels/label"))))
    rows = []
    for element in root.iterfind("image"):
        name = element.get("name", "")
        place = f"image '{name[:80]}'"
        labels = label_set(child.get("label", "") for child in element)
        if stated:
            labels = [known_label(label, stated, f"{path}, {place}") for label in labels]
        rows.append(Row(place, name, labels))
    return LabelTable(path, "CVAT XML", rows, tuple(stated), ordered=bool(stated))


def _name(label: Element) -> str:
    """The name of a stated label; "" for a part of a skeleton."""
    return "" if label.find("parent") is not None else label.findtext("name") or ""


READER = Reader("CVAT XML", _recognises, _read)
