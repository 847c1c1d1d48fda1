"""Masks drawn from the annotations of a COCO JSON file, of COCO's classes or of one's own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Annotated, TypedDict

import numpy as np

from cosa.core import IGNORE
from cosa.core.declared import Within
from cosa.core.errors import UserError, did_you_mean
from cosa.core.foreign import MEGABYTE, read_json
from cosa.data.labels import Names
from cosa.data.masks.outlines import MOST, Outline, RunLengths, area, check_outline, region
from cosa.data.masks.reader import MaskReader, Size

MOST_JSON = 4000 * MEGABYTE
"""The annotations of COCO's training images have 0.4 GB."""

_Side = Annotated[int, Within(1, MOST)]
_Coordinate = Annotated[float, Within(-1e9, 1e9)]


class _Category(TypedDict):
    id: int
    name: str


class _Sized(TypedDict, total=False):
    width: _Side
    height: _Side


class _Image(_Sized):
    id: int
    file_name: str


class _Details(TypedDict, total=False):
    id: int
    iscrowd: int | bool
    area: float
    bbox: list[_Coordinate]
    segmentation: list[list[_Coordinate]] | RunLengths | None


class _Annotation(_Details):
    image_id: int
    category_id: int


class _Content(TypedDict):
    categories: list[_Category]
    images: list[_Image]
    annotations: list[_Annotation]


@dataclass(frozen=True)
class Instance:
    """One annotated object, or a crowd of them."""

    identity: int
    unknown: bool
    """Whether it fills its outline in part only: a crowd, or an object of which there is a box."""
    area: float | None
    """In pixels."""
    crowd: bool
    label: int
    """Counted from 0."""
    outline: Outline


class Annotations:
    """The content of a file.

    Args:
        path: the JSON file.
        classes: the C foreground classes; categories may have them in another case.
        name_of: an image's name from its file_name in the file; None for one that is left out.

    Attributes:
        sizes: the images' names -> (width, height), None where the file does not tell.

    Raises:
        UserError: naming the file and the place in it that does not fit, such as an object of a
            category that is no class.
    """

    def __init__(
        self, path: Path, classes: Sequence[str], name_of: Callable[[str], str | None]
    ) -> None:
        self.path = path
        content: _Content = read_json(path, "the file", _Content, "check the path", MOST_JSON)
        names = {image["id"]: name_of(image["file_name"]) for image in content["images"]}
        self.sizes = {
            names[image["id"]]: _size(image) for image in content["images"] if names[image["id"]]
        }
        known = [name for name in names.values() if name]
        if not len(self.sizes) == len(known) or len(names) < len(content["images"]):
            raise UserError(f"{path}: two images have one id or file_name; each must have its own")
        categories = {category["id"]: category["name"] for category in content["categories"]}
        own = Names({name: name for name in classes})
        labels = {key: own.find(name) for key, name in categories.items()}
        indices = {name: index for index, name in enumerate(classes)}
        self._objects: dict[str, list[Instance]] = defaultdict(list)
        for number, item in enumerate(content["annotations"]):
            identity = item.get("id", number)
            for key, there in (("image_id", names), ("category_id", categories)):
                if item[key] not in there:
                    raise UserError(f"{path}: annotation {identity} has the {key} {item[key]}, "
                                    "which the file does not list; complete it")
            name, label = names[item["image_id"]], labels[item["category_id"]]
            if name and label is None:
                raise _no_class(path, identity, categories[item["category_id"]], classes)
            if name:
                self._objects[name].append(_instance(item, identity, indices[label]))

    def labels(self) -> dict[str, list[int]]:
        """Image name -> class indices from 0, sorted; crowds count as present."""
        return {
            name: sorted({item.label for item in self._objects.get(name, ())})
            for name in sorted(self.sizes)
        }

    def outlined(self, name: str) -> list[int]:
        """The class indices of an image that its mask should hold: of all but crowds."""
        return sorted({item.label for item in self._objects.get(name, ()) if not item.crowd})

    def check(self, name: str, size: Size) -> None:
        """Raise ``UserError`` if an outline in an image is none."""
        for item in self._objects.get(name, ()):
            with self._told(item):
                check_outline(item.outline, size)

    def mask(self, name: str, size: Size) -> np.ndarray:
        """(H, W) uint8 mask of an image.

        Crowds, and the boxes of objects without an outline, are ignored (255) except where a single
        object is annotated; of overlapping objects the smaller is on top.
        """
        width, height = size
        mask = np.zeros((height, width), dtype=np.uint8)
        for item in sorted(self._objects.get(name, ()), key=self._order):
            with self._told(item):
                inside = region(item.outline, size)
            mask[inside] = IGNORE if item.unknown else item.label + 1
        return mask

    def _order(self, item: Instance) -> tuple[bool, float]:
        with self._told(item):
            return not item.unknown, -(area(item.outline) if item.area is None else item.area)

    @contextmanager
    def _told(self, item: Instance) -> Iterator[None]:
        """Turns what an annotation is wrong about into one sentence naming it."""
        try:
            yield
        except ValueError as error:
            raise UserError(f"{self.path}: annotation {item.identity}: {error}") from error


def _instance(item: _Annotation, identity: int, label: int) -> Instance:
    outline, box = item.get("segmentation"), item.get("bbox", ())
    unknown = crowd = bool(item.get("iscrowd", 0))
    if not outline and len(box) == 4:
        x, y, width, height = box
        outline, unknown = [[x, y, x + width, y, x + width, y + height, x, y + height]], True
    return Instance(identity, unknown, item.get("area"), crowd, label, outline or [])


def _size(image: _Image) -> Size | None:
    return (image["width"], image["height"]) if "width" in image and "height" in image else None


def _no_class(path: Path, identity: int, category: str, classes: Sequence[str]) -> UserError:
    hint = did_you_mean(category, classes) or "; add it to the classes, or take it out of the file"
    return UserError(f"{path}: annotation {identity} is of '{category[:80]}', which is no class"
                     f"{hint}")


class CocoMasks(MaskReader):
    """Masks drawn from a file of annotations, which is read when the first is asked for.

    Args:
        path, classes, name_of: see ``Annotations``.
    """

    def __init__(
        self, path: Path, classes: Sequence[str], name_of: Callable[[str], str | None]
    ) -> None:
        super().__init__()
        self.path, self._classes, self._name_of = path, classes, name_of

    @cached_property
    def annotations(self) -> Annotations:
        """The content of the file."""
        found = Annotations(self.path, self._classes, self._name_of)
        if not found.sizes:
            raise UserError(f"{self.path}: none of its images is in the folder of images; a "
                            "file_name is the path of an image below it")
        return found

    by_name = True

    def prepare(self) -> None:
        self.annotations  # noqa: B018 kept from now on

    def has(self, name: str) -> bool:
        return name in self.annotations.sizes

    def source(self, name: str) -> str:
        return f"{self.path}, image {name}"

    def stated(self, name: str) -> list[int]:
        return [index + 1 for index in self.annotations.outlined(name)]

    def stored_size(self, name: str) -> Size | None:
        return self.annotations.sizes[name]

    def check(self, name: str, size: Size, image: str | PathLike[str] = "") -> None:
        # Drawing all of them would take long.
        self.size(name, size, image)
        self.annotations.check(name, self.stored_size(name) or size)

    def _values(self, name: str, size: Size | None) -> np.ndarray:
        size = self.stored_size(name) or size
        if size is None:
            raise UserError(f"{self.source(name)}: it has no width and height; add them")
        return self.annotations.mask(name, size)
