"""Charts of a report, as SVG within the page, by matplotlib.

Names in them are text as well: matplotlib is not to read formulas in them.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from unicodedata import east_asian_width
from xml.etree import ElementTree

import numpy as np

from cosa.core.errors import UserError
from cosa.core.text import shown
from cosa.pages.markup import Markup, element, name

COLORS = ("#0b6fb8", "#e07b00", "#1b9e77", "#c2418b", "#7a5fc0", "#7f8c1f", "#8c564b", "#4b5563",
          "#17a2b8", "#d62728")
"""Of lines and bars, which eyes of all kinds tell apart as far as that is possible."""

INK, PALE, GRID = "#1f2937", "#6b7280", "#e5e7eb"

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"

_LOOKS = {
    "font.size": 9.5,
    "font.family": "sans-serif",
    "svg.hashsalt": "cosa",
    "svg.fonttype": "none",  # letters stay letters: small files, and any script
    "text.parse_math": False,
    "text.usetex": False,
    "axes.unicode_minus": False,
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": PALE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": PALE,
    "ytick.color": PALE,
    "xtick.labelcolor": PALE,
    "ytick.labelcolor": PALE,
    "lines.linewidth": 1.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}

MOST_POINTS = 300
"""Of a line: those of a longer one are averaged."""

ROOM = (0.62, 0.46, 0.1, 0.16)
"""Inches beside curves, for numbers of any size."""

_LONGEST = 28
"""Characters of a name at an axis."""


@dataclass(frozen=True)
class Line:
    """Points to be joined, and what they are called below the chart."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: str
    style: str = "-"
    points: bool = False


def available() -> bool:
    """Whether the library is installed."""
    return find_spec("matplotlib") is not None


def require() -> None:
    """Raise ``UserError`` if the library is not installed."""
    if not available():
        raise UserError("a report needs the package matplotlib: pip install matplotlib")


