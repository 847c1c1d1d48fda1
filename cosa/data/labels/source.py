"""What a reader of labels is given, and what a reader is."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from cosa.core.declared import Misfit, check
from cosa.core.errors import UserError
from cosa.core.foreign import MEGABYTE, read_json, read_text, read_xml
from cosa.data.images import IMAGE_SUFFIXES, hidden
from cosa.data.labels.table import LabelTable

MOST_BYTES = 4000 * MEGABYTE
"""Of a JSON or XML file; the annotations of COCO's training images have 0.4 GB."""


class Source:
    """A file or folder of labels, and what is known beside it.

    Attributes:
        path: the file or folder.
        key: where it is set, for errors: "data.labels" or "--labels".
        images: the folder of the images, if it is known.
        known: names of the classes, if they are stated elsewhere.
        separator: one of ``label_fields.SEPARATORS``; "": to be found.
    """

    def __init__(
        self, path: Path, key: str = "data.labels", images: Path | None = None,
        known: Sequence[str] = (), separator: str = "",
    ) -> None:
        self.path, self.key, self.images = path, key, images
        self.known, self.separator = tuple(known), separator
        self.is_folder = os.path.isdir(path)

    @cached_property
    def _listing(self) -> tuple[list[Path], list[Path]]:
        if not self.is_folder:
            return [self.path], []

        def refuse(error: OSError) -> None:
            raise error

        files, inner = [], []
        for folder, folders, names in os.walk(self.path, onerror=refuse):
            folders[:] = [name for name in folders if not hidden(Path(name))]
            inner += [Path(folder, name) for name in folders]
            files += [Path(folder, name) for name in names if not hidden(Path(name))]
        return sorted(files), sorted(inner)

    @property
    def files(self) -> list[Path]:
        """The file, or all below the folder but hidden ones, sorted."""
        return self._listing[0]

    @property
    def folders(self) -> list[Path]:
        """The folders below the folder, sorted."""
        return self._listing[1]

    def of_kind(self, *suffixes: str) -> list[Path]:
        """Those of ``files`` with one of these suffixes, in lower case."""
        return [path for path in self.files if path.suffix.lower() in suffixes]

    @cached_property
    def pictures(self) -> list[Path]:
        """The images among ``files``."""
        return self.of_kind(*IMAGE_SUFFIXES)

    @cached_property
    def json(self) -> Any:
        """The content of the first JSON file; None if there is none."""
        files = self.of_kind(".json")
        return read_json(files[0], "the file", Any, most=MOST_BYTES) if files else None

    @cached_property
    def text(self) -> str:
        """The content of a file of text."""
        return read_text(self.path, "the CSV file", f"set {self.key} to where the labels are")

    @cached_property
    def xml(self) -> Element | None:
        """The root of the first XML file; None if there is none."""
        files = self.of_kind(".xml")
        return read_xml(files[0], "the file", most=MOST_BYTES) if files else None

    def below(self, path: Path) -> str:
        """A file's path below the folder, with "/"; of a single file its name."""
        return path.relative_to(self.path).as_posix() if self.is_folder else path.name


@dataclass(frozen=True)
class Reader:
    """A format of labels: how it is told from the others, and how it is read.

    ``read`` raises ``UserError`` naming the file and the place in it that does not fit.
    """

    kind: str
    """What people call it."""
    recognises: Callable[[Source], bool]
    read: Callable[[Source], LabelTable]


def fitting(content: Any, kind: Any, where: str | Path) -> Any:
    """The content of a JSON file, which must be of a declared kind.

    Raises:
        UserError: it is not; names the place.
    """
    try:
        check(kind, content)
    except Misfit as error:
        raise UserError(f"{where}: {error}") from error
    return content
