"""Files that others wrote: opened if they are files at all, and read as data of a declared kind.

Whatever is wrong with one becomes a ``UserError`` of one sentence that names the file and, where
there is one, the line.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import stat
import xml.etree.ElementTree as ElementTree
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, BinaryIO
from xml.parsers import expat

import yaml

from cosa.core.declared import Misfit, check
from cosa.core.errors import UserError, one_line

MEGABYTE = 10**6

MOST_BYTES = 64 * MEGABYTE
"""Of a text file; a labels file of a million images has less."""

LONGEST = 4000
"""Characters in a line of a list, or a field of a table: as many as a path may have."""

MOST_NODES = 100_000
"""Values in a YAML file, those of repeated aliases counted each time."""


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading bytes; never waits, as opening a pipe does.

    Raises:
        OSError: there is none (FileNotFoundError), it must not be read (PermissionError), it is a
            folder (IsADirectoryError), or a device, pipe or socket, or no file can have that
            name; ``strerror`` is a clause that says so.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except ValueError as error:  # a NUL, or half of a surrogate pair
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from error
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a device, pipe or socket, no file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: str | Path, what: str, remedy: str = "", most: int = MOST_BYTES) -> bytes:
    """The content of a regular file of at most so many bytes.

    Args:
        what: the file is, for errors: "the list".
        remedy: where there is no such file, for errors: "set data.labels to the CSV file".

    Raises:
        UserError: there is none, it cannot be read, or is larger.
    """
    try:
        with open_regular(path) as file:
            content = file.read(most + 1)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file{remedy and '; '}{remedy}") from error
    except OSError as error:
        raise UserError(f"{path}: {what} cannot be read ({error.strerror})") from error
    if len(content) > most:
        raise UserError(f"{path}: {what} is larger than {most / MEGABYTE:g} MB, which none is: "
                        "give another file")
    return content


def read_text(path: str | Path, what: str, remedy: str = "", most: int = MOST_BYTES) -> str:
    """The text of a UTF-8 file, without the mark that spreadsheets put in front.

    Raises:
        UserError: see :func:`read_bytes`; or it is not in UTF-8, or holds NUL.
    """
    content = read_bytes(path, what, remedy, most)
    try:
        place = content.index(0) if 0 in content else None
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = error.start
    if place is not None:
        line = content.count(b"\n", 0, place) + 1
        raise UserError(f"{path}, line {line}: {what} is not in UTF-8; save it so")
    return text


def read_lines(path: str | Path, what: str, remedy: str = "") -> list[tuple[int, str]]:
    """The lines of a text file that hold something, stripped, with their numbers from 1.

    Raises:
        UserError: see :func:`read_text`; or a line is longer than ``LONGEST``.
    """
    lines = enumerate(read_text(path, what, remedy).splitlines(), start=1)
    stripped = [(number, _field(line, path, number)) for number, line in lines]
    return [(number, line) for number, line in stripped if line]


def read_csv(
    path: str | Path, what: str, remedy: str = "", text: str | None = None, delimiter: str = ","
) -> list[tuple[int, list[str]]]:
    """The rows of a CSV file that hold something, fields stripped, with their lines from 1.

    Args:
        text: what the file holds, if it was read already.
        delimiter: the character between columns.

    Raises:
        UserError: see :func:`read_text`; or a quote is not closed in its line, or a field is
            longer than ``LONGEST``.
    """
    text = read_text(path, what, remedy) if text is None else text
    # Blanks before a quote do not keep it from being one.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True,
                        skipinitialspace=True)
    rows, line = [], 1
    try:
        for fields in reader:
            # A quote that was not closed swallows the rows up to the next one.
            if reader.line_num > line:
                raise UserError(f"{path}, line {line}: a quote is opened and not closed in the "
                                "line; close it, or double it if it is meant")
            rows.append((line, [_field(field, path, line) for field in fields]))
            line += 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: {what} cannot be read ({error}); check the "
                        "quotes") from error
    return [(line, fields) for line, fields in rows if any(fields)]


def _field(text: str, path: str | Path, line: int) -> str:
    """The text stripped, of an acceptable length."""
    text = text.strip()
    if len(text) > LONGEST:
        raise UserError(f"{path}, line {line}: '{text[:40]}...' has {len(text)} characters, more "
                        "than any name; correct the line")
    return text


def parse_json(text: str | bytes, where: str, kind: Any = Any) -> Any:
    """A JSON text as values that fit a declared type.

    Args:
        where: begins the errors: the file, and perhaps its line.
        kind: see ``cosa.core.declared.check``.

    Raises:
        UserError: it is no JSON, or of another kind.
    """
    try:
        content = json.loads(text, parse_constant=_no_number)
        check(kind, content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: {_reason(error)}") from error
    return content


def read_json(
    path: str | Path, what: str, kind: Any, remedy: str = "", most: int = MOST_BYTES
) -> Any:
    """The content of a JSON file; see :func:`parse_json`.

    Raises:
        UserError: naming file and line, or the place in the file that is of another kind.
    """
    return parse_json(read_text(path, what, remedy, most), str(path), kind)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno} is no JSON ({error.msg})"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error) if isinstance(error, Misfit) else f"it is no JSON ({one_line(error, 200)})"


def read_xml(
    path: str | Path, what: str, remedy: str = "", most: int = MOST_BYTES
) -> ElementTree.Element:
    """The root element of an XML file without declarations of types and entities.

    Such declarations can make a small file large (an entity of entities), or name other files.

    Raises:
        UserError: see :func:`read_bytes`; or it is no XML, or declares a document type.
    """
    content = read_bytes(path, what, remedy, most)
    try:
        _refuse_doctype(content)
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        # The last two: ours, and encodings that Python or its XML parser does not know.
        raise UserError(f"{path}: {what} cannot be read ({one_line(error, 200)})") from error


def _refuse_doctype(content: bytes) -> None:
    """Raise ValueError for a declaration before the root element, where alone one may be."""

    def declared(*_: Any) -> None:
        raise ValueError("it declares a document type: remove <!DOCTYPE ...>")

    def begun(*_: Any) -> None:
        raise StopIteration

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler, parser.StartElementHandler = declared, begun
    with suppress(StopIteration, expat.ExpatError):  # what is no XML is told by who reads it all
        parser.Parse(content, True)


@dataclass(frozen=True)
class Written:
    """A number, date or truth value of YAML, and how it is written: ``no``, ``007``, ``1e5``."""

    value: bool | int | float | date
    text: str

    def __str__(self) -> str:
        return self.text


def parse_yaml(text: str) -> Any:
    """A YAML text as plain values; tags make no other objects than YAML's own.

    Numbers, dates and truth values come as :class:`Written`: only the reader knows whether they
    are names.

    Raises:
        ValueError: a clause that says what is wrong, with the line.
    """
    try:
        return yaml.load(text, _PlainLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or one_line(error, 200)
        raise ValueError(f"line {mark.line + 1}: {problem}" if mark else problem) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


class _PlainLoader(yaml.SafeLoader):
    """Tells the line of what YAML's constructors stumble over, and bounds what aliases repeat."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = 0
        self._sizes: dict[Hashable, int] = {}

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        start, event = self._nodes, self.peek_event()
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            if node not in self._sizes:
                raise yaml.composer.ComposerError(
                    None, None, f"*{event.anchor} is a part of itself", event.start_mark)
            self._nodes += self._sizes[node]
        else:
            self._nodes += 1
            self._sizes[node] = self._nodes - start
        if self._nodes > MOST_NODES:
            raise yaml.composer.ComposerError(
                None, None, f"there are more than {MOST_NODES} values", event.start_mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            # What is quoted is text already.
            written = type(value) is not str and isinstance(value, bool | int | float | date)
            return Written(value, node.value) if written else value
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"this is no value of type {kind}; quote it if it is a name",
                node.start_mark) from error
