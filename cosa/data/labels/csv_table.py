"""Labels in a table: CSV or TSV, as people, spreadsheets and pandas write them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cosa.core.errors import UserError
from cosa.core.foreign import read_csv, read_text
from cosa.data.labels.label_fields import SEPARATORS, labels_of, told
from cosa.data.labels.source import Reader, Source
from cosa.data.labels.table import LabelTable, Row, composed

OTHERS = {".json", ".xml", ".yaml", ".yml"}
"""Suffixes of files that are no tables; any other may be one."""

DELIMITERS = (",", ";", "\t")

IMAGE = {
    "image", "images", "imagename", "imagefile", "imagefilename", "imagepath", "imageid",
    "filename", "filenames", "file", "files", "filepath", "path", "paths", "img", "imgname",
    "imgpath", "photo", "picture",
}
"""Headers, in lower case and without blanks and such, of the column that names the images."""

PERHAPS = {"id", "name"}
"""Headers of that column where there is none of the others."""

LABELS = {
    "label", "labels", "tag", "tags", "class", "classes", "classname", "classnames", "category",
    "categories", "labelname", "choice", "choices",
}
"""Headers of the column of labels."""

OBJECTS = {"xmin", "x1", "left", "bbox", "x"}
"""Headers of tables with a row for each object, not for each image."""

YES, NO = {"1", "1.0", "true"}, {"0", "0.0", "false"}


@dataclass(frozen=True)
class Columns:
    """Which column is what: ``labels`` joined in one, or ``classes`` with a column each."""

    image: int
    labels: int | None
    classes: list[int]
    left_out: list[int]
    by_object: bool


def _recognises(source: Source) -> bool:
    return not source.is_folder and source.path.suffix.lower() not in OTHERS


def _read(source: Source) -> LabelTable:
    """One column with the labels, or a column of 0 and 1 for each class.

    Lines count from 1, the header included.
    """
    path = source.path
    header, lines = _lines(source)
    columns = _columns(path, header, lines)
    images = [fields[columns.image] for _, fields in lines]
    if columns.labels is None:
        found = [_present(path, header, columns, *line) for line in lines]
        how = "one column per class"
    else:
        fields = [(f"{path}, line {number}", fields[columns.labels]) for number, fields in lines]
        _refuse_numbers(path, header[columns.labels], [field for _, field in fields])
        found, separator = labels_of(fields, source.known, source.separator, _remedy(source.key))
        how = told(separator, found)
    rows = [Row(f"line {number}", image, labels)
            for (number, _), image, labels in zip(lines, images, found, strict=True)]
    if columns.by_object:
        rows = _merged(rows)
    classes = tuple(header[index] for index in columns.classes)
    left_out = [f"'{header[index]}'" for index in columns.left_out if header[index]]
    if left_out:
        how += f", without column{'s' * (len(left_out) > 1)} {', '.join(left_out)}"
    return LabelTable(path, f"CSV, {how}", rows, classes)


READER = Reader("CSV", _recognises, _read)


def _remedy(key: str) -> str:
    if key.startswith("--"):
        return "write ';' between labels"
    choices = ", ".join(f"'{name}'" for name in SEPARATORS)
    return f"set data.label_separator to what is between labels ({choices})"


def _lines(source: Source) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header, and the rows below it with their line numbers, all as long as the header."""
    path, what = source.path, "the CSV file"
    text = read_text(path, what, f"set {source.key} to where the labels are")
    delimiter, skip = _delimiter(text)
    lines = read_csv(path, what, text=text, delimiter=delimiter)[skip:]
    lines = [(number, [composed(field) for field in fields]) for number, fields in lines]
    number, header = lines[0] if lines else (1, [])
    twice = next((name for name, count in Counter(header).items() if count > 1), None)
    if len(header) < 2 or _image_column(path, header) is None:
        raise UserError(
            f"{path}: the first line must be the header 'image,labels' (or like it: file, path; "
            "label, tags, class), or 'image' and one column per class; it is "
            f"'{delimiter.join(header)[:80]}'"
        )
    if twice is not None or "" in header[1:]:
        told_twice = f"two columns are named '{twice}'" if twice else "a column has no name"
        raise UserError(f"{path}, line {number}: {told_twice}; remove or rename one")
    if len(lines) == 1:
        raise UserError(f"{path}, line {number}: below the header there are no rows; add one for "
                        "each image")
    for number, fields in lines[1:]:
        if len(fields) != len(header):
            raise UserError(
                f"{path}, line {number}: {len(fields)} fields where the header has {len(header)}; "
                f"separate columns with {_shown(delimiter)}, and put a field that holds it in "
                'quotes ("cat, dog")'
            )
    return header, lines[1:]


