"""Label Studio's pre-annotations: one file of tasks with predictions, and the labels to set up."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from cosa.core.text import visible
from cosa.export.annotations.writer import MODEL, OneFile, Picture, Target, compact

LABELS, IMAGE = "label", "image"
"""The names of the two controls of the labelling interface."""


class LabelStudio(OneFile):
    """``labelstudio.json`` to import, and ``labelstudio.xml``, the labelling interface for it.

    Polygons are in percent of width and height, holes bridged in. A prediction's score is that of
    its regions, by their areas.
    """

    PLACES = ("labelstudio.json", "labelstudio.xml")
    BEGINS = f'[\n{{"predictions":[{{"model_version":"{MODEL}'

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._tasks = 0

    def add(self, picture: Picture) -> None:
        prediction: dict[str, Any] = {"model_version": self.target.model}
        if picture.regions:
            total = sum(region.area for region in picture.regions)
            weighted = sum(region.score * region.area for region in picture.regions)
            prediction["score"] = round(weighted / total, 4)
        prediction["result"] = [self._result(number, picture)
                                for number in range(len(picture.regions))]
        data = {IMAGE: self.target.prefix + quote(os.fsencode(picture.name))}
        text = "[\n" + compact({"predictions": [prediction], "data": data})
        self.write(",\n" + text[2:] if self._tasks else text.removeprefix(self.BEGINS))
        self._tasks += 1

    def _result(self, number: int, picture: Picture) -> dict[str, Any]:
        region, (width, height) = picture.regions[number], picture.size
        points = region.polygon(self.target.tolerance) * 100 / (width, height)
        return {
            "id": f"r{number + 1}", "type": "polygonlabels", "from_name": LABELS, "to_name": IMAGE,
            "original_width": width, "original_height": height, "image_rotation": 0,
            "score": round(region.score, 4),
            "value": {"points": [[float(f"{x:.9g}") for x in point] for point in points],
                      "closed": True,
                      "polygonlabels": [self.target.classes[region.label - 1]]},
        }

    def finish(self) -> None:
        rows = zip(self.target.classes, self.target.palette[1:], strict=True)
        # XML has no place for control characters.
        labels = [f'    <Label value={quoteattr(visible(name))} '
                  f'background="#{red:02x}{green:02x}{blue:02x}"/>'
                  for name, (red, green, blue) in rows]
        self.put(self.PLACES[1], "\n".join([
            "<View>", f'  <Image name="{IMAGE}" value="${IMAGE}"/>',
            f'  <PolygonLabels name="{LABELS}" toName="{IMAGE}">', *labels,
            "  </PolygonLabels>", "</View>", ""]))
        self.write("\n]\n")
        self.commit()
