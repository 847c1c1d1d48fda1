"""Image-level labels in a CSV file, for training and for ``infer.py --labels``."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cosa.core.errors import UserError
from cosa.core.foreign import read_csv

SEPARATORS = "separate columns with ',', labels with ';'"


@dataclass(frozen=True)
class LabelTable:
    """The content of a labels file: ``rows`` holds (line number, image name, label names)."""

    path: Path
    rows: list[tuple[int, str, list[str]]]
    columns: tuple[str, ...] = ()
    """Class names of the header, where there is one column per class."""


def read_labels(path: Path) -> LabelTable:
    """Read image-level labels in either of two forms.

    One column with the labels joined by ";", empty if there are none:

        image,labels
        cats/a.jpg,cat;sofa

    or one column of 0 and 1 per class:

        image,cat,sofa
        cats/a.jpg,1,1

    Names are in Unicode's composed form (NFC). Raises ``UserError`` naming file and line for
    anything else.
    """
    lines = read_csv(path, "the CSV file", "set data.labels to the CSV file")
    lines = [(number, [composed(field) for field in fields]) for number, fields in lines]
    number, header = lines[0] if lines else (1, [])
    if len(header) < 2 or header[0] != "image":
        raise UserError(
            f"{path}: the first line must be the header 'image,labels', or 'image' and one "
            f"column per class; it is '{','.join(header)[:80]}'; {SEPARATORS}"
        )
    twice = next((name for name, count in Counter(header).items() if count > 1), None)
    if twice is not None or "" in header:
        what = f"two columns are named '{twice}'" if twice else "a column has no name"
        raise UserError(f"{path}, line {number}: {what}; remove or rename one")
    if len(lines) == 1:
        raise UserError(f"{path}, line {number}: below the header there are no rows; add one for "
                        "each image")
    joined = header[1:] == ["labels"]
    rows = []
    for number, fields in lines[1:]:
        if len(fields) != len(header):
            raise UserError(
                f"{path}, line {number}: {len(fields)} fields where the header has {len(header)}; "
                f"{SEPARATORS}"
            )
        image, values = fields[0].replace("\\", "/"), fields[1:]
        if joined:
            labels = [label.strip() for label in values[0].split(";") if label.strip()]
        else:
            wrong = next((value for value in values if value not in ("0", "1")), None)
            if wrong is not None:
                raise UserError(
                    f"{path}, line {number}: '{wrong[:80]}' where 0 or 1 belongs; for label names "
                    "the header must be 'image,labels'"
                )
            labels = [c for c, value in zip(header[1:], values, strict=True) if value == "1"]
        rows.append((number, image, labels))
    return LabelTable(path, rows, () if joined else tuple(header[1:]))


def composed(text: str) -> str:
    """Unicode's form NFC, in which é is one character; macOS makes it two."""
    return unicodedata.normalize("NFC", text)


class Names:
    """A dictionary that forgives how names are spelt; its values must be hashable."""

    _FORMS = (str, composed, lambda name: composed(name).casefold())

    def __init__(self, values: Mapping[str, str]) -> None:
        self._tables = [defaultdict(set) for _ in self._FORMS]
        for form, table in zip(self._FORMS, self._tables, strict=True):
            for name, value in values.items():
                table[form(name)].add(value)

    def find(self, name: str) -> str | None:
        """The value under ``name``, else the only one under it but for Unicode's form and case."""
        for form, table in zip(self._FORMS, self._tables, strict=True):
            found = table.get(form(name), ())
            if len(found) == 1:
                return next(iter(found))
        return None