def _delimiter(text: str) -> tuple[str, int]:
    """What separates columns, by the header; and how many lines there are above it (0 or 1)."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    excel = re.fullmatch(r"sep=([,;\t|])", first.strip("\r\n"), re.IGNORECASE)
    if excel:
        return excel[1], 1
    header = {mark: [field.strip('" ') for field in first.split(mark)] for mark in DELIMITERS}
    for mark, fields in header.items():
        if len(fields) > 1 and not (IMAGE | PERHAPS).isdisjoint(map(_plain, fields)):
            return mark, 0
    return max(header, key=lambda mark: len(header[mark])), 0


def _plain(header: str) -> str:
    """A header without case, blanks and such."""
    return re.sub(r"[\W_]", "", header.casefold())


def _image_column(path: Path, header: Sequence[str]) -> int | None:
    plain = [_plain(name) for name in header]
    found = [index for index, name in enumerate(plain) if name in IMAGE] or [
        index for index, name in enumerate(plain) if name in PERHAPS]
    if len(found) > 1:
        raise UserError(f"{path}: the columns '{header[found[0]]}' and '{header[found[1]]}' could "
                        "both name the images; rename or remove one")
    # pandas writes an index without a name; images may be it.
    return found[0] if found else 0 if header[:1] == [""] else None


def _columns(path: Path, header: Sequence[str], lines: list[tuple[int, list[str]]]) -> Columns:
    image = _image_column(path, header)
    others = [index for index in range(len(header)) if index != image]
    index = [k for k in others if _is_index(header[k], [fields[k] for _, fields in lines])]
    others = [k for k in others if k not in index]
    if header[0] == "" and 0 in others:
        raise UserError(f"{path}: the first column has no name; remove or rename it")
    named = [k for k in others if _plain(header[k]) in LABELS]
    flags = YES | NO
    per_class = len(others) > 1 and all(
        fields[k].casefold() in flags for k in others for _, fields in lines)
    if per_class or not named:
        return Columns(image, None, others, [], False)
    if len(named) > 1:
        raise UserError(f"{path}: the columns '{header[named[0]]}' and '{header[named[1]]}' could "
                        "both be the labels; rename or remove one")
    left_out = [k for k in others if k not in named]
    by_object = any(_plain(header[k]) in OBJECTS for k in left_out)
    return Columns(image, named[0], [], left_out, by_object)


def _is_index(name: str, values: Sequence[str]) -> bool:
    """Whether a column is the index that pandas writes: numbers that all differ."""
    return (
        (name in ("", "index") or re.fullmatch(r"Unnamed: \d+(\.\d+)*", name) is not None)
        and all(re.fullmatch(r"\d{1,18}", value) for value in values)
        and len(set(values)) == len(values)
    )


def _present(path: Path, header: Sequence[str], columns: Columns, number: int,
             fields: Sequence[str]) -> list[str]:
    """The names of the columns that say yes in a row."""
    present = []
    for index in columns.classes:
        value = fields[index].casefold()
        if value in YES:
            present.append(header[index])
        elif value not in NO:
            raise UserError(
                f"{path}, line {number}: '{fields[index][:80]}' in the column '{header[index]}' "
                "where 0 or 1 belongs; for label names call their column 'labels'"
            )
    return present


def _refuse_numbers(path: Path, header: str, fields: Sequence[str]) -> None:
    """A single column of 0 and 1: classes "0" and "1", or whether the images show one class?"""
    if {field.casefold() for field in fields} <= YES | NO:
        raise UserError(
            f"{path}: the column '{header}' holds nothing but 0 and 1: write the names of the "
            "classes, or name the column after the class of which it says whether it is there"
        )


def _merged(rows: list[Row]) -> list[Row]:
    """The rows of an image, of which there is one for each object, as one."""
    of_image = defaultdict(list)
    for row in rows:
        of_image[row.image].append(row)
    return [Row(own[0].place, image, list(dict.fromkeys(sum((row.labels for row in own), []))))
            for image, own in of_image.items()]


def _shown(delimiter: str) -> str:
    return "tabs" if delimiter == "\t" else f"'{delimiter}'"
