"""Labels in PASCAL VOC's XML: a file for each image, objects of any classes."""

from __future__ import annotations

import posixpath
from pathlib import Path
from xml.etree.ElementTree import Element

from cosa.core.errors import UserError
from cosa.core.foreign import read_xml
from cosa.core.threads import in_threads
from cosa.data.labels.source import Reader, Source
from cosa.data.labels.table import LabelTable, Row, label_set


def read_annotation(path: Path) -> Element:
    """The root of an annotation.

    Raises:
        UserError: it is not there, is no XML, or not of this kind.
    """
    root = read_xml(path, "the annotation", "it has the labels of the image")
    if root.tag != "annotation":
        raise UserError(f"{path}: the annotation cannot be read (it begins with <{root.tag[:80]}> "
                        "where <annotation> belongs)")
    return root


def object_names(root: Element) -> list[str]:
    """The names of the annotated objects, each once, those marked difficult included."""
    # Parts of objects have names too, one level further down.
    return label_set(element.text or "" for element in root.iterfind("object/name"))


def _recognises(source: Source) -> bool:
    return source.xml is not None and source.xml.tag == "annotation"


def _read(source: Source) -> LabelTable:
    """An image is named like its annotation, else as the annotation says."""
    files = source.of_kind(".xml")

    def row(path: Path) -> Row:
        root, place = read_annotation(path), source.below(path)
        named = (root.findtext("filename") or "").strip()
        other = posixpath.join(posixpath.dirname(place), named) if named else ""
        return Row(place, place[: -len(path.suffix)], object_names(root), other)

    return LabelTable(source.path, "VOC XML", in_threads(row, files))


READER = Reader("VOC XML", _recognises, _read)
