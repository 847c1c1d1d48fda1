"""MS COCO 2014, from PNG masks or from the instance annotations."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypedDict

import numpy as np

from cosa.core import IGNORE
from cosa.core.declared import Within
from cosa.core.errors import UserError, did_you_mean
from cosa.core.foreign import MEGABYTE, read_json
from cosa.core.terminal import note
from cosa.core.threads import in_threads
from cosa.data.base import FileDataset, existing_folder, expanded, label_rows, read_mask
from cosa.data.labels import read_labels

CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip


class CocoDataset(FileDataset):
    """One split of COCO 2014.

    Args:
        root: folder with SPLIT or images/SPLIT, and SegmentationClass/SPLIT (PNG masks named
            like the images), annotations/instances_SPLIT.json, or both.
        split: "train2014", "val2014" or another folder name.
        training: leave the masks untouched.

    Image-level labels come from the JSON file if there is one (crowds count), else from the set of
    classes present in each PNG mask, and nothing more of it. Either takes a while, so they are
    kept in a CSV file beside their source, which is made anew when the source is newer.
    Masks are the PNG files if there are any, else drawn from the JSON file's outlines.
    Raises ``UserError`` naming the missing or malformed file.
    """

    def __init__(self, root: str | Path, split: str, training: bool = False) -> None:
        root = existing_folder(expanded(root), "data.root")
        images = next((f for f in (root / split, root / "images" / split) if f.is_dir()), None)
        if images is None:
            raise UserError(
                f"{root}: neither {split} nor images/{split} is here; set data.root to the folder "
                "of COCO 2014, and data.train_split and data.val_split to its parts"
            )
        masks = root / "SegmentationClass" / split
        self._json = root / "annotations" / f"instances_{split}.json"
        self._instances: Instances | None = None
        mask_files = sorted(masks.glob("*.png"))
        if self._json.is_file():
            cache, newest = self._json.with_suffix(".labels.csv"), self._json.stat().st_mtime
            labels = cached_labels(cache, newest, lambda: Instances(self._json).labels())
        elif mask_files:
            cache = masks.with_name(f"{split}.labels.csv")
            newest = max(path.stat().st_mtime for path in (masks, *mask_files))
            labels = cached_labels(cache, newest, lambda: labels_of_masks(mask_files))
        else:
            raise UserError(
                f"{root}: labels come from {self._json} or from the masks in {masks}, "
                "and neither exists"
            )
        names = list(labels)
        files = {image_key(path.stem): path for path in images.iterdir()}
        by_key = {image_key(path.stem): path for path in mask_files}
        self._drawn = not mask_files
        mask_paths = [
            self._json if self._drawn else by_key.get(image_key(n), masks / f"{n}.png")
            for n in names
        ]
        super().__init__(
            classes=CLASSES,
            names=names,
            labels=label_rows(labels.values(), len(CLASSES)),
            image_paths=[files.get(image_key(n), images / f"{n}.jpg") for n in names],
            mask_paths=mask_paths,
            verify_masks=not training,
        )

    def mask(self, index: int) -> np.ndarray | None:
        return self._load().mask(self.names[index]) if self._drawn else super().mask(index)

    def mask_size(self, index: int) -> tuple[int, int] | None:
        return self._load().sizes[self.names[index]] if self._drawn else super().mask_size(index)

    def check(self) -> None:
        if self._drawn and self.verify_masks:
            self._load()  # once, before the threads of the check ask for it
        super().check()

    def check_mask_values(self, index: int) -> None:
        if self._drawn:  # drawing all of them would take long
            self._load().check(self.names[index])
        else:
            super().check_mask_values(index)

    def _load(self) -> Instances:
        if self._instances is None:
            self._instances = Instances(self._json)
        return self._instances


MOST_JSON = 4000 * MEGABYTE
"""The annotations of COCO's training images have 0.4 GB."""

_Side = Annotated[int, Within(1, 2**31)]
_Coordinate = Annotated[float, Within(-1e9, 1e9)]


