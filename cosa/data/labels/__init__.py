"""Image-level labels in whatever files people have them.

``choose``: which reader reads what is there; ``source``: what a reader is given, and what one is;
``table``: what it returns; ``matching``: which image a labels file means by a name. The readers:
``csv_table`` with ``label_fields``, ``class_folders``, ``coco_json``, ``voc_xml``, ``yolo``,
``labelme``, ``label_studio`` and ``cvat_xml``.
"""

from cosa.data.labels.choose import read_labels, say_labels
from cosa.data.labels.matching import ImageIndex, Names, match_rows
from cosa.data.labels.table import LabelTable, Row, composed, is_background

__all__ = [
    "ImageIndex", "LabelTable", "Names", "Row", "composed", "is_background", "match_rows",
    "read_labels", "say_labels",
]
