"""YOLO's text files: a polygon on each line, and data.yaml with the names of the classes."""

from __future__ import annotations

import math
import os

import yaml

from cosa.export.annotations.writer import Picture, Writer


class Yolo(Writer):
    """``yolo/labels/a/b.txt`` for a/b.jpg, with its scores in ``yolo/scores/a/b.txt``.

    A line of labels is the number of a class, from 0, and a polygon in parts of width and height,
    holes bridged in; the same line of the scores is its score, for which YOLO's labels have no
    place. Images without a region have empty files.
    """

    PLACES = ("yolo",)

    def add(self, picture: Picture) -> None:
        stem, lines = os.path.splitext(picture.name)[0], []
        for region in picture.regions:
            corners = region.polygon(self.target.tolerance) / picture.size
            lines.append(f"{region.label - 1} " + " ".join(f"{x:.8g}" for x in corners.flat) + "\n")
        self.put(f"yolo/labels/{stem}.txt", "".join(lines))
        self.put(f"yolo/scores/{stem}.txt",
                 "".join(f"{region.score:.4f}\n" for region in picture.regions))

    def finish(self) -> None:
        names = dict(enumerate(self.target.classes))
        content = {"train": "images", "val": "images", "names": names}
        self.put("yolo/data.yaml", yaml.safe_dump(content, allow_unicode=True, sort_keys=False,
                                                  width=math.inf))
