"""Image-level labels for the images that are segmented."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cosa.core.errors import UserError, did_you_mean
from cosa.data.label_table import Names, composed, read_labels


@dataclass
class ImageLabels:
    """The rows of a labels file by image."""

    path: Path
    digest: str
    """SHA-256 of the file."""
    _rows: dict[str, list[int]]
    _names: Names

    def of(self, name: str) -> list[int]:
        """The foreground classes, counted from 1, of the image ``name`` ("a/b.jpg").

        Raises:
            UserError: the image has no row.
        """
        row = self.find(name)
        if row is None:
            raise UserError(
                f"{name} has no row in {self.path}: add one (without labels if it holds no "
                "class), and give --overwrite or another --output with it, since a run does not "
                "go on with other labels"
            )
        return row

    def find(self, name: str) -> list[int] | None:
        """The same, or None for an image without a row."""
        written = self._names.find(name) or self._names.find(name.rpartition(".")[0])
        return None if written is None else self._rows[written]


def read_image_labels(path: str | Path, classes: Sequence[str]) -> ImageLabels:
    """Read a labels file in either form of ``cosa.data.label_table.read_labels``.

    Rows name their image by its path below the folder that is segmented, with or without suffix.
    Rows of other images are left aside.

    Args:
        classes: the C foreground classes of the weights.

    Raises:
        UserError: naming file and line of what does not fit, such as a class that the weights do
            not have.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"--labels {path} does not exist: give a CSV file")
    table = read_labels(path)
    numbers = {composed(name): number for number, name in enumerate(classes, start=1)}
    rows: dict[str, list[int]] = {}
    for line, image, labels in table.rows:
        unknown = next((label for label in labels if label not in numbers), None)
        if unknown is not None:
            raise UserError(
                f"{path}, line {line}: '{unknown}' is no class of the weights"
                f"{did_you_mean(unknown, numbers) or '; take it out of the file'}"
            )
        if image in rows:
            raise UserError(f"{path}, line {line}: the image '{image}' has a row already")
        rows[image] = sorted({numbers[label] for label in labels})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ImageLabels(path, digest, rows, Names({name: name for name in rows}))