class _Category(TypedDict):
    id: int
    name: str


class _Image(TypedDict):
    id: int
    file_name: str
    width: _Side
    height: _Side


class RunLengths(TypedDict):
    """Lengths of runs outside and inside by turns, column by column; text if compressed."""

    counts: list[Annotated[int, Within(0, 2**31)]] | str


class _Crowd(TypedDict, total=False):
    iscrowd: int | bool


class _Annotation(_Crowd):
    id: int
    image_id: int
    category_id: int
    area: float
    segmentation: list[list[_Coordinate]] | RunLengths


class _Content(TypedDict):
    categories: list[_Category]
    images: list[_Image]
    annotations: list[_Annotation]


@dataclass(frozen=True)
class Instance:
    """One annotated object, or a crowd of them; ``label`` counts from 0, ``area`` is in pixels."""

    identity: int
    crowd: bool
    area: float
    label: int
    segmentation: RunLengths | list[list[float]]


class Instances:
    """A COCO instance annotation file; ``sizes`` maps image names to (width, height)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content: _Content = read_json(path, "the file", _Content, most=MOST_JSON)
        self._classes = {
            category["id"]: self._class_index(category["name"])
            for category in content["categories"]
        }
        names = {image["id"]: Path(image["file_name"]).stem for image in content["images"]}
        self.sizes = {
            names[image["id"]]: (image["width"], image["height"]) for image in content["images"]
        }
        if not len(self.sizes) == len(names) == len(content["images"]):
            raise UserError(f"{path}: two images have one id or file_name; each must have its own")
        self._objects: dict[str, list[Instance]] = defaultdict(list)
        for item in content["annotations"]:
            for key, known in (("image_id", names), ("category_id", self._classes)):
                if item[key] not in known:
                    raise UserError(f"{path}: annotation {item['id']} has the {key} {item[key]}, "
                                    "which the file does not list; complete it")
            self._objects[names[item["image_id"]]].append(self._instance(item))

    def _instance(self, item: _Annotation) -> Instance:
        return Instance(
            identity=item["id"],
            crowd=bool(item.get("iscrowd", 0)),
            area=float(item["area"]),
            label=self._classes[item["category_id"]],
            segmentation=item["segmentation"],
        )

    def _class_index(self, name: str) -> int:
        if name not in CLASSES:
            hint = did_you_mean(name, CLASSES)
            raise UserError(f"{self.path}: '{name[:80]}' is no class of COCO{hint}")
        return CLASSES.index(name)

    def labels(self) -> dict[str, list[int]]:
        """Image name -> class indices from 0, sorted; crowds count as present."""
        return {
            name: sorted({item.label for item in self._objects.get(name, ())})
            for name in sorted(self.sizes)
        }

    def check(self, name: str) -> None:
        """Raise ``UserError`` if an outline in an image is none."""
        for item in self._objects.get(name, ()):
            with self._told(item):
                check_outline(item.segmentation, self.sizes[name])

    def mask(self, name: str) -> np.ndarray:
        """(H, W) uint8 mask of an image.

        Crowds are ignored (255) except where a single object is annotated; of overlapping objects
        the smaller is on top.
        """
        width, height = self.sizes[name]
        mask = np.zeros((height, width), dtype=np.uint8)
        items = self._objects.get(name, ())
        for item in sorted(items, key=lambda item: (not item.crowd, -item.area)):
            with self._told(item):
                inside = region(item.segmentation, (width, height))
            mask[inside] = IGNORE if item.crowd else item.label + 1
        return mask

    @contextmanager
    def _told(self, item: Instance) -> Iterator[None]:
        """Turns what an annotation is wrong about into one sentence naming it."""
        try:
            yield
        except ValueError as error:
            raise UserError(f"{self.path}: annotation {item.identity}: {error}") from error


def region(segmentation: RunLengths | list[list[float]], size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool of a COCO segmentation in an image of ``size`` (width, height).

    Takes polygons ([[x, y, x, y, ...], ...] in pixels, (0, 0) the outer corner of the first pixel)
    and uncompressed run lengths ({"counts": [off, on, off, ...]}, column by column). Raises
    ``ValueError`` for anything else.
    """
    check_outline(segmentation, size)
    width, height = size
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        return values.reshape(width, height).T
    inside = np.zeros((height, width), dtype=bool)
    for polygon in segmentation:
        inside |= fill_polygon(np.reshape(polygon, (-1, 2)), size)
    return inside


