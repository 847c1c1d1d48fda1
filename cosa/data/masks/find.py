"""Where the masks of a set of images are, by what a path leads to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from cosa.core.errors import UserError
from cosa.core.terminal import note
from cosa.data.labels import Names
from cosa.data.masks.annotations import CocoMasks
from cosa.data.masks.files import BLENDING_SUFFIXES, SUFFIXES, MaskFiles
from cosa.data.masks.reader import MaskReader


def open_masks(
    path: Path,
    written: Mapping[str, str],
    classes: Sequence[str],
    colors: Path | None = None,
    images: Sequence[Path] = (),
) -> MaskReader:
    """The masks of images in a folder of pictures, or in a COCO JSON file.

    Args:
        path: the folder, which is searched with those below it, or the file.
        written: how images are called, with and without suffix, below their folder -> their names.
        classes: the C foreground classes.
        colors: the map of the pictures' colours; None: a labelmap.txt beside or above them.
        images: files that are no masks, wherever they lie.

    Raises:
        UserError: there is no such folder or file, or nothing in it belongs to an image.
    """
    annotations = path.suffix.lower() == ".json"
    if not (path.is_file() if annotations else path.is_dir()):
        raise UserError(f"{path}: no such {'file' if annotations else 'folder'}; set data.masks or "
                        "data.val_masks to where it is")
    if annotations and colors is not None:
        raise UserError(f"{path} has no colours: leave out the colour map {colors}")
    if annotations:
        return CocoMasks(path, classes, Matching(written))
    return MaskFiles(find_files(path, written, {*images}), classes, path, colors)


def find_files(
    folder: Path, written: Mapping[str, str], images: set[Path]
) -> dict[str, Path]:
    """The mask files of the images that have one; ``UserError`` if none has."""
    # One listing instead of one question per image: folders may be on a network.
    names, blended = Names(written), {}
    found: dict[str, tuple[tuple[bool, int], Path]] = {}
    for path in sorted(folder.rglob("*")):
        suffix = path.suffix.lower()
        stem = path.relative_to(folder).with_suffix("").as_posix()
        name = names.find(stem) if suffix in (*SUFFIXES, *BLENDING_SUFFIXES) else None
        if name is None or path in images:
            continue
        if suffix in BLENDING_SUFFIXES:
            blended.setdefault(name, path)
            continue
        rank = (stem != name, SUFFIXES.index(suffix))
        if name not in found or rank < found[name][0]:
            found[name] = (rank, path)
    lost = [path for name, path in blended.items() if name not in found]
    told = lost and (f"{lost[0]} is of a format that blends the values of neighbouring pixels, so "
                     "it is no mask: make the masks anew, as PNG")
    if not found:
        example = next(iter(written.values()))
        told = told or f"a mask is named like its image, for example {example}.png"
        raise UserError(f"{folder}: no mask here belongs to an image; {told}")
    if lost:
        note(f"{len(lost)} images have no mask: {told}")
    return {name: path for name, (_, path) in found.items()}


class Matching:
    """Finds images by the ``file_name`` of annotations, which may start at another folder."""

    def __init__(self, written: Mapping[str, str]) -> None:
        self._names = Names(written)

    def __call__(self, file_name: str) -> str | None:
        """The name of the image that a path leads to, less folders in front where needed."""
        parts = PurePosixPath(file_name.replace("\\", "/")).parts
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        return next(filter(None, map(self._names.find, tails)), None)
