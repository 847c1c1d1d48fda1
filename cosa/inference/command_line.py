"""The command line of infer.py: one typed field for each option."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from functools import partial
from typing import Any, NoReturn

from cosa.core import distributed, ranges
from cosa.core.errors import did_you_mean
from cosa.core.ranges import DOMAIN, Domain, Range, Several, Tuple
from cosa.core.terminal import Parser
from cosa.core.text import shown
from cosa.core.threads import core_count
from cosa.crf import DEFAULT_PRESET
from cosa.data.images import MAX_SIDE
from cosa.export.annotations import FORMATS
from cosa.inference.kinds import KINDS
from cosa.inference.settings import BACKENDS, MAX_SIZE, MODES

DEVIATION = Range(0.01, 1e5)
"""Of a kernel, in pixels or grey levels."""
VALUE = Range(-1e38, 1e38)
"""In an image file."""
AREA = Range(1, 10**9)
"""In pixels."""
TOLERANCE = Range(0, 1000)
"""In pixels."""
LONGEST = Range(1, MAX_SIDE)
"""In pixels, of an image."""
REVIEWED = Range(1, 200)
"""Images on a contact sheet, which is 20,000 pixels high then."""
BAND = Range(1, 10_000)
"""Its number."""


def default_workers() -> int:
    """Threads that read, and that write: this process's part of the cores, at most 8."""
    return max(1, min(8, core_count() // distributed.local_world()))


def listed(table: Collection[str], what: str, text: str) -> tuple[str, ...]:
    """The parts of a list such as "mask,cam", each a key of ``table``.

    Args:
        what: is wrong with another one, as a clause: "cannot be saved".
    """
    chosen = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = next((part for part in chosen if part not in table), None)
    if unknown is not None or not chosen:
        known = f"; choose from {','.join(table)}"
        raise argparse.ArgumentTypeError(
            f"'{unknown or text}' {what}{did_you_mean(unknown or '', table) or known}"
        )
    return chosen


kinds = partial(listed, KINDS, "cannot be saved")
formats = partial(listed, FORMATS, "is no format of --export")


def filled(text: str) -> str:
    """A path: "" would be taken for the current folder, or for an option that is not given."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty: give a path")
    return text


def option(sentence: str, domain: Domain | None = None, **rest: Any) -> Any:
    """A field of ``Options``.

    Args:
        sentence: what ``--help`` says of it.
        domain: of a number, or of several.
        rest: ``default`` or ``default_factory`` of the field, without which the option must be
            given; ``positional``, whether it has no name; and arguments of argparse.
    """
    default = {key: rest.pop(key) for key in ("default", "default_factory") if key in rest}
    return field(**default, metadata={"help": sentence, DOMAIN: domain, **rest})


@dataclass(frozen=True)
class Options:
    """What the command line says: ``crf_backend`` is --crf-backend.

    The sentence of each field is the one of ``--help``. None stands for an option that is not
    given: ``choose_settings`` puts in its place what the weights say. ``save`` holds keys of
    ``KINDS``, in its order, "overlay" among them if ``overlay`` is set, "regions" if ``export`` is,
    and "mask" and "certainty" if ``review`` or ``report`` is.
    """

    input: str = option(
        "folder (with its subfolders), image file, or glob in quotes",
        positional=True, type=filled,
    )
    weights: str = option(
        "a checkpoint of CoSA, or hf-hub:user/name", type=filled, metavar="FILE"
    )
    output: str = option("where the results go", type=filled, metavar="FOLDER")
    save: tuple[str, ...] = option(
        f"what to write, of {', '.join(KINDS)}; default: mask",
        type=kinds, metavar="KIND,...", default=("mask",),
    )
    overlay: bool = option(
        "also write each image with its mask over it", action="store_true", default=False
    )
    export: tuple[str, ...] = option(
        f"also write files for annotation tools, of {', '.join(FORMATS)}",
        type=formats, metavar="TOOL,...", default=(),
    )
    min_area: int = option(
        "leave out of these what has fewer connected pixels; default: 1",
        AREA, metavar="N", default=1,
    )
    simplify: float = option(
        "by how many pixels their polygons may leave the masks' outlines; 0: not at all, "
        "default: 1", TOLERANCE, metavar="D", default=1.0,
    )
    image_prefix: str = option(
        "of the images' paths in Label Studio's file; default: that of local files",
        metavar="TEXT", default="/data/local-files/?d=",
    )
    review: int | None = option(
        "also tell how certain each mask is, and show the N images whose masks are least so",
        REVIEWED, metavar="N", default=None,
    )
    report: bool = option(
        "also write a page that shows the images and their masks, the least certain first",
        action="store_true", default=False,
    )
    overwrite: bool = option("compute finished files again", action="store_true", default=False)
    labels: str | None = option(
        "image-level labels, a file or folder as for training; other classes are left out",
        type=filled, metavar="FILE", default=None,
    )
    threshold: float | None = option(
        "of pseudo-labels; default: as trained", ranges.SHARE, metavar="T", default=None
    )
    min_class_score: float | None = option(
        "leave out classes that the whole image holds with less than this probability, but for "
        "the likeliest; 0: none; default: as evaluated", ranges.SHARE, metavar="P", default=None
    )
    crf: str | None = option(
        "refine by a dense CRF: release (default), toco or deeplab",
        nargs="?", const=DEFAULT_PRESET, metavar="PRESET", default=None,
    )
    crf_backend: str | None = option("default: torch", choices=BACKENDS, default=None)
    crf_iterations: int | None = option(
        "instead of the preset's", Range(1, 1000), metavar="N", default=None
    )
    crf_gaussian: tuple[float, float] | None = option(
        "weight and sigma in pixels of the position kernel",
        Tuple((ranges.WEIGHT, DEVIATION)), nargs=2, metavar=("W", "SXY"), default=None,
    )
    crf_bilateral: tuple[float, float, float] | None = option(
        "weight, sigma in pixels and in grey levels of the colour kernel",
        Tuple((ranges.WEIGHT, DEVIATION, DEVIATION)),
        nargs=3, metavar=("W", "SXY", "SRGB"), default=None,
    )
    mode: str = option(
        "images squashed to a square (default), or windows of the image as it is",
        choices=MODES, default="whole",
    )
    window: int | None = option(
        "side of the windows", ranges.SIDE, metavar="N", default=None
    )
    stride: int | None = option(
        "step between windows", ranges.SIDE, metavar="N", default=None
    )
    max_size: int = option(
        f"longer sides are shrunk to this for windows and CRF; default: {MAX_SIZE}",
        LONGEST, metavar="N", default=MAX_SIZE,
    )
    scales: tuple[float, ...] | None = option(
        "default: as evaluated", Several(ranges.SCALE), nargs="+", metavar="S", default=None
    )
    flip: bool | None = option(
        "default: as evaluated", action=argparse.BooleanOptionalAction, default=None
    )
    size: int | None = option(
        "side that images are squashed to", ranges.SIDE, metavar="N", default=None
    )
    value_range: tuple[float, float] | None = option(
        "values in the image files that become black and white; default: as trained",
        Tuple((VALUE, VALUE)), nargs=2, metavar=("LOW", "HIGH"), default=None,
    )
    bands: tuple[int, int, int] | None = option(
        "numbers, from 1, of the bands that are red, green and blue; default: as trained",
        Tuple((BAND, BAND, BAND)), nargs=3, metavar=("R", "G", "B"), default=None,
    )
    json: str | None = option(
        "write a summary of all images and of the run", type=filled, metavar="FILE", default=None
    )
    evaluate: str | None = option(
        "score against the true masks in this folder, or drawn from this COCO JSON file",
        type=filled, metavar="MASKS", default=None,
    )
    colors: str | None = option(
        "of true masks in colours, which means which class; default: a labelmap.txt beside them",
        type=filled, metavar="FILE", default=None,
    )
    batch_size: int = option("default: 4", ranges.BATCH, metavar="N", default=4)
    device: str = option("auto (default), cpu, cuda, cuda:N or mps", default="auto")
    workers: int = option(
        "threads that read, and that write",
        ranges.THREADS, metavar="N", default_factory=default_workers,
    )

    def __post_init__(self) -> None:
        """Raises ``ValueError`` for a number out of its range."""
        ranges.check(self, _flag)


def parse(arguments: Sequence[str] | None) -> Options:
    """The options, whose combination makes sense.

    Args:
        arguments: the words of the command line; None takes those of this process.

    Raises:
        SystemExit: with code 2, after one sentence on stderr that says what is wrong.
    """
    parser = _Parser(
        description="Segment images. Masks are palette PNG files of the images' sizes, with the "
        "images' relative paths and stems; 0 is background, classes.csv lists the classes. "
        "Files that are there already are not computed again."
    )
    for item in fields(Options):
        parser.add_field(item)
    given, rest = parser.parse_known_args(arguments)
    parser.refuse(rest)
    values = {name: value for name, value in vars(given).items() if value is not None}
    values = {n: tuple(value) if isinstance(value, list) else value for n, value in values.items()}
    try:
        options = Options(**values)
    except ValueError as error:
        parser.error(str(error))
    for name, needed, there in (
        ("crf_backend", "--crf", options.crf),
        ("crf_iterations", "--crf", options.crf),
        ("crf_gaussian", "--crf", options.crf),
        ("crf_bilateral", "--crf", options.crf),
        ("window", "--mode slide", options.mode == "slide"),
        ("stride", "--mode slide", options.mode == "slide"),
        ("size", "--mode whole", options.mode == "whole"),
        ("threshold", "--save cpl", "cpl" in options.save),
        ("min_area", "--export", options.export),
        ("simplify", "--export", options.export),
        ("image_prefix", "--export labelstudio", "labelstudio" in options.export),
        ("colors", "--evaluate", options.evaluate),
    ):
        if name in values and not there:
            parser.error(f"{_flag(name)} is of use with {needed} only: add that, or leave it out")
    if options.value_range and options.value_range[0] >= options.value_range[1]:
        parser.error("--value-range: the first number must be below the second")
    chosen = {*options.save, *["overlay"] * options.overlay, *["regions"] * bool(options.export),
              *["mask", "certainty"] * bool(options.review or options.report)}
    return replace(
        options, save=tuple(kind for kind in KINDS if kind in chosen),
        export=tuple(name for name in FORMATS if name in options.export),
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


class _Parser(Parser):
    """Tells in one sentence what is wrong."""

    def add_field(self, item: Field) -> None:
        """Add a field of ``Options``, which itself has the default: not given is None here."""
        how = dict(item.metadata)
        if how.pop(DOMAIN) is not None:
            how["type"] = ranges.reader(int if "int" in item.type else float)
        if how.pop("positional", False):
            self.add_argument(item.name, **how)
            return
        required = item.default is MISSING and item.default_factory is MISSING
        self.add_argument(_flag(item.name), default=None, required=required, **how)

    def error(self, message: str) -> NoReturn:
        missing = message.removeprefix("the following arguments are required: ")
        if missing != message:
            message = f"{missing} must be given; --help lists all options"
        self.exit(2, f"error: {shown(message.removeprefix('argument '))}\n")

    def refuse(self, rest: Sequence[str]) -> None:
        """End the program if there are arguments that are none of its own."""
        options = [word.partition("=")[0] for word in rest if re.match("-+[a-z]", word)]
        if options:
            known = self._option_string_actions
            hint = did_you_mean(options[0], known) or "; --help lists all options"
            self.error(f"there is no option {options[0]}{hint}")
        if rest:
            self.error(f"'{rest[0]}' is one argument too many: give one folder or image, or a "
                       "glob in quotes, or the shell puts all its files in its place")
