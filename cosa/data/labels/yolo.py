"""Labels in YOLO's text files, whose classes are numbers, with the names in data.yaml."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from cosa.core.declared import Misfit, check
from cosa.core.errors import UserError
from cosa.core.foreign import Written, parse_yaml, read_lines, read_text
from cosa.core.threads import in_threads
from cosa.data.labels.source import Reader, Source
from cosa.data.labels.table import LabelTable, Row, composed, label_set

LISTS = ("classes.txt", "obj.names", "classes.names")
"""Files of names, one on a line, that older programs write."""

YAMLS = (".yaml", ".yml")

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def _recognises(source: Source) -> bool:
    if not source.is_folder:
        return source.path.suffix.lower() in YAMLS
    if _stating(source.path):
        return True
    texts = [path for path in source.of_kind(".txt") if not _is_about(path)]
    return any(map(_is_of_objects, texts[:3])) or bool(texts) and not source.pictures


def _lines(path: Path) -> list[str]:
    """The lines of a file that may be of any use; none if it is no text."""
    try:
        return [line for _, line in read_lines(path, "the file")]
    except UserError:
        return []


def _is_of_objects(path: Path) -> bool:
    lines = _lines(path)
    return bool(lines) and _class_number(lines[0]) is not None


def _stating(folder: Path) -> list[Path]:
    """The YAML files in a folder that name classes."""
    yamls = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in YAMLS]
    return [path for path in yamls if path.stem.lower() in ("data", "dataset")] or [
        path for path in yamls if any(line.startswith("names:") for line in _lines(path))]


def _read(source: Source) -> LabelTable:
    """An image is named like its file, below the folder of labels; an empty file: no class."""
    stating, names = _names(source)
    folder = _folder(source)
    listing = Source(folder, source.key)
    files = [path for path in listing.of_kind(".txt") if not _is_about(path)]

    def row(path: Path) -> Row:
        place = listing.below(path)
        labels = []
        for number, line in read_lines(path, "the file"):
            where = f"{path}, line {number}"
            index = _class_number(line)
            if index is None:
                raise UserError(f"{where}: '{line[:80]}' is no object of YOLO: the number of a "
                                "class and four or more coordinates belong there; set "
                                f"{source.key} to the folder of such files alone")
            if index not in names:
                raise UserError(f"{where}: there is no class {index} in {stating}, which names "
                                f"{len(names)}")
            labels.append(names[index])
        return Row(place, place[: -len(path.suffix)], label_set(labels))

    return LabelTable(folder, "YOLO", in_threads(row, files), tuple(names.values()), ordered=True)


READER = Reader("YOLO", _recognises, _read)


def _class_number(line: str) -> int | None:
    """The class of "3 0.5 0.5 0.2 0.2", or of a polygon; None if it is no such line."""
    first, *others = line.split()
    if len(others) < 4 or not all(NUMBER.fullmatch(word) for word in others):
        return None
    return int(first) if re.fullmatch(r"\d{1,6}(\.0+)?", first) and "." not in first else None


def _is_about(path: Path) -> bool:
    """Whether a text file is about the data set, not about an image."""
    return path.name.lower() in LISTS or path.name.lower().startswith("readme")


def _places(source: Source) -> Iterator[Path]:
    """Folders where the names may be stated: that of the labels, and those above it."""
    start = source.path if source.is_folder else source.path.parent
    yield from [start, *start.absolute().parents][:4]


def _names(source: Source) -> tuple[Path, dict[int, str]]:
    """The file with the names of the classes, and these by number, in order."""
    if not source.is_folder:
        return source.path, _stated(source.path)
    for folder in _places(source):
        stating = _stating(folder)
        if len(stating) > 1:
            raise UserError(f"{folder} holds {stating[0].name} and {stating[1].name}: set "
                            f"{source.key} to the one that names the classes")
        if stating:
            return stating[0], _stated(stating[0])
        for name in LISTS:
            path = folder / name
            if path.is_file():
                lines = read_lines(path, "the list of classes")
                return path, dict(enumerate(composed(line) for _, line in lines))
    raise UserError(f"{source.path}: the names of YOLO's classes are nowhere: put data.yaml or "
                    f"classes.txt here or above, or set {source.key} to data.yaml")


def _stated(path: Path) -> dict[int, str]:
    """The names in a data.yaml, a list or a mapping, in the order of their numbers."""
    try:
        content = parse_yaml(read_text(path, "the file"))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    names = content.get("names") if isinstance(content, dict) else None
    if not isinstance(names, list | dict):
        raise UserError(f"{path}: names is missing: list there the names of the classes")
    pairs = enumerate(names) if isinstance(names, list) else names.items()
    # A class may be called "no", "1" or "2026-11-25".
    found = {number.value if isinstance(number, Written) else number:
             name.text if isinstance(name, Written) else name for number, name in pairs}
    try:
        check(dict[int, str], found)
    except Misfit as error:
        raise UserError(f"{path}: {error.below('names')}") from error
    return {number: composed(name).strip() for number, name in sorted(found.items())}


def _folder(source: Source) -> Path:
    """The folder of the text files.

    As YOLO has it, the path of the images with "labels" in the place of the last "images". Else
    the folder that is named, or, where it is data.yaml or what holds it, the only folder called
    labels below it, or that of the images.
    """
    root = source.path if source.is_folder else source.path.parent
    beside = None if source.images is None else _beside(source.images.absolute())
    if beside is not None and root.absolute() in (beside, *beside.parents) and beside.is_dir():
        return beside
    if source.is_folder and not _stating(root):
        return root
    folders = [path for path in Source(root).folders if path.name == "labels"]
    if len(folders) > 1:
        raise UserError(f"{root} holds more than one folder 'labels', such as {folders[0]} and "
                        f"{folders[1]}: set {source.key} to that of the images")
    return next(iter(folders), source.images or root)


def _beside(images: Path) -> Path | None:
    """Where YOLO looks for the labels of a folder of images; None if none is called images."""
    parts = images.parts
    for index in reversed(range(len(parts))):
        if parts[index] == "images":
            return Path(*parts[:index], "labels", *parts[index + 1 :])
    return None