def colored(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each label, in their order."""
    return dict(zip(labels, itertools.cycle(COLORS), strict=False))


def lines(
    title: str, series: Sequence[Line], x: str, y: str = "", *, log: bool = False,
    limits: tuple[float, float] | None = None, note: Any = None,
) -> Markup:
    """Lines over a common axis, with a legend below."""
    with _drawing(4.3, 2.7, ROOM) as drawing:
        axes = drawing.axes
        for line in series:
            xs, ys = _thinned(line.x, line.y)
            marker = "o" if line.points or len(xs) == 1 else ""
            axes.plot(xs, ys, line.style, color=line.color, marker=marker, markersize=4)
        if log and all(value > 0 for line in series for value in line.y):
            axes.set_yscale("log")
            # Its own way of writing numbers is a formula.
            for way in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                way(lambda value, place: f"{value:g}" if f"{value:e}"[0] in "125" else "")
        if limits:
            axes.set_ylim(*limits)
        axes.set_xlim(left=0)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
    legend = [(line.label, line.color, line.style != "-") for line in series]
    return figure(title, drawing.svg, legend if len(series) > 1 else (), note)


def bars(
    title: str, names: Sequence[str], values: dict[str, Sequence[float]], x: str,
    note: Any = None,
) -> Markup:
    """Horizontal bars in percent, for each name one of each kind; NaN for none.

    Args:
        values: kind -> shares in [0, 1] of all names.
    """
    colors, count = colored([*values]), len(names)
    thick, short = 0.8 / len(values), [_short(one) for one in names]
    room = (_length(short, 9.5) + 0.12, 0.46, 0.1, 0.06)
    with _drawing(5.6, 0.6 + count * (0.11 + 0.13 * len(values)), room) as drawing:
        axes, places = drawing.axes, np.arange(count)
        for number, (kind, shares) in enumerate(values.items()):
            percents = 100 * np.nan_to_num(np.asarray(shares, dtype=float))
            offset = (number - (len(values) - 1) / 2) * thick
            axes.barh(places + offset, percents, thick * 0.92, color=colors[kind])
            for place, percent, share in zip(places, percents, shares, strict=True):
                if not np.isnan(share):
                    axes.text(percent + 0.8, place + offset, f"{percent:.0f}", color=PALE,
                              fontsize=7.5, va="center_baseline")
        axes.set_yticks(places, short, color=INK)
        axes.set_ylim(count - 0.4, -0.6)
        axes.set_xlim(0, 106)
        axes.set_xlabel(x)
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
    return figure(title, drawing.svg, [(kind, colors[kind], False) for kind in values], note)


def matrix(title: str, names: Sequence[str], shares: np.ndarray, note: Any = None) -> Markup:
    """A square of shares in [0, 1], rows from the top; with numbers where there is room."""
    count = len(names)
    inner = min(7.0, 0.6 + 0.36 * count)
    short = [_short(one, 16) for one in names] if count <= 40 else [""] * count
    beside = _length(short, 8.5) + 0.4
    room = (beside, beside, 0.06, 0.06)
    with _drawing(inner + beside + 0.06, inner + beside + 0.06, room) as drawing:
        axes = drawing.axes
        axes.grid(False)
        axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, rasterized=count > 30,
                        edgecolors="white", linewidth=0.5 if count <= 30 else 0)
        axes.invert_yaxis()
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        places = np.arange(count) + 0.5
        axes.set_yticks(places, short, color=INK, fontsize=8.5)
        axes.set_xticks(places, short, color=INK, fontsize=8.5, rotation=55, ha="right",
                        rotation_mode="anchor")
        if count <= 24:
            for row, column in zip(*np.nonzero(shares >= 0.005), strict=True):
                share = shares[row, column]
                axes.text(column + 0.5, row + 0.5, f"{100 * share:.0f}", ha="center", va="center",
                          fontsize=7.5, color="white" if share > 0.5 else INK)
        axes.set_xlabel("segmented as")
        axes.set_ylabel("truth")
    # Where the screen is too narrow for the letters, the chart alone is moved under it.
    least = f"min-width: {min(620, 160 + 24 * count)}px"
    chart = element("div", element("div", drawing.svg, style=least), class_="scroll")
    return figure(title, chart, (), note)


@dataclass(frozen=True)
class Mark:
    """A value on the axis of a histogram."""

    label: str
    value: float
    color: str
    style: str = "-"


def histogram(
    title: str, edges: Sequence[float], counts: dict[str, Sequence[float]], x: str,
    marks: Sequence[Mark] = (), note: Any = None, y: str = "share in %",
) -> Markup:
    """Densities of several sets over the same parts of [0, 1], each filled, with marks.

    Args:
        counts: kind -> how many are between two edges; those of a kind are shown as shares of it.
        y: "share in %", or how often: the counts themselves.
    """
    colors, widths = colored([*counts]), np.diff(edges)
    with _drawing(4.3, 2.7, ROOM) as drawing:
        axes, top = drawing.axes, 0.0
        for kind, many in counts.items():
            many = np.asarray(many, dtype=float)
            if y == "share in %":
                # Parts of unequal width: the share that 1/20 of the axis would have.
                many = 100 * many / max(many.sum(), 1) * 0.05
                many = np.divide(many, widths, out=np.zeros_like(many), where=widths > 1e-6)
            axes.stairs(many, edges, fill=True, color=colors[kind], alpha=0.22)
            axes.stairs(many, edges, color=colors[kind], linewidth=1.3)
            top = max(top, _without_peaks(many))
        for mark in marks:
            axes.axvline(mark.value, color=mark.color, linestyle=mark.style, linewidth=1.8)
        axes.set_ylim(0, max(top, 1e-9) * 1.08)
        axes.set_xlim(0, 1)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
    legend = [(kind, colors[kind], False) for kind in counts if len(counts) > 1]
    legend += [(mark.label, mark.color, mark.style != "-") for mark in marks]
    return figure(title, drawing.svg, legend, note)


def _without_peaks(counts: np.ndarray) -> float:
    """What the axis has to reach: 0 and 1, where values pile up, may stick out of it."""
    inner, ends = counts[1:-1].max(initial=0), max(counts[0], counts[-1])
    return min(ends, 1.25 * inner) if 0 < inner < ends else max(inner, ends)


def figure(
    title: str, content: Markup, legend: Sequence[tuple[str, str, bool]] = (), note: Any = None
) -> Markup:
    """A chart or picture with its title above, and a legend and a note below.

    Args:
        legend: (name, colour of this program, whether it is dashed) each.
    """
    entries = [
        element("li", element("i", class_="dashed" if dashed else None, style=f"--c:{color}"),
                name(_short(label, 48)))
        for label, color, dashed in legend
    ]
    return element(
        "figure",
        element("h3", title),
        content,
        element("ul", entries, class_="legend") if entries else None,
        element("figcaption", note) if note is not None else None,
    )


class _Drawing:
    """A chart that is being drawn: ``axes`` before the end of the block, ``svg`` after it."""

    axes: Any
    svg: Markup


@contextmanager
def _drawing(
    width: float, height: float, room: tuple[float, float, float, float]
) -> Iterator[_Drawing]:
    """Axes on a ground of a size in inches, of 72 units of the page each.

    Args:
        room: left, below, right and above of the axes, in inches. To measure what their labels
            need would take as long as to draw them.
    """
    left, below, right, above = room
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # of fonts that are searched for
    import matplotlib
    from matplotlib.figure import Figure

    drawing = _Drawing()
    with matplotlib.rc_context(_LOOKS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that this machine's fonts lack: readers' have
        chart = Figure(figsize=(width, height))
        drawing.axes = chart.add_axes((left / width, below / height,
                                       1 - (left + right) / width, 1 - (below + above) / height))
        yield drawing
        content = io.BytesIO()
        chart.savefig(content, format="svg", metadata={"Date": None})
    drawing.svg = _inline(content.getvalue())


def _inline(content: bytes) -> Markup:
    """An SVG file as a part of a page that has others, each with names of its own."""
    prefix = "c" + hashlib.sha256(content).hexdigest()[:8]
    root = ElementTree.fromstring(content)
    for parent in root.iter():
        for child in [*parent]:
            if child.tag == f"{{{_SVG}}}metadata":
                parent.remove(child)
        for key, value in parent.attrib.items():
            if key == "id":
                parent.set(key, f"{prefix}-{value}")
            elif key == f"{{{_XLINK}}}href" and value.startswith("#"):
                parent.set(key, f"#{prefix}-{value[1:]}")
            elif value.startswith("url(#"):
                parent.set(key, f"url(#{prefix}-{value[5:]}")
    for size in ("width", "height"):
        del root.attrib[size]
    root.set("role", "img")
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _length(labels: Sequence[str], size: float) -> float:
    """Inches that the longest of some labels takes at a size of letters in points, about."""
    widest = max(sum(2 if east_asian_width(letter) in "FW" else 1 for letter in label)
                 for label in labels)
    return 0.62 * size / 72 * widest


def _short(label: str, most: int = _LONGEST) -> str:
    return shown(label, most)


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """At most ``MOST_POINTS`` points, of more the means of neighbours."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(x) <= MOST_POINTS:
        return x, y
    parts = [np.array_split(values, MOST_POINTS) for values in (x, y)]
    return tuple(np.array([part.mean() for part in some]) for some in parts)
