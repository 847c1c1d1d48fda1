"""PASCAL VOC 2012, with image-level labels from the object names of its annotations."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from cosa.core.errors import UserError, did_you_mean
from cosa.core.foreign import read_bytes, read_lines
from cosa.core.terminal import note
from cosa.core.threads import in_threads
from cosa.data.base import FileDataset, existing_folder, expanded, label_rows
from cosa.data.masks import MaskFiles

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


class VocDataset(FileDataset):
    """One split of VOC 2012.

    Args:
        root: the folder with JPEGImages, Annotations, ...; or one that holds it as VOC2012 or
            VOCdevkit/VOC2012.
        split: name of a list in ImageSets/Segmentation, or "train_aug": the masks of
            SegmentationClassAug that are not in val.txt (10,582 in the full set). A list
            train_aug.txt goes first if there is one, and train.txt stands in, with a note on
            stderr, if there is neither.
        training: leave the masks untouched.

    Labels are all object names of an image's XML file, those marked difficult included. Masks are
    those of SegmentationClass; of SegmentationClassAug for training splits, if it exists.
    Raises ``UserError`` naming the missing folder, list or annotation.
    """

    def __init__(self, root: str | Path, split: str, training: bool = False) -> None:
        self.root = find_root(expanded(root))
        names = self._train_aug() if split == "train_aug" else self._read_list(split)
        annotations = [self.root / "Annotations" / f"{name}.xml" for name in names]
        masks = self.root / "SegmentationClass"
        augmented = self.root / "SegmentationClassAug"
        if training and augmented.is_dir():
            masks = augmented
        if not (training or masks.is_dir()):
            note(f"{masks} does not exist; without masks there is no mIoU")
        super().__init__(
            classes=CLASSES,
            names=names,
            labels=label_rows(in_threads(read_objects, annotations), len(CLASSES)),
            image_paths=[self.root / "JPEGImages" / f"{name}.jpg" for name in names],
            masks=_masks(masks, names, training) if masks.is_dir() else None,
            verify_masks=not training,
        )

    def _read_list(self, split: str) -> list[str]:
        path = self._list_path(split)
        if not path.is_file():
            known = [other.stem for other in sorted(path.parent.glob("*.txt"))]
            raise UserError(
                f"{path}: there is no such list of images{did_you_mean(split, known)}; "
                "set data.train_split or data.val_split to the name of one"
            )
        # Some published lists hold "JPEGImages/x.jpg SegmentationClassAug/x.png" per line.
        lines: dict[str, int] = {}
        for number, line in read_lines(path, "the list"):
            name = Path(line.split()[0]).stem
            if name in lines:
                raise UserError(f"{path}, line {number}: the image {name} is listed twice, first "
                                f"in line {lines[name]}; remove one")
            lines[name] = number
        return list(lines)

    def _train_aug(self) -> list[str]:
        masks = self.root / "SegmentationClassAug"
        if self._list_path("train_aug").is_file():
            names = self._read_list("train_aug")
        elif masks.is_dir():
            names = sorted(path.stem for path in masks.glob("*.png"))
        else:
            note(
                f"{masks} does not exist; training on the images of train.txt instead of the "
                "10,582 of train_aug"
            )
            names = self._read_list("train")
        held_out = set(self._read_list("val"))
        return [name for name in names if name not in held_out]

    def _list_path(self, split: str) -> Path:
        return self.root / "ImageSets" / "Segmentation" / f"{split}.txt"


def _masks(folder: Path, names: list[str], training: bool) -> MaskFiles:
    """The masks; training images need none."""
    there = {path.stem for path in folder.glob("*.png")} if training else {*names}
    return MaskFiles({name: folder / f"{name}.png" for name in names if name in there}, CLASSES)


def look_for_root(root: Path) -> Path | None:
    """The folder that holds JPEGImages, ``root`` or the usual places below it, if there is one."""
    places = (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")
    return next((folder for folder in places if (folder / "JPEGImages").is_dir()), None)


def find_root(root: Path) -> Path:
    """The same; ``UserError`` if there is none."""
    found = look_for_root(root)
    if found is not None:
        return found
    existing_folder(root, "data.root")
    raise UserError(
        f"{root}: no folder JPEGImages here or in VOCdevkit/VOC2012; "
        "set data.root to the unpacked VOC2012"
    )


def read_objects(path: Path) -> set[int]:
    """Class indices, from 0, of the objects in a VOC annotation; ``UserError`` if unreadable."""
    content = read_bytes(path, "the annotation", "it has the labels of the image")
    try:
        tree = ElementTree.fromstring(content)
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        # The last two: encodings that Python or its XML parser does not know.
        raise UserError(f"{path}: the annotation cannot be read ({error})") from error
    # Parts of objects have names too, one level further down.
    names = {(element.text or "").strip() for element in tree.iterfind("object/name")}
    unknown = sorted(names.difference(CLASSES))
    if unknown:
        hint = did_you_mean(unknown[0], CLASSES)
        raise UserError(f"{path}: '{unknown[0][:80]}' is no class of VOC{hint}")
    return {CLASSES.index(name) for name in names}
