"""COCO's JSON: one file for all images, an annotation for each region."""

from __future__ import annotations

import tempfile
from typing import Any

from cosa.core.files import writing
from cosa.data.masks.outlines import Size, compressed
from cosa.export.annotations.polygons import run_lengths_of, simplified
from cosa.export.annotations.regions import Region
from cosa.export.annotations.writer import MODEL, OneFile, Picture, Target, compact


class Coco(OneFile):
    """``coco.json``: regions without holes as polygons, others as compressed run lengths.

    Categories have the numbers of the classes, from 1; images and annotations count from 1, too.
    """

    PLACES = ("coco.json",)
    BEGINS = f'{{"info":{{"description":"masks of {MODEL}"'

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._images = self._annotations = 0

    def __enter__(self) -> Coco:
        with writing(self.path):  # the images wait there until the annotations are all written
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._waiting = tempfile.TemporaryFile("w+", dir=self.path.parent, encoding="ascii")
        super().__enter__()
        categories = [{"id": number, "name": name, "supercategory": ""}
                      for number, name in enumerate(self.target.classes, start=1)]
        self.write(f',"version":{compact(self.target.model)}}},"licenses":[],\n'
                   f'"categories":{compact(categories)},\n"annotations":[')
        return self

    def __exit__(self, *error: Any) -> None:
        self._waiting.close()
        super().__exit__(*error)

    def add(self, picture: Picture) -> None:
        self._images += 1
        width, height = picture.size
        entry = {"id": self._images, "file_name": picture.name, "width": width, "height": height}
        with writing(self.path):
            self._waiting.write(("," if self._images > 1 else "") + "\n" + compact(entry))
        for region in picture.regions:
            self._annotations += 1
            entry = {"id": self._annotations, "image_id": self._images,
                     "category_id": region.label, **self._shape(region, picture.size)}
            self.write(("," if self._annotations > 1 else "") + "\n" + compact(entry))

    def _shape(self, region: Region, size: Size) -> dict[str, Any]:
        outer, *holes = region.rings
        if holes:
            counts = compressed(run_lengths_of(region.rings, size))
            outline: Any = {"size": [size[1], size[0]], "counts": counts}
        else:
            outline = [simplified(outer, self.target.tolerance).ravel().tolist()]
        return {"segmentation": outline, "bbox": region.box, "area": region.area, "iscrowd": 0,
                "score": round(region.score, 4)}

    def finish(self) -> None:
        self.write('\n],\n"images":[')
        with writing(self.path):
            self._waiting.seek(0)
            for line in self._waiting:
                self.write(line)
        self.write("\n]}\n")
        self.commit()
