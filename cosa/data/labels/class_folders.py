"""Labels by folders: images of a class lie in a subfolder with its name."""

from __future__ import annotations

from cosa.core.errors import UserError
from cosa.data.labels.source import Reader, Source
from cosa.data.labels.table import LabelTable, Row, composed, is_background

SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev"}
"""Names, in lower case, of folders that are parts of a data set, not classes."""


def _recognises(source: Source) -> bool:
    return source.is_folder and any("/" in source.below(path) for path in source.pictures)


def _read(source: Source) -> LabelTable:
    """The first folder of an image's path is its class; folders within it are of no meaning.

    Images in one called background show none of the classes.
    """
    images = [source.below(path) for path in source.pictures]
    beside = [image for image in images if "/" not in image]
    if beside:
        raise UserError(
            f"{source.path}: {len(beside)} images lie beside the subfolders, in no class, such as "
            f"{beside[0]}: move them into that of their class, or into 'background' if they show "
            f"none, or set {source.key} to labels of another kind"
        )
    folders = list(dict.fromkeys(image.split("/")[0] for image in images))
    splits = [folder for folder in folders if folder.casefold() in SPLITS]
    if splits:
        raise UserError(
            f"{source.path}: the subfolder '{splits[0]}' is a part of a data set, not a class: set "
            f"data.images to {source.path / splits[0]}, and data.val_images to that of the others"
        )
    names = {folder: composed(folder).strip() for folder in folders}
    rows = [Row(image, image, [] if is_background(folder) else [names[folder]])
            for image in images for folder in [image.split("/")[0]]]
    return LabelTable(source.path, "a subfolder per class", rows)


READER = Reader("subfolders of images", _recognises, _read)
