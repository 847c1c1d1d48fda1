"""What was found in the data set before the training."""

from __future__ import annotations

from typing import Any

from cosa.core.text import NAME, shown
from cosa.pages.markup import Markup, element, name, table
from cosa.report.reading import Part, Run
from cosa.report.words import percent

MOST_CLASSES = 100
"""Rows of the table: of more classes, those with most training images."""


def data_section(run: Run) -> Markup | None:
    """Warnings, a table of the classes, and the sizes of the images; None without data.json."""
    data = run.data
    if not data:
        return None
    warnings = [
        element("p", element("b", "Warning: " if finding["severity"] == "warning" else "Error: "),
                finding["sentence"], class_="warning")
        for finding in data.get("findings", [])
    ]
    parts = {split: data[split] for split in ("training", "validation") if data.get(split)}
    found = warnings or [element("p", "Nothing odd was found.")]
    return element("div", found, _classes(parts), _sizes(parts))


def _classes(parts: dict[str, Part]) -> Markup | None:
    """Images, masks and pixels of each class."""
    if not parts:
        return None
    columns = {}
    for split, part in parts.items():
        labels, masks = part["labels"], part["masks"]
        if labels:
            columns[f"{split} images"] = [
                *labels["of_class"], labels["unlabelled"], labels["images"]]
        if masks:
            total = max(1, sum(masks["pixels"]) + masks["ignored_pixels"])
            columns[f"{split} masks"] = [*masks["masks"][1:], "", masks["read"]]
            columns["of their pixels"] = [
                *(percent(many / total) for many in masks["pixels"][1:]), "", ""]
    classes = next(iter(parts.values()))["classes"]
    rows: list[list[Any]] = []
    for number, label in enumerate([*classes, "no label", "all"]):
        head = name(shown(label, NAME)) if number < len(classes) else element("i", label)
        rows.append([head, *(_cell(column, number, len(classes)) for column in columns.values())])
    if len(classes) > MOST_CLASSES and columns:
        first = next(iter(columns.values()))
        order = sorted(range(len(classes)), key=lambda k: -first[k] if k < len(first) else 0)
        rows = [rows[k] for k in sorted(order[:MOST_CLASSES])] + rows[len(classes):]
    return table(("class", *columns), rows)


def _cell(column: list[Any], number: int, classes: int) -> Any:
    """Of a column that has as many entries as classes, and two more."""
    return column[number] if len(column) == classes + 2 else "–"


def _sizes(parts: dict[str, Part]) -> list[Markup]:
    """A sentence about the images of each part."""
    told = []
    for split, part in parts.items():
        images = part["images"]
        if images:
            smallest, median, largest = (
                f"{images[key][0]}×{images[key][1]}" for key in ("smallest", "median", "largest"))
            sizes = smallest if smallest == largest else (
                f"{smallest} to {largest}, median {median}")
            told.append(element("p", f"Sizes of the {split} images in pixels: {sizes} "
                                     f"({images['sized']} looked at).", class_="pale"))
    return told
