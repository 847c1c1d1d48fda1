"""Which colour of a mask means which class: a colour map, in any of the forms that tools write."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cosa.core import IGNORE
from cosa.core.errors import UserError, did_you_mean
from cosa.core.foreign import MEGABYTE, read_json, read_lines
from cosa.core.terminal import note
from cosa.data.label_table import Names
from cosa.data.masks.reader import Once

Color = tuple[int, int, int]

BACKGROUND, BORDER = (0, 0, 0), (224, 224, 192)
"""Black, and the colour of what VOC's palette ignores; where the map does not say otherwise."""

NOTHING = {"background": 0, **dict.fromkeys(
    ("ignore", "ignored", "void", "unlabeled", "unlabelled"), IGNORE)}
"""What names mean that are no class, without underscores around them; case does not matter."""

LABELMAP = "labelmap.txt"

PIXELS = 2**20
"""Looked up at a time."""

UNKNOWN = -1
"""In the place of a value, of a colour that the map does not hold."""

_NUMBERS = r"(\d{1,3})\s*[,;\t ]\s*(\d{1,3})\s*[,;\t ]\s*(\d{1,3})"
_LABELMAP_LINE = re.compile(rf"(?P<name>[^:#][^:]*):\s*{_NUMBERS}\s*(:.*)?")
_LINES = (
    _LABELMAP_LINE,
    re.compile(rf"(?P<name>.*?\S)\s*[,;\t]\s*{_NUMBERS}"),  # name,r,g,b
    re.compile(rf"{_NUMBERS}\s+(?P<name>\S.*)"),  # CamVid's label_colors.txt
)
_HEX = re.compile("#[0-9a-fA-F]{6}")

FORMS = ('a line such as "cat,128,0,0" or "cat:128,0,0::" for each class, or JSON such as '
         '{"cat": [128, 0, 0]}')


class ColorMap:
    """Colours of masks, and what they mean.

    Args:
        path: the file; see ``FORMS``, for errors.
        classes: the C foreground classes; the map may spell them in another case.
        found: whether the program found the file itself, which is told when it is used.

    Attributes:
        greys: whether a class has a grey colour, so that grey pictures may be meant.

    Raises:
        UserError: naming the file, and the line, that does not fit; or no class has a colour.
    """

    def __init__(self, path: Path, classes: Sequence[str], found: bool = False) -> None:
        self.path = path
        self._strangers: dict[Color, str] = {}
        self._told = Once()
        own = Names({name: str(index) for index, name in enumerate(classes, start=1)})
        values: dict[Color, int] = {}
        names: list[str] = []
        for where, name, color in _entries(path):
            index = own.find(name)
            value = int(index) if index else NOTHING.get(name.strip("_").casefold())
            meaning = name if value is None else value
            if values.get(color, self._strangers.get(color, meaning)) != meaning:
                raise UserError(f"{where}: the colour {color} is in the map twice; remove one")
            if value is None:
                self._strangers[color] = name
            else:
                values[color] = value
            names.append(name)
        given = {value for value in values.values() if value not in (0, IGNORE)}
        if not given:
            hint = did_you_mean(classes[0], names)
            raise UserError(f"{path}: no name in this colour map is a class, such as "
                            f"'{classes[0]}'{hint or '; write the names alike'}")
        for color, value in ((BACKGROUND, 0), (BORDER, IGNORE)):
            if value not in values.values() and color not in self._strangers:
                values.setdefault(color, value)
        self.greys = any(len({*color}) == 1 and value not in (0, IGNORE)
                         for color, value in values.items())
        # A table of all colours takes 32 MB, and no search.
        self._table = np.full(2**24, UNKNOWN, dtype=np.int16)
        for color, value in values.items():
            self._table[_code(np.array(color))] = value
        self._message = f"the colours of the masks are those of {path}" if found else ""
        absent = [name for index, name in enumerate(classes, 1) if index not in given]
        if absent:
            self._message = (f"{self._message or path}{': ' if found else ' has '}no colour for "
                             f"{len(absent)} of {len(classes)} classes, such as '{absent[0]}'")

    def values(self, colors: np.ndarray, source: Path) -> np.ndarray:
        """What colours mean: (..., 3) uint8, to (...) uint8 of 0, 1..C and 255.

        Raises:
            UserError: naming a colour that the map does not hold, and ``source``, its file.
        """
        if self._message:
            self._told.note(self._message)
        flat = colors.reshape(-1, 3)
        out = np.empty(len(flat), np.uint8)
        for start in range(0, len(flat), PIXELS):
            found = self._table[_code(flat[start : start + PIXELS])]
            if found.size and found.min() == UNKNOWN:
                raise UserError(self._unknown(flat, source))
            out[start : start + PIXELS] = found
        return out.reshape(colors.shape[:-1])

    def _unknown(self, flat: np.ndarray, source: Path) -> str:
        codes, counts = np.unique(_code(flat), return_counts=True)
        strange = self._table[codes] == UNKNOWN
        code = int(codes[strange][counts[strange].argmax()])
        color = (code >> 16, code >> 8 & 255, code & 255)
        where = f"{source}: the colour {color} (#{code:06x})"
        more = f", as are {strange.sum() - 1} more colours of it" if strange.sum() > 1 else ""
        if color in self._strangers:
            return (f"{where} means '{self._strangers[color]}' by {self.path}, which is no class: "
                    "add the class, or call it 'background' or 'ignored' there")
        return (f"{where} is not in the colour map {self.path}{more}: add it with its class, or as "
                "'background' or 'ignored'; a mask whose colours were blended when it was resized "
                "must be made anew")


