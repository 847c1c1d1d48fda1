"""What an image and its labels are.

``registry``: the data sets by name; ``base``: what each of them is; ``voc``, ``coco``, ``folder``
with ``label_table``, and ``scenes``: the data sets; ``masks``: those of their images; ``subset``: a
part of one; ``check``: whether one lies; ``images``: files to pixels; ``transforms`` and
``augmentations``: the two views; ``loader`` and ``batches``: the resumable stream, and what the
networks read; ``partners``: what CSD adds to it.
"""

from cosa.config.sections import DATASETS
from cosa.data.base import SegmentationDataset
from cosa.data.registry import SPLITS, build_dataset

__all__ = ["DATASETS", "SPLITS", "SegmentationDataset", "build_dataset"]
