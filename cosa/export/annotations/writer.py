"""What is written for an annotation tool, and what a writer of its format is."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosa.core.errors import UserError
from cosa.core.files import (
    Replacement,
    check_target,
    remove_leftovers,
    write_atomically,
    writing,
)
from cosa.data.masks.outlines import Size
from cosa.export.annotations.regions import Region

MODEL = "CoSA"
"""What made the annotations: the first word of a version."""


@dataclass(frozen=True)
class Picture:
    """An image, and what is found in it."""

    name: str
    """Its path below the folder of the images, with "/"."""
    source: Path
    """The file."""
    size: Size
    """(width, height), upright."""
    regions: Sequence[Region]


@dataclass(frozen=True)
class Target:
    """Where annotations go, and how they are written."""

    folder: Path
    classes: tuple[str, ...]
    """The C foreground classes."""
    palette: Sequence[tuple[int, int, int]]
    """C + 1 colours, that of the background first."""
    model: str = MODEL
    """What the annotations are made by; begins with ``MODEL``."""
    tolerance: float = 0.0
    """Of ``polygons.simplified``, in pixels."""
    prefix: str = ""
    """Of the images' paths, where a tool wants an address."""
    overwrite: bool = False
    """Whether files of single images that are there already are replaced."""


class Writer(ABC):
    """Writes one format, picture by picture, in the order in which they come.

    Within its ``with`` block: ``add`` each picture, then ``finish``. Files are whole or not there.
    The files of single images may have been corrected by hand: those that are there and differ
    stay, unless ``overwrite`` is set, and ``kept`` counts them.

    Raises:
        UserError: a file cannot be written.
    """

    PLACES: tuple[str, ...]
    """The files and folders below the target's folder that it writes."""

    def __init__(self, target: Target) -> None:
        self.target, self.kept = target, 0
        self._swept: set[Path] = set()

    def check(self) -> None:  # noqa: B027 most can always write
        """Raise ``UserError`` if a file would be replaced that is of another program."""

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: Any) -> None:  # noqa: B027 most hold nothing open
        """Leave out what is not finished."""

    @abstractmethod
    def add(self, picture: Picture) -> None:
        """Write what belongs to a picture."""

    @abstractmethod
    def finish(self) -> None:
        """Write what is about all pictures, and put it in its place."""

    def put(self, name: str, text: str) -> None:
        """A file of its own below the folder, unless another one is to stay there."""
        path = self.target.folder / name
        self._sweep(path.parent)
        if os.path.isfile(path):
            with writing(path):
                same = path.read_bytes() == text.encode()
            if same or not self.target.overwrite:
                self.kept += not same
                return
        write_atomically(path, text)

    def _sweep(self, folder: Path) -> None:
        """Remove what killed programs have left in a folder."""
        if folder not in self._swept:
            self._swept.add(folder)
            remove_leftovers(folder)


class OneFile(Writer):
    """A format of one JSON file for all pictures; only the current one is in memory."""

    BEGINS: str
    """How each of its files begins, by which it is told from those of other programs."""

    @property
    def path(self) -> Path:
        """The file."""
        return self.target.folder / self.PLACES[0]

    def check(self) -> None:
        """A file of annotations that somebody has worked on must not be lost."""
        check_target(self.path)
        if self.path.exists():
            with writing(self.path), open(self.path, "rb") as file:
                start = file.read(len(self.BEGINS))
            if start != self.BEGINS.encode():
                raise UserError(f"{self.path} is there and was not written by this program: move "
                                "it away, or choose another --output")

    def __enter__(self) -> OneFile:
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._sweep(self.path.parent)
            self._new = Replacement(self.path)
        self.write(self.BEGINS)
        return self

    def __exit__(self, *error: Any) -> None:
        self._new.discard()

    def write(self, text: str) -> None:
        """Add text, which is ASCII."""
        with writing(self.path):
            self._new.file.write(text.encode("ascii"))

    def commit(self) -> None:
        """Put the file in its place."""
        with writing(self.path):
            self._new.commit()


def compact(content: Any) -> str:
    """JSON in one line of ASCII, in which half a surrogate pair of a file name has a place."""
    return json.dumps(content, allow_nan=False, separators=(",", ":"))
