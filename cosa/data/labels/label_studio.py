"""Labels in Label Studio's exports, JSON, JSON-MIN and CSV: choices, taxonomies, labels of regions.

CSV is JSON-MIN in a table: what is no text is written as JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypedDict

from cosa.core.errors import UserError
from cosa.core.foreign import parse_json, read_csv
from cosa.data.images import IMAGE_SUFFIXES
from cosa.data.labels.matching import spellings
from cosa.data.labels.source import Reader, Source, fitting
from cosa.data.labels.table import LabelTable, Row, label_set, merged

REGIONS = ("rectanglelabels", "polygonlabels", "brushlabels", "ellipselabels", "keypointlabels",
           "vectorlabels", "labels")
"""Keys of a region's value that hold its labels."""

PLACES = {"x", "y", "points", "rle"}
"""Keys of a region's value that say where it is: choices beside them are about the region."""

ABOUT = {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement"}
"""Keys of JSON-MIN that are no results."""

IMAGE_KEYS = ("image", "img", "photo", "picture", "url", "file", "path")
"""Keys under which a task usually has its image."""


class _Value(TypedDict, total=False):
    choices: list[str]
    taxonomy: list[list[str]]
    rectanglelabels: list[str]
    polygonlabels: list[str]
    brushlabels: list[str]
    ellipselabels: list[str]
    keypointlabels: list[str]
    vectorlabels: list[str]
    labels: list[str]


class _Result(TypedDict, total=False):
    value: _Value


class _Annotation(TypedDict, total=False):
    result: list[_Result]
    was_cancelled: bool | None
    ground_truth: bool | None


class _Given(TypedDict):
    data: dict[str, Any]


class _Task(_Given, total=False):
    id: int | str
    annotations: list[_Annotation]
    completions: list[_Annotation]


def _recognises(source: Source) -> bool:
    is_list = isinstance(source.json, list) and len(source.of_kind(".json")) == 1
    return is_list or is_table(source)


def is_table(source: Source) -> bool:
    """Whether the file is a CSV or TSV export."""
    if source.is_folder or source.path.suffix.lower() not in (".csv", ".tsv"):
        return False
    first = source.text.partition("\n")[0]
    return {"annotation_id", "lead_time"} <= set(re.split(r"[,\t]", first.strip()))


def _read(source: Source) -> LabelTable:
    """Tasks that nobody has annotated are left out; annotated without a result means no class.

    Of several annotations of a task those marked as ground truth count, else all together.
    """
    if is_table(source):
        return _short(source.path, "Label Studio CSV", _tasks(source))
    (path,) = source.of_kind(".json")
    if any(isinstance(task, dict) and "data" in task for task in source.json):
        tasks = fitting(source.json, list[_Task], path)
        rows = [row for number, task in enumerate(tasks) for row in _row(path, number, task)]
        return LabelTable(path, "Label Studio JSON", rows)
    tasks = fitting(source.json, list[dict[str, Any]], path)
    return _short(path, "Label Studio JSON-MIN", tasks)


READER = Reader("Label Studio", _recognises, _read)


def _tasks(source: Source) -> list[dict[str, Any]]:
    """The rows of a table as the tasks of JSON-MIN."""
    path = source.path
    delimiter = "\t" if "\t" in source.text.partition("\n")[0] else ","
    (_, header), *lines = read_csv(path, "the CSV file", text=source.text, delimiter=delimiter)
    return [
        {key: parse_json(field, f"{path}, line {number}") if field.startswith(("[", "{")) else field
         for key, field in zip(header, fields, strict=False)}
        for number, fields in lines
    ]


def _short(path: Path, kind: str, tasks: list[dict[str, Any]]) -> LabelTable:
    """Each annotation is a task of its own here; those of one task count together."""
    results = _result_keys(path, tasks)
    rows = [_short_row(path, number, task, results) for number, task in enumerate(tasks)]
    return LabelTable(path, kind, merged(rows, key=lambda row: (row.place, row.image)))


def _row(path: Path, number: int, task: _Task) -> Iterator[Row]:
    place = f"task {task.get('id', number)}"
    made = [annotation for annotation in task.get("annotations", task.get("completions", ()))
            if not annotation.get("was_cancelled")]
    made = [annotation for annotation in made if annotation.get("ground_truth")] or made
    if made:
        values = [result.get("value", {}) for one in made for result in one.get("result", ())]
        yield Row(place, _image(task["data"], f"{path}, {place}"), _labels(values))


def _labels(values: Iterable[_Value]) -> list[str]:
    """The labels in the values of results; of a taxonomy the last name of each path."""
    found: list[str] = []
    for value in values:
        if not PLACES & set(value):
            found += value.get("choices", ())
            found += [path[-1] for path in value.get("taxonomy", ()) if path]
        for key in REGIONS:
            found += value.get(key, ())
    return label_set(found)


def _image(data: dict[str, Any], where: str) -> str:
    """The image that a task is about."""
    for key in IMAGE_KEYS:
        if isinstance(data.get(key), str):
            return data[key]
    found = [value for value in data.values() if isinstance(value, str) and any(
        Path(name).suffix.lower() in IMAGE_SUFFIXES for name in spellings(value))]
    if len(found) != 1:
        raise UserError(f"{where}: {len(found)} of its data are names of images: call the one "
                        "that counts 'image'")
    return found[0]


def _result_keys(path: Path, tasks: list[dict[str, Any]]) -> set[str]:
    """The keys of JSON-MIN tasks that hold results, not data.

    Label Studio writes the data, then the id, then results. Where that order is lost, what is a
    list or a mapping is a result, or else the only text.
    """
    written = [list(task) for task in tasks]
    if all("id" in keys and any(key in IMAGE_KEYS for key in keys[: keys.index("id")])
           for keys in written):
        return {key for keys in written for key in keys[keys.index("id") :]} - ABOUT
    values = [pair for task in tasks for pair in task.items()
              if pair[0] not in ABOUT and pair[0] not in IMAGE_KEYS]
    results = {key for key, value in values if isinstance(value, list | dict)}
    texts = sorted({key for key, value in values if isinstance(value, str)} - results)
    if texts and (results or len(texts) > 1):
        both = [*texts, *sorted(results)]
        raise UserError(f"{path}: both '{both[0]}' and '{both[1]}' could be labels, which JSON-MIN "
                        "does not tell here: export as JSON")
    return results | set(texts)


def _short_row(path: Path, number: int, task: dict[str, Any], results: set[str]) -> Row:
    place = f"task {task.get('id', number)}"
    where = f"{path}, {place}"
    values: list[_Value] = []
    for key in sorted(results & set(task)):
        value = task[key]
        if not isinstance(value, list | dict | str):  # a rating, a number
            continue
        found = value if isinstance(value, list) else [value]
        for one in fitting(found, list[_Value | str], f"{where}, {key}"):
            values.append({"choices": [one]} if isinstance(one, str) else one)
    data = {key: value for key, value in task.items() if key not in results | ABOUT}
    return Row(place, _image(data, where), _labels(values))
