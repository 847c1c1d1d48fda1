"""Labels in a table: CSV or TSV, as people, spreadsheets and pandas write them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cosa.core.errors import UserError
from cosa.core.foreign import read_csv
from cosa.data.labels import label_studio
from cosa.data.labels.label_fields import SEPARATORS, labels_of, told
from cosa.data.labels.source import Reader, Source
from cosa.data.labels.table import LabelTable, Row, composed, merged

OTHERS = {".json", ".xml", ".yaml", ".yml", ".xlsx", ".xls", ".ods", ".parquet", ".zip"}
"""Suffixes of files that are no tables of text; any other may be one."""

BESIDE = ("_classes.csv", "_annotations.csv", "labels.csv")
"""Names of tables that are found in the folder of the images; the first two are Roboflow's."""

DELIMITERS = (",", ";", "\t")

IMAGE = {
    "image", "images", "imagename", "imagefile", "imagefilename", "imagepath", "imageid",
    "filename", "filenames", "fname", "fnames", "file", "files", "filepath", "path", "paths",
    "img", "imgname", "imgpath", "photo", "picture",
}
"""Headers, in lower case and without blanks and such, of the column that names the images."""

PERHAPS = {"id", "name"}
"""Headers of that column where there is none of the others."""

LABELS = {
    "label", "labels", "tag", "tags", "class", "classes", "classname", "classnames", "category",
    "categories", "labelname", "choice", "choices",
}
"""Headers of the column of labels."""

OBJECTS = {"xmin", "x1", "left", "bbox", "bboxx", "x"}
"""Headers of tables with a row for each object, not for each image."""

ABOUT = {"isvalid", "isval", "istrain", "istest", "split", "subset", "fold", "width", "height"}
"""Headers of what is about an image and no class of it, whatever its values."""

VERIFIED = {"imageid", "labelname", "confidence"}
"""Headers of Open Images: a row for each label that was asked for, of confidence 0 if denied."""

YES, NO = {"1", "1.0", "true"}, {"0", "0.0", "false"}


@dataclass(frozen=True)
class Columns:
    """Which column is what: ``labels`` joined in one, or ``classes`` with a column each."""

    image: int
    labels: int | None
    classes: list[int]
    left_out: list[int]
    by_object: bool = False
    confidence: int | None = None
    """Of Open Images: 0 where the label was found to be wrong."""


def _recognises(source: Source) -> bool:
    return _table(source) is not None and not label_studio.is_table(source)


def _table(source: Source) -> Path | None:
    """The file, or the table in the folder."""
    if not source.is_folder:
        return source.path if source.path.suffix.lower() not in OTHERS else None
    paths = (source.path / name for name in BESIDE)
    return next((path for path in paths if path.is_file()), None)


def _read(source: Source) -> LabelTable:
    """One column with the labels, or a column of 0 and 1 for each class.

    Lines count from 1, the header included.
    """
    path = _table(source)
    text = (Source(path, source.key) if source.is_folder else source).text
    header, lines = _lines(path, text)
    columns = _columns(path, header, lines)
    images = [fields[columns.image] for _, fields in lines]
    if columns.labels is None:
        found = [_present(path, header, columns, *line) for line in lines]
        how = "one column per class"
    else:
        fields = [(f"{path}, line {number}", fields[columns.labels]) for number, fields in lines]
        _refuse_numbers(path, header[columns.labels], [field for _, field in fields])
        found, separator = labels_of(fields, source.known, source.separator, _remedy(source.key))
        how = "one row per label" if columns.by_object else told(separator, found)
        if columns.confidence is not None:
            found = [[] if fields[columns.confidence] in NO else labels
                     for (_, fields), labels in zip(lines, found, strict=True)]
    rows = [Row(f"line {number}", image, labels)
            for (number, _), image, labels in zip(lines, images, found, strict=True)]
    if columns.by_object:
        rows = merged(rows)
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


def _lines(path: Path, text: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header, and the rows below it with their line numbers, all as long as the header."""
    delimiter, skip = _delimiter(path, text)
    lines = read_csv(path, "the CSV file", text=text, delimiter=delimiter)[skip:]
    lines = _trimmed([(number, list(map(composed, fields))) for number, fields in lines])
    number, header = lines[0] if lines else (1, [])
    twice = next((name for name, count in Counter(header).items() if count > 1), None)
    if len(header) < 2 or _image_column(path, header) is None:
        raise _no_header(path, delimiter.join(header))
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
                f'quotes ("cat{delimiter}dog")'
            )
    return header, lines[1:]


def _trimmed(lines: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """Without the empty columns that spreadsheets leave behind the last one."""
    width = len(lines[0][1]) if lines else 0
    while width and not any(any(fields[width - 1 : width]) for _, fields in lines):
        width -= 1
    return [(number, fields if any(fields[width:]) else fields[:width]) for number, fields in lines]


def _no_header(path: Path, line: str) -> UserError:
    return UserError(
        f"{path}: the first line must be the header 'image,labels' (or like it: file, path; label, "
        "tags, class), or 'image' and one column per class, with ',', ';' or tabs between them; it "
        f"is '{line[:80]}'"
    )


def _delimiter(path: Path, text: str) -> tuple[str, int]:
    """What separates columns, by the header; and how many lines there are above it (0 or 1)."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    excel = re.fullmatch(r"sep=([,;\t|])", first.strip("\r\n"), re.IGNORECASE)
    if excel:
        return excel[1], 1
    header = {mark: [field.strip('" ') for field in first.split(mark)] for mark in DELIMITERS}
    for mark, fields in header.items():
        if len(fields) > 1 and not (IMAGE | PERHAPS).isdisjoint(map(_plain, fields)):
            return mark, 0
    if all(len(fields) < 2 for fields in header.values()):
        raise _no_header(path, first)
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
    about = [k for k in others if _plain(header[k]) in ABOUT]
    others = [k for k in others if k not in about]
    if not others:
        raise UserError(f"{path}: beside the images no column names labels or a class: add one")
    named = [k for k in others if _plain(header[k]) in LABELS]
    flags = YES | NO
    per_class = len(others) > 1 and all(
        fields[k].casefold() in flags for k in others for _, fields in lines)
    if per_class or not named:
        return Columns(image, None, others, about)
    if len(named) > 1:
        raise UserError(f"{path}: the columns '{header[named[0]]}' and '{header[named[1]]}' could "
                        "both be the labels; rename or remove one")
    left_out = sorted({*others, *about} - {*named})
    plain = [_plain(name) for name in header]
    if VERIFIED <= set(plain):
        return Columns(image, named[0], [], left_out, True, plain.index("confidence"))
    return Columns(image, named[0], [], left_out, any(plain[k] in OBJECTS for k in left_out))


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
                "where 0 or 1 belongs: call a column of label names 'labels', and remove those "
                "that are no class"
            )
    return present


def _refuse_numbers(path: Path, header: str, fields: Sequence[str]) -> None:
    """A single column of 0 and 1: classes "0" and "1", or whether the images show one class?"""
    if {field.casefold() for field in fields} <= YES | NO:
        raise UserError(
            f"{path}: the column '{header}' holds nothing but 0 and 1: write the names of the "
            "classes, or name the column after the class of which it says whether it is there"
        )


def _shown(delimiter: str) -> str:
    return "tabs" if delimiter == "\t" else f"'{delimiter}'"
