"""What an image and its labels are.

``registry``: the data sets by name; ``base``: what each of them is; ``voc``, ``coco``, ``folder``
and ``scenes``: the data sets; ``labels``: readers of image-level labels of any format; ``masks``:
those of the images; ``subset``: a part of one; ``check``: whether one lies; ``images``: files to
pixels, ``reading``: by which rules; ``transforms`` and ``augmentations``: the two views; ``loader``
and ``batches``: the resumable stream, and what the networks read; ``partners``: what CSD adds.
"""

from cosa.config.sections import DATASETS
from cosa.data.base import SegmentationDataset
from cosa.data.registry import SPLITS, build_dataset, resolved

__all__ = ["DATASETS", "SPLITS", "SegmentationDataset", "build_dataset", "resolved"]
