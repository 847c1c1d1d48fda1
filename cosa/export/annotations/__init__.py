"""Masks for annotation tools: what ``infer.py --export`` writes.

``regions``: what is written of a mask, made by ``tracing`` (connected parts and their outlines) and
``polygons`` (fewer corners, holes bridged in, run lengths); ``writer``: what a writer of a format
is; the formats: ``coco``, ``yolo``, ``labelme`` and ``label_studio``.
"""

from cosa.export.annotations.coco import Coco
from cosa.export.annotations.label_studio import LabelStudio
from cosa.export.annotations.labelme import LabelMe
from cosa.export.annotations.regions import Region, find_regions, from_arrays, to_arrays
from cosa.export.annotations.writer import MODEL, Picture, Target, Writer
from cosa.export.annotations.yolo import Yolo

FORMATS: dict[str, type[Writer]] = {
    "coco": Coco, "yolo": Yolo, "labelme": LabelMe, "labelstudio": LabelStudio,
}
"""By the names that ``--export`` takes."""

__all__ = [
    "FORMATS", "MODEL", "Picture", "Region", "Target", "Writer", "find_regions", "from_arrays",
    "to_arrays",
]