def _code(colors: np.ndarray) -> np.ndarray:
    """Colours (..., 3) as one number each."""
    red, green, blue = np.moveaxis(colors.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def find_labelmap(folder: Path) -> Path | None:
    """The file labelmap.txt beside masks, or one folder up, if there is one that holds colours.

    Other programs give that name to a plain list of classes, of which a note tells.
    """
    for path in (folder / LABELMAP, folder.parent / LABELMAP):
        if path.is_file():
            lines = read_lines(path, "the colour map")
            if any(_LABELMAP_LINE.fullmatch(line) for _, line in lines):
                return path
            note(f"{path} holds no colours (name:r,g,b::) and is left aside")
    return None


def _entries(path: Path) -> Iterator[tuple[str, str, Color]]:
    """(place, name, colour) of each entry of a map."""
    lines = read_lines(path, "the colour map", "set data.colors to the map of the masks' colours")
    if lines and lines[0][1].startswith("{"):
        for key, value in _read_object(path).items():
            yield f"{path}: {key}", *_pair(path, key, value)
        return
    for place, (number, line) in enumerate(lines):
        where = f"{path}, line {number}"
        match = next(filter(None, (form.fullmatch(line) for form in _LINES)), None)
        if match:
            color = tuple(int(part) for part in match.groups() if part and part.isdecimal())[:3]
            yield where, match["name"].strip(' "'), _checked(where, color)
        elif not line.startswith("#") and (place or re.search(r"\d", line)):
            raise UserError(f"{where}: '{line[:80]}' is no colour of a class; write {FORMS}")


def _read_object(path: Path) -> dict[str, list[int] | str]:
    return read_json(path, "the colour map", dict[str, list[int] | str], most=MEGABYTE)


def _pair(path: Path, key: str, value: list[int] | str) -> tuple[str, Color]:
    """Name and colour of an entry of JSON, which may have either first."""
    name, color = (value, key) if isinstance(value, str) and _HEX.fullmatch(key) else (key, value)
    if isinstance(color, str) and _HEX.fullmatch(color):
        color = [*bytes.fromhex(color[1:])]
    if isinstance(color, str) or len(color) != 3:
        raise UserError(f"{path}: '{key}' has no colour such as [128, 0, 0] or #800000; write "
                        f"{FORMS}")
    return name, _checked(f"{path}: '{key}'", tuple(color))


def _checked(where: str, color: Color) -> Color:
    if not all(0 <= part <= 255 for part in color):
        raise UserError(f"{where}: the colour {color} is none, of numbers in 0..255; correct it")
    return color
