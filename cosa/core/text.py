"""Text for people: whatever is in a name or a message, it stays what it is, a piece of a line."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

LINE = 1000
"""Characters of a message or of a printed line, at most."""
NAME = 80
"""Characters of a name in a table or a legend, at most."""

_CUT = " [...] "


def visible(text: str) -> str:
    """The text, with an escape such as ``\\x1b`` for each character that cannot be seen.

    These are the ones that ``repr`` escapes, too: controls, marks of direction, characters
    without width, halves of surrogate pairs (of file names that are no Unicode), unusual spaces.
    Newlines stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text)


def shown(value: object, most: int | None = LINE) -> str:
    """What a name or message looks like within a line: ``visible``, newlines escaped, not too long.

    To show something twice changes nothing.

    Args:
        most: characters; of a longer text the middle is left out, since messages end with the
            remedy. None leaves out nothing.
    """
    text = visible(str(value)).replace("\n", _escaped("\n"))
    if most is None or len(text) <= most:
        return text
    kept = most - len(_CUT)
    return text[: kept // 2] + _CUT + text[kept // 2 - kept :]


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """A table, header first, as text: the first column to the left, the others to the right.

    Cells are shown, the first of a row as a ``NAME``; East Asian letters take two columns.
    """
    rows = [[shown(name, NAME), *map(shown, rest)] for name, *rest in cells]
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0] + " " * (widths[0] - _width(row[0])),
                   *(" " * (w - _width(c)) + c for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _width(text: str) -> int:
    """Columns that a terminal takes for it."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "FW")
               for c in text)
