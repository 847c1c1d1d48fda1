"""Checkpoints of the authors' released program (and of ToCo), read into this one.

They hold a state dict in timm's naming, under "model" beside the training arguments (CoSA) or
bare with "module." prefixes (ToCo). The architecture follows from the tensors' shapes.
"""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cosa.config import Config, from_dict, to_dict
from cosa.core.errors import UserError
from cosa.core.terminal import note
from cosa.data.coco import CLASSES as COCO_CLASSES
from cosa.data.voc import CLASSES as VOC_CLASSES
from cosa.pictures.palette import voc_palette

# Paths are read as pure ones, which exist on every system whichever wrote the file; the module
# of their classes is another in Python 3.13.
SAFE_TYPES = [
    (pure, f"{module}.{name}")
    for module in ("pathlib", "pathlib._local")
    for pure, name in (
        (pathlib.PurePosixPath, "PosixPath"), (pathlib.PurePosixPath, "PurePosixPath"),
        (pathlib.PureWindowsPath, "WindowsPath"), (pathlib.PureWindowsPath, "PureWindowsPath"),
    )
]
"""Beside plain values and namespaces, what the training arguments consist of; none runs code."""

HEAD_CHANNELS = 64
"""Channels per attention head in every ViT that the released programs use."""

CONSTANTS = frozenset({"mean", "std"})
"""Of the input's normalisation; the released programs have them in their code."""

IGNORED = re.compile(r"encoder\.(head|head_dist|pre_logits)\.|proj_head")
"""An unused ImageNet head, and ToCo's projection heads."""


def find_state_dict(content: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """The released network's tensors in a checkpoint, without prefixes; None if it has none."""
    nested = content.get("model")
    state = nested if isinstance(nested, Mapping) else content
    tensors = {
        key.removeprefix("module."): value
        for key, value in state.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    tensors = {key: value for key, value in tensors.items() if not IGNORED.search(key)}
    return tensors if "encoder.patch_embed.proj.weight" in tensors else None


def describe_released(
    tensors: Mapping[str, Tensor], arguments: Any, source: str
) -> tuple[dict[str, Any], tuple[str, ...], list[tuple[int, int, int]]]:
    """Configuration, class names and palette of a released network.

    Args:
        tensors: from :func:`find_state_dict`.
        arguments: the training arguments as a dictionary if the file has them; ``aux_layer`` is
            read.
        source: named in errors.

    Returns:
        The whole configuration as nested dictionaries (the paper's defaults with this
        architecture), the C class names (those of VOC for 20 and of COCO for 80 classes) and
        C + 1 colours.

    Raises:
        UserError: tensors that tell the architecture are missing or do not fit together.
    """
    patches, position = tensors["encoder.patch_embed.proj.weight"], tensors.get("encoder.pos_embed")
    classifier, decoder = tensors.get("classifier.weight"), tensors.get("decoder.conv8.weight")
    last = decoder if classifier is None else classifier
    wanted = (("encoder.patch_embed.proj.weight", patches, 4), ("encoder.pos_embed", position, 3),
              ("classifier.weight or decoder.conv8.weight", last, 4))
    for name, tensor, dimensions in wanted:
        if tensor is None or tensor.ndim != dimensions:
            raise UserError(f"{source} has no {name} of {dimensions} dimensions, which every "
                            "released CoSA network has: give a complete file")
    width, _, patch, _ = patches.shape
    positions = position.shape[1] - 1
    classes = last.shape[0] - (classifier is None)
    found = (re.match(r"encoder\.blocks\.(\d+)\.", key) for key in tensors)
    blocks = {int(match[1]) for match in found if match}
    side = math.isqrt(max(positions, 0))
    if not blocks or blocks != set(range(len(blocks))):
        raise UserError(f"{source} lacks blocks of the encoder: give a complete file")
    if side < 1 or side * side != positions or width < 1 or width % HEAD_CHANNELS:
        raise UserError(f"{source}: {positions} positions and {width} channels are no ViT of the "
                        "released programs")
    aux_layer = Config().model.aux_layer
    if isinstance(arguments, Mapping):
        aux_layer = arguments.get("aux_layer", aux_layer)
    if type(aux_layer) is not int or not -len(blocks) <= aux_layer < len(blocks):
        raise UserError(f"{source} was saved with aux_layer={aux_layer!r}, which is none of its "
                        f"{len(blocks)} blocks: give an unaltered file")
    conv6 = tensors.get("decoder.conv6.weight")
    model = {
        "encoder": "vit_base_patch16_224",
        "normalization": "imagenet",  # for whatever weights their ViT starts from
        "encoder_options": {
            "img_size": side * patch, "patch_size": patch, "embed_dim": width,
            "depth": len(blocks), "num_heads": width // HEAD_CHANNELS,
        },
        "aux_layer": aux_layer,
        "decoder_width": Config().model.decoder_width if conv6 is None else conv6.shape[0],
    }
    named = {len(VOC_CLASSES): VOC_CLASSES, len(COCO_CLASSES): COCO_CLASSES}
    names = named.get(classes) or tuple(f"class_{k}" for k in range(1, classes + 1))
    return to_dict(from_dict({"model": model}, source)), tuple(names), voc_palette(classes + 1)


def fill_missing(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str
) -> dict[str, Tensor]:
    """``tensors`` as far as they overlap with ``expected``, the rest from there, saying so.

    A note on stderr names the tensors that are missing and those that have no place.

    Raises:
        UserError: the encoder is not complete, or a shape differs.
    """
    missing = sorted(set(expected) - set(tensors) - CONSTANTS)
    unused = sorted(set(tensors) - set(expected))
    broken = [key for key in missing if key.startswith("encoder.")]
    broken += [k for k in expected if k in tensors and tensors[k].shape != expected[k].shape]
    if broken:
        raise UserError(f"{source}: {len(broken)} tensors are missing or of another shape, such "
                        f"as {broken[0]}: give a complete file of the released program")
    if missing:
        note(f"{source} has no {', '.join(missing)}: these stay at random values, and what depends "
             "on them is meaningless")
    if unused:
        note(f"{source} holds {', '.join(unused[:5])}{' and more' * (len(unused) > 5)}, for which "
             "this network has no place: outputs that depended on them differ")
    return {key: tensors.get(key, expected[key]) for key in expected}