def check_outline(segmentation: RunLengths | list[list[float]], size: tuple[int, int]) -> None:
    """Raise ``ValueError`` for what ``region`` cannot fill in an image of ``size``."""
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        if isinstance(counts, str):
            raise ValueError("compressed run lengths are not supported; store them as a list")
        if sum(counts) != size[0] * size[1]:
            raise ValueError(f"run lengths cover {sum(counts)} of {size[0] * size[1]} pixels")
    elif any(len(polygon) % 2 for polygon in segmentation):
        raise ValueError("the segmentation is no list of polygons [x, y, x, y, ...]")


def fill_polygon(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: the pixels of an image of ``size`` whose centre is inside a polygon.

    ``corners`` is (K, 2) of (x, y). Drawing libraries add the outline as well, which makes
    small objects larger than they are.
    """
    width, height = size
    x, y = np.asarray(corners, dtype=np.float64).T
    x_end, y_end = np.roll(x, -1), np.roll(y, -1)
    centre = np.arange(height) + 0.5
    edge, row = np.nonzero((y[:, None] > centre) != (y_end[:, None] > centre))
    slope = (x_end[edge] - x[edge]) / (y_end[edge] - y[edge])
    crossing = x[edge] + (centre[row] - y[edge]) * slope
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
    crossings = np.zeros((height, width + 1), dtype=np.int32)
    np.add.at(crossings, (row, column), 1)
    return np.cumsum(crossings, axis=1)[:, :width] % 2 == 1


def labels_of_masks(paths: Iterable[Path]) -> dict[str, list[int]]:
    """Image name -> class indices from 0: which classes a mask holds, nothing else of it."""
    paths = list(paths)
    note(f"finding the classes in {len(paths)} masks of {paths[0].parent}; this happens once")
    return dict(zip([path.stem for path in paths], in_threads(_classes_of, paths), strict=True))


def _classes_of(path: Path) -> list[int]:
    present = np.flatnonzero(np.bincount(read_mask(path, len(CLASSES)).ravel(), minlength=256))
    return [int(value) - 1 for value in present if 0 < value <= len(CLASSES)]


def cached_labels(
    cache: Path, newest: float, compute: Callable[[], dict[str, list[int]]]
) -> dict[str, list[int]]:
    """Labels from the CSV file ``cache`` if it is not older than ``newest``, else computed.

    The file has a header ``image,labels``, class names joined by ";". Where the folder cannot be
    written, a note on stderr says so and the labels are computed again next time.
    """
    if cache.is_file() and cache.stat().st_mtime >= newest:
        return _read_labels(cache)
    labels = compute()
    rows = [(name, ";".join(CLASSES[i] for i in found)) for name, found in labels.items()]
    temporary = cache.with_suffix(".tmp")
    try:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("image", "labels"), *rows])
        temporary.replace(cache)
    except OSError as error:
        note(f"the labels cannot be kept in {cache} ({error.strerror}); found anew at every start")
    return labels


def _read_labels(cache: Path) -> dict[str, list[int]]:
    try:
        return {
            row.image: [CLASSES.index(label) for label in row.labels]
            for row in read_labels(cache, separator=";").rows
        }
    except (UserError, ValueError) as error:
        raise UserError(f"{cache}: {error}; delete this file, it is made anew") from error


def image_key(stem: str) -> str:
    """What image and mask names share: COCO_train2014_000000000009 is also 000000000009."""
    return stem.rsplit("_", 1)[-1] if stem.startswith("COCO_") else stem
