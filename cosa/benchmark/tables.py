"""Tables and names in Markdown, and their places in the report file."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from cosa.core.errors import UserError
from cosa.core.files import write_atomically
from cosa.core.terminal import say
from cosa.core.text import shown, visible

TITLE = "# Benchmarks\n"
REPORT = "docs/benchmarks.md"
"""Where tables go unless ``--report`` says otherwise."""
NOTHING = "–"
"""In the cell of a score that a row does not have."""


def print_section(*parts: str) -> None:
    """Print paragraphs and tables, whose names have been shown."""
    say(*"\n".join(parts).split("\n"))


def markdown(cells: list[list[str]]) -> str:
    """The table, header first, as Markdown; a name in it can neither end a cell nor be HTML."""
    rows = [[shown(cell).replace("|", r"\|").replace("<", "&lt;") for cell in row] for row in cells]
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|---|" + "---:|" * (len(cells[0]) - 1), *body])


def code(text: object) -> str:
    """A path, name or command in Markdown, set as code."""
    line = shown(text, None)
    if "`" not in line:
        return f"`{line}`"
    fence = "`" * (1 + max(map(len, re.findall("`+", line))))
    return f"{fence} {line} {fence}"


def add_report_option(parser: argparse.ArgumentParser) -> None:
    """``--report FILE``, by default ``REPORT``."""
    parser.add_argument("--report", metavar="FILE", default=REPORT,
                        help=f"Markdown file to put the table in; {REPORT}")


def markers(topic: str) -> tuple[str, str]:
    """The comments that enclose a topic's section in the report file."""
    return f"<!-- {topic}:start -->", f"<!-- {topic}:end -->"


def replace_section(old: str, section: str, topic: str, name: str = "the report") -> str:
    """``old`` with the text between a topic's markers replaced, or with a section at its end.

    Args:
        name: of the report, for the error.

    Raises:
        UserError: one marker is missing, twice there, or they are in the wrong order.
    """
    start, end = markers(topic)
    block = f"{start}\n{section.strip()}\n{end}"
    counts = old.count(start), old.count(end)
    if counts == (0, 0):
        return f"{(old or TITLE).rstrip()}\n\n{block}\n"
    before, _, rest = old.partition(start)
    _, found, after = rest.partition(end)
    if counts != (1, 1) or not found:
        raise UserError(f"{name} must have {start} and then {end}, once each: mend the markers")
    return before + block + after


def read_report(path: str | Path, topic: str) -> str:
    """The report so far, "" if there is none; fails now rather than after hours of training.

    Raises:
        UserError: it cannot be read, or the topic's markers are damaged.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; choose another --report") from error
    replace_section(text, "", topic, str(path))
    return text


def write_report(path: str | Path, section: str, topic: str) -> None:
    """Put the section of a topic into the report file, atomically.

    Raises:
        UserError: the file cannot be read or written, or the topic's markers are damaged.
    """
    text = read_report(path, topic)
    section = visible(section).replace("<!--", "&lt;!--")  # markers would damage the report
    write_atomically(Path(path), replace_section(text, section, topic, str(path)))
