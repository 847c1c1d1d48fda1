"""Image-level labels for the images that are segmented."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cosa.core.errors import UserError, did_you_mean
from cosa.data.labels import ImageIndex, composed, match_rows, read_labels, say_labels


@dataclass
class ImageLabels:
    """The rows of a labels file by image."""

    path: Path
    digest: str
    """SHA-256 of its rows."""
    _rows: dict[str, list[int]]

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
        return self._rows.get(name)


def read_image_labels(
    path: str | Path, classes: Sequence[str], images: Mapping[str, Path]
) -> ImageLabels:
    """Read image-level labels of any format of ``cosa.data.labels.read_labels``.

    Rows name their image as ``cosa.data.labels.ImageIndex`` says. Rows of other images are left
    aside.

    Args:
        classes: the C foreground classes of the weights.
        images: the images that are segmented: name ("a/b.jpg") -> file.

    Raises:
        UserError: naming file and place of what does not fit, such as a class that the weights do
            not have.
    """
    table = read_labels(Path(path), "--labels", known=[composed(name) for name in classes])
    numbers = {composed(name): number for number, name in enumerate(classes, start=1)}
    for row in table.rows:
        unknown = next((label for label in row.labels if label not in numbers), None)
        if unknown is not None:
            raise UserError(
                f"{table.where(row)}: '{unknown}' is no class of the weights"
                f"{did_you_mean(unknown, numbers) or '; take it out of the file'}"
            )
    index = ImageIndex({name: (name, file) for name, file in images.items()})
    found = match_rows(table, index, all_of_them=False)
    say_labels(table)
    rows = {name: sorted({numbers[label] for label in row.labels}) for name, row in found.items()}
    return ImageLabels(table.path, table.digest(), rows)
