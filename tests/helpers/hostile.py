"""Names that would write over the terminal, and the check that they did not."""

from __future__ import annotations

import re

from cosa.core.text import LINE

HOSTILE = "a\x1b[2J\nfailed: forged\r\t\x9b\u202e\u2028\u200b\udcff"
SHOWN = r"a\x1b[2J\nfailed: forged\r\t\x9b\u202e\u2028\u200b\udcff"

CLASS, CLASS_SHOWN = HOSTILE.removesuffix("\udcff"), SHOWN.removesuffix(r"\udcff")
"""A name in weights, which hold no half of a surrogate pair."""


def assert_text(printed: str, most: int = LINE) -> None:
    """Lines of visible characters, of which no name has made one, and none is too long.

    Progress bars begin anew with a carriage return, on one of the lines above.
    """
    for line in re.split("\r|\n|\x1b\\[A", printed):
        assert line.isprintable(), ascii(line)
        assert len(line) <= most, line
        assert not re.match("(failed|error|note|warning): forged", line), line
