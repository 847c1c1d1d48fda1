"""One's own photographs: a folder of images and their labels, masks if there are any."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cosa.core import IGNORE
from cosa.core.errors import UserError, did_you_mean
from cosa.core.foreign import read_lines
from cosa.core.terminal import note
from cosa.core.threads import in_threads
from cosa.data.base import FileDataset, existing_folder, label_rows
from cosa.data.images import IMAGE_SUFFIXES, hidden, image_size
from cosa.data.labels import ImageIndex, LabelTable, composed, is_background, match_rows
from cosa.data.masks import classes_of, open_masks


class FolderDataset(FileDataset):
    """Images of any name, in nested folders or not.

    Args:
        classes: the C foreground class names; mask value c + 1 is ``classes[c]``.
        images: folder of images; a name is the path below it, without suffix unless two images
            differ in nothing else.
        labels: see ``cosa.data.labels.read_labels``; None takes the labels from the masks.
        masks: folder of masks with the names of the images, a COCO JSON file, or None.
        masked_only: the set is the images with a mask, those without a row in ``labels``
            included (their labels are the classes in the mask); else it is the rows of ``labels``.
        training: leave the masks untouched.
        colors: the map of the masks' colours; None: a labelmap.txt beside or above them.

    Raises ``UserError`` naming the file, and the line or place in it, that does not fit.
    """

    def __init__(
        self,
        classes: tuple[str, ...],
        images: Path,
        labels: LabelTable | None,
        masks: Path | None = None,
        masked_only: bool = False,
        training: bool = False,
        colors: Path | None = None,
    ) -> None:
        files = find_images(images)
        rows = class_indices(labels, images, files, classes) if labels else {}
        reader = None if masks is None else open_masks(
            masks, written_names(files), classes, colors, files.values())
        names = sorted(filter(reader.has, files)) if masked_only else sorted(rows)
        if training and len(names) < len(files):
            note(
                f"{len(files) - len(names)} of {len(files)} images in {images} have no row in "
                f"{labels.path} and take no part"
            )
        unlabelled = [name for name in names if name not in rows]
        if unlabelled:
            reader.prepare()
        found = in_threads(lambda name: classes_of(reader.read(name, image_size(files[name]),
                                                               files[name])), unlabelled)
        rows = {**rows, **dict(zip(unlabelled, found, strict=True))}
        super().__init__(
            classes=classes,
            names=names,
            labels=label_rows([rows[name] for name in names], len(classes)),
            image_paths=[files[name] for name in names],
            masks=reader,
            verify_masks=not training,
        )


def listed_classes(path: Path) -> tuple[str, ...]:
    """The class names in a text file, one on a line.

    Raises ``UserError`` for what :func:`checked_classes` refuses.
    """
    lines = read_lines(path, "the list of classes", "set data.classes to a text file")
    return checked_classes([composed(line) for _, line in lines], path)


def checked_classes(names: Sequence[str], source: Path) -> tuple[str, ...]:
    """The class names that ``source`` states.

    Raises ``UserError`` for a name that occurs twice, for "background", which is implied, and for
    none or more than 254 classes.
    """
    background = next(filter(is_background, names), None)
    if background is not None:
        raise UserError(f"{source}: remove '{background}'; it is implied and has the mask value 0; "
                        "images of nothing else have an empty label")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{source}: the class '{twice[0]}' is listed twice; remove one")
    if not names:
        raise UserError(f"{source}: there is no class in it: name the classes, or give labels that "
                        "do")
    if len(names) >= IGNORE:
        raise UserError(f"{source}: {len(names)} classes found; there must be 1 to {IGNORE - 1}")
    return tuple(names)


def find_images(folder: Path) -> dict[str, Path]:
    """All images below ``folder`` but hidden ones: name (see ``FolderDataset``) -> file."""
    existing_folder(folder, "data.images or data.val_images")
    found = [(path, path.relative_to(folder)) for path in sorted(folder.rglob("*"))
             if path.suffix.lower() in IMAGE_SUFFIXES]
    found = [(path, name) for path, name in found if not hidden(name) and path.is_file()]
    if not found:
        raise UserError(f"{folder}: there is no image in this folder")
    files = [path for path, _ in found]
    whole = [name.as_posix() for _, name in found]
    stems = [name.with_suffix("").as_posix() for _, name in found]
    # A stem is a name if it means one file only, whether read as a stem or as a whole name.
    uses = Counter([*whole, *stems])
    names = [stem if uses[stem] == 1 else name for stem, name in zip(stems, whole, strict=True)]
    return dict(zip(names, files, strict=True))


def class_indices(
    table: LabelTable, folder: Path, files: dict[str, Path], classes: tuple[str, ...]
) -> dict[str, list[int]]:
    """The labels of a table by image name, as class indices from 0.

    A row names its image as ``ImageIndex`` says. Raises ``UserError`` with file and place for an
    image that is not there or has a row already, and for a label that is no class.
    """
    index = ImageIndex({
        name: (file.relative_to(folder).as_posix(), file) for name, file in files.items()
    })
    indices = {name: number for number, name in enumerate(classes)}
    rows: dict[str, list[int]] = {}
    for name, row in match_rows(table, index).items():
        unknown = next((label for label in row.labels if label not in indices), None)
        if unknown is not None:
            raise UserError(f"{table.where(row)}: '{unknown}' is no class"
                            f"{did_you_mean(unknown, classes)}")
        rows[name] = [indices[label] for label in row.labels]
    return rows


def written_names(files: dict[str, Path]) -> dict[str, str]:
    """How images may be called, with or without suffix -> their names."""
    return {**{name + file.suffix: name for name, file in files.items()},
            **{name: name for name in files}}
