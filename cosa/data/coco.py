"""MS COCO 2014, from PNG masks or from the instance annotations."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path

from cosa.core.errors import UserError
from cosa.core.terminal import note
from cosa.core.threads import in_threads
from cosa.data.base import FileDataset, existing_folder, expanded, label_rows
from cosa.data.labels import read_labels
from cosa.data.masks import CocoMasks, MaskFiles, MaskReader, classes_of, read_mask
from cosa.data.masks.annotations import Annotations

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
        annotations = root / "annotations" / f"instances_{split}.json"
        mask_files = sorted(masks.glob("*.png"))
        if annotations.is_file():
            cache, newest = annotations.with_suffix(".labels.csv"), annotations.stat().st_mtime
            labels = cached_labels(
                cache, newest, lambda: Annotations(annotations, CLASSES, image_stem).labels())
        elif mask_files:
            cache = masks.with_name(f"{split}.labels.csv")
            newest = max(path.stat().st_mtime for path in (masks, *mask_files))
            labels = cached_labels(cache, newest, lambda: labels_of_masks(mask_files))
        else:
            raise UserError(
                f"{root}: labels come from {annotations} or from the masks in {masks}, "
                "and neither exists"
            )
        names = list(labels)
        files = {image_key(path.stem): path for path in images.iterdir()}
        super().__init__(
            classes=CLASSES,
            names=names,
            labels=label_rows(labels.values(), len(CLASSES)),
            image_paths=[files.get(image_key(n), images / f"{n}.jpg") for n in names],
            masks=_masks(mask_files, masks, annotations, names),
            verify_masks=not training,
        )


def _masks(files: list[Path], folder: Path, annotations: Path, names: list[str]) -> MaskReader:
    """The PNG files if there are any, else the annotations; each image has a mask."""
    if not files:
        return CocoMasks(annotations, CLASSES, image_stem)
    by_key = {image_key(path.stem): path for path in files}
    paths = {name: by_key.get(image_key(name), folder / f"{name}.png") for name in names}
    return MaskFiles(paths, CLASSES)


def image_stem(file_name: str) -> str:
    """The name of an image from its path in a file of annotations."""
    return Path(file_name).stem


def labels_of_masks(paths: Iterable[Path]) -> dict[str, list[int]]:
    """Image name -> class indices from 0: which classes a mask holds, nothing else of it."""
    paths = list(paths)
    note(f"finding the classes in {len(paths)} masks of {paths[0].parent}; this happens once")
    return dict(zip([path.stem for path in paths], in_threads(_classes_of, paths), strict=True))


def _classes_of(path: Path) -> list[int]:
    return classes_of(read_mask(path, len(CLASSES)))


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
