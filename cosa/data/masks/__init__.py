"""The true masks of images, whatever form they have: for scores and the check of data alone.

``reader``: what masks are to the rest of the program; ``files``: pictures of indices or colours,
with ``colors``, the map of the latter; ``annotations``: COCO's JSON files, with ``outlines``, the
geometry in them; ``find``: which of these a path is.
"""

from cosa.data.masks.annotations import CocoMasks
from cosa.data.masks.files import MaskFiles, read_mask
from cosa.data.masks.find import open_masks
from cosa.data.masks.reader import MaskReader, classes_of

__all__ = ["CocoMasks", "MaskFiles", "MaskReader", "classes_of", "open_masks", "read_mask"]
