"""One field, several labels: how they are told apart in a table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import TypedDict

from cosa.core.errors import UserError
from cosa.core.foreign import parse_json
from cosa.data.labels.table import label_set

SEPARATORS = {"none": "", ";": ";", "|": "|", ",": ",", "/": "/", "+": "+", "space": " "}
"""What ``data.label_separator`` may be -> what it means."""

SURE = (";", "|")
"""They are part of no name; the others may be."""

_ITEM = re.compile(r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|([^'",\[\]]+)|,""")
"""In a list: a quoted label, one without quotes, or a comma."""


class _Choices(TypedDict):
    choices: list[str]


def quoted_list(field: str, where: str) -> list[str] | None:
    """The labels of ``['cat', "dog's"]``, ``[cat, dog]`` or ``{"choices": ["cat"]}``; else None.

    Raises:
        UserError: it begins as such a list and is none.
    """
    if re.match(r'\{\s*"choices"', field):
        return label_set(parse_json(field, where, _Choices)["choices"])
    if not re.match(r"\[|[({]\s*['\"]", field):
        return None
    labels, place, end = [], 1, len(field) - 1
    while place < end and (item := _ITEM.match(field, place, end)):
        quoted = item[1] or item[2]
        labels.append(re.sub(r"\\(.)", r"\1", quoted) if quoted else item[3] or "")
        place = item.end()
    if place < end or field[-1] not in ")]}":
        raise UserError(f"{where}: '{field[:80]}' begins as a list of labels and is none; write it "
                        "as ['cat', 'dog'], or join labels by ';'")
    return label_set(labels)


def splitter(separator: str) -> Callable[[str], list[str]]:
    """A function from a field to its labels, by one of ``SEPARATORS``."""
    mark = SEPARATORS[separator]
    return lambda field: label_set(field.split(mark) if mark else [field])


def find_separator(
    fields: Collection[tuple[str, str]], known: Collection[str], remedy: str
) -> str:
    """The one of ``SEPARATORS`` that is between the labels of all fields.

    Args:
        fields: (place, field) of each row.
        known: the names of the classes, if they are known.

    Raises:
        UserError: it could be one or the other; names a field of which this holds.
    """
    places: dict[str, str] = {}
    for place, field in fields:
        if field:
            places.setdefault(field, place)
    if known:
        for name in SEPARATORS:
            if all(set(splitter(name)(field)) <= set(known) for field in places):
                return name
    sure = [mark for mark in SURE if any(mark in field for field in places)]
    if len(sure) == 2:
        field = next(field for field in places if sure[1] in field)
        _ask(places, field, "labels are joined by ';' in some fields and by '|' in others", remedy)
    if sure:
        return sure[0]
    # Blanks are in many names ("red car", "red bus"), so that they are never taken for sure.
    for mark, unsure in ((",", "unclear"), ("/", ""), ("+", ""), ("space", "several")):
        verdict = _verdict(places, mark)
        if verdict == unsure:
            field = next(field for field in places if SEPARATORS[mark] in field)
            _ask(places, field, f"'{field[:80]}' may be one label or several", remedy)
        if verdict == "several":
            return mark
    return "none"


def _verdict(fields: Collection[str], mark: str) -> str:
    """Whether fields with a mark are "several" labels, for all of their parts occur elsewhere."""
    parts = [splitter(mark)(field) for field in fields]
    joined = [found for found in parts if len(found) > 1]
    if not joined:
        return "none"
    uses = Counter(part for found in parts for part in found)
    return "several" if all(uses[part] > 1 for found in joined for part in found) else "unclear"


def _ask(places: dict[str, str], field: str, why: str, remedy: str) -> None:
    raise UserError(f"{places[field]}: {why}; {remedy}")


def labels_of(
    fields: list[tuple[str, str]], known: Collection[str], separator: str, remedy: str
) -> tuple[list[list[str]], str]:
    """The labels of each field, and what separates them: one of ``SEPARATORS``, or "list".

    Args:
        fields: (place, field) of each row.
        known: names of the classes, if they are known.
        separator: one of ``SEPARATORS``; "": to be found.
        remedy: what to do where it is unclear, for errors.

    Raises:
        UserError: see :func:`find_separator` and :func:`quoted_list`.
    """
    lists = [quoted_list(field, place) for place, field in fields]
    plain = [pair for pair, found in zip(fields, lists, strict=True) if found is None and pair[1]]
    if not plain and any(lists):
        return [found or [] for found in lists], "list"
    separator = separator or find_separator(plain, known, remedy)
    split = splitter(separator)
    return [split(field) if found is None else found
            for (_, field), found in zip(fields, lists, strict=True)], separator


def told(separator: str, rows: Iterable[list[str]]) -> str:
    """How labels were told apart, for people."""
    several = any(len(row) > 1 for row in rows)
    if separator == "list" or several and separator == "none":
        return "labels as lists"
    if not several:
        return "one label per image"
    return "labels between " + ("blanks" if separator == "space" else f"'{separator}'")
