"""LabelMe's JSON: a file for each image, a polygon for each region."""

from __future__ import annotations

import os
from pathlib import Path

from cosa.export.annotations.writer import Picture, Writer, compact


class LabelMe(Writer):
    """``labelme/a/b.json`` for a/b.jpg, which it names by the way from one to the other.

    The score is in each shape's description, which LabelMe shows and keeps. Holes are bridged in.
    """

    PLACES = ("labelme",)

    def add(self, picture: Picture) -> None:
        name = f"labelme/{os.path.splitext(picture.name)[0]}.json"
        shapes = [compact({
            "label": self.target.classes[region.label - 1],
            "points": region.polygon(self.target.tolerance).astype(float).tolist(),
            "group_id": None, "description": f"score {region.score:.4f}",
            "shape_type": "polygon", "flags": {}, "mask": None,
        }) for region in picture.regions]
        about = compact({
            "imagePath": _way(picture.source, self.target.folder / name), "imageData": None,
            "imageHeight": picture.size[1], "imageWidth": picture.size[0],
        })
        self.put(name, '{"version":"5.5.0","flags":{},"shapes":[\n' + ",\n".join(shapes)
                 + "\n]," + about[1:] + "\n")

    def finish(self) -> None:
        """Nothing is about all images."""


def _way(image: Path, file: Path) -> str:
    """The path of an image from the folder of a file, with "/"; absolute on another drive."""
    source = os.path.abspath(image)
    try:
        source = os.path.relpath(source, os.path.realpath(file.parent))
    except ValueError:
        pass
    return Path(source).as_posix()
