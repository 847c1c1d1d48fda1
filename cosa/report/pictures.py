"""Pictures of a run within its report, small enough that the page stays a file to be sent."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from cosa.core.errors import UserError, one_line
from cosa.core.foreign import open_regular
from cosa.core.text import NAME, shown
from cosa.pages.markup import Markup, element, joined, name, picture
from cosa.report.charts import figure
from cosa.report.reading import Example, Run
from cosa.report.words import percent

WIDTH = 1100
"""Pixels of a picture on the page, at most."""

MOST = 40
"""Pictures on the page, at most."""

KINDS = {"best": "best", "median": "median", "worst": "worst", "class": "of a class"}

COLUMNS = "from left to right: image, CAM, pseudo-label, segmentation and, where there is, truth"


def picture_section(run: Run) -> Markup | None:
    """Panels of the best, median and worst images and of each class; else those that there are."""
    details = run.details
    if details and details.get("examples"):
        chosen = details["examples"][:MOST]
        shown_ones = [_example(run, one) for one in chosen]
        told = f"One of each class, the middle one of those that hold it; {COLUMNS}."
        if any(one["kind"] != "class" for one in chosen):  # without masks no image is the best
            told = ("By the label-free mIoU of each image alone: the best, the median and the "
                    f"worst ones, and one of each class, the middle one of those that hold it; "
                    f"{COLUMNS}.")
    else:
        paths = sorted(run.folder.panels.rglob("*.png"))[:MOST]
        shown_ones = [
            _panel(path, name(_cut(path.relative_to(run.folder.panels).with_suffix(""))))
            for path in paths
        ]
        told = f"Images evenly spread over the data set; {COLUMNS}."
    if not shown_ones:
        return None
    return element("div", element("p", told, class_="pale"), _colors(run),
                   element("div", shown_ones, class_="pictures"))


def _colors(run: Run) -> Markup | None:
    """Which colour means which class."""
    details = run.details
    if not details or not details.get("palette") or (
        len(details["palette"]) != len(details.get("classes", ()))
    ):
        return None
    pairs = [*zip(details["classes"], details["palette"], strict=True)][1:]
    return element("ul", (
        element("li", element("span", class_="swatch", style=f"--c:rgb({r},{g},{b})"),
                name(_cut(label)))
        for label, (r, g, b) in pairs
    ), class_="legend keys")


def _example(run: Run, one: Example) -> Markup:
    """A panel with why it is there and how well its image is segmented."""
    label = KINDS.get(one["kind"], one["kind"])
    if one["kind"] == "class":
        classes = run.details["classes"]
        label = _cut(classes[one["label"]]) if 0 < one["label"] < len(classes) else label
    score = [] if one["score"] is None else [f" · mIoU {percent(one['score'])}"]
    title = joined(element("span", name(label), class_="tag"), name(_cut(one["name"])), *score)
    return _panel(run.folder.examples / Path(one["file"]).name, title)


def _cut(value: object) -> str:
    return shown(value, NAME)


def _panel(path: Path, title: Markup) -> Markup:
    try:
        content = element("div", element("img", src=embedded(path), alt=""), class_="scroll")
    except UserError as error:
        content = element("p", str(error), class_="pale")
    return element("div", figure(title, content), class_="panel")


def embedded(path: Path) -> Markup:
    """A picture in a file as the source of an ``img``, made smaller.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open_regular(path) as file, Image.open(file) as image:
            image.thumbnail((WIDTH, 4 * WIDTH), Image.Resampling.LANCZOS)
            return picture(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be shown ({one_line(error, 200)})") from error
