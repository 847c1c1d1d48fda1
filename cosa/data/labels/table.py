"""What is read from labels, whatever the format."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from cosa.core.errors import UserError, did_you_mean


def is_background(name: str) -> bool:
    """Whether the name of a class is that of what belongs to none, in any case."""
    return name.casefold() == "background"


def composed(text: str) -> str:
    """Unicode's form NFC, in which é is one character; macOS makes it two."""
    return unicodedata.normalize("NFC", text)


class Row(NamedTuple):
    """The labels of an image."""

    place: str
    """Where it stands in the file or folder, for errors: "line 3", "task 7", "sub/a.xml"."""
    image: str
    """The image as the format names it, perhaps by another machine's path."""
    labels: list[str]
    """Names of classes, each once; none: the image holds none of the classes."""
    other: str = ""
    """What else the format calls the image: tried where ``image`` is found nowhere."""


@dataclass(frozen=True)
class LabelTable:
    """Image-level labels by image, names in Unicode's composed form.

    Attributes:
        path: the file or folder that they are from.
        kind: the format, for people: "COCO JSON".
        classes: names of classes that the format states, in no image perhaps.
        ordered: whether ``classes`` are all there are, in the format's own order.
    """

    path: Path
    kind: str
    rows: list[Row]
    classes: tuple[str, ...] = ()
    ordered: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The class names: as stated where they have an order, else all there are, sorted.

        A stated "background" that no image has is left out: it is implied.
        """
        used = {label for row in self.rows for label in row.labels}
        names = self.classes if self.ordered else sorted({*self.classes, *used})
        return tuple(name for name in names if name in used or not is_background(name))

    def where(self, row: Row) -> str:
        """The place of a row, for errors: "labels.csv, line 3"."""
        return f"{self.path}, {row.place}"

    def digest(self) -> str:
        """SHA-256 of images and labels, which does not depend on how they are written."""
        rows = sorted([row.image, *row.labels] for row in self.rows)
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def label_set(labels: Iterable[str]) -> list[str]:
    """Label names without surrounding blanks, composed, each once, in their order."""
    stripped = (composed(label).strip() for label in labels)
    return list(dict.fromkeys(label for label in stripped if label))


def merged(rows: Iterable[Row], key: Callable[[Row], Hashable] = attrgetter("image")) -> list[Row]:
    """Rows of one image, of which there is one for each label or annotation, as one."""
    found: dict[Hashable, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return [own[0]._replace(labels=label_set(label for row in own for label in row.labels))
            for own in found.values()]


def known_label(label: str, classes: Iterable[str], where: str) -> str:
    """A label that must be one of those that the format states.

    Raises:
        UserError: it is not.
    """
    if label not in classes:
        raise UserError(f"{where}: the label '{label}' is not among the classes that the file "
                        f"lists{did_you_mean(label, classes) or '; add it'}")
    return label
