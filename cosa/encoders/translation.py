"""What files of encoder weights hold, under timm's names and in the encoder's shapes."""

from __future__ import annotations

import copy
import inspect
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cosa.core.errors import UserError, one_line
from cosa.core.files import DAMAGE
from cosa.encoders.packages import has_package_names, to_timm_names

# Under these keys programs keep the state dict, beside optimizers and the like.
NESTING_KEYS = ("model", "state_dict", "teacher", "student", "encoder", "module")

COUNTER = ".num_batches_tracked"
"""What counts a batch norm's batches, which old files lack; only an average without a momentum
depends on it."""


def unnest(content: Any) -> dict[str, Tensor]:
    """The named tensors of a checkpoint, from below the ``NESTING_KEYS``; else an empty dict."""
    while isinstance(content, Mapping):
        inner = [content[k] for k in NESTING_KEYS if isinstance(content.get(k), Mapping)]
        if not inner:
            return {k: v for k, v in content.items() if isinstance(v, Tensor)}
        content = inner[0]
    return {}


def strip_prefix(state: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """The part of ``state`` that holds the encoder, without the prefix of its keys.

    The prefix is the one below which most of the encoder's own keys are; of several, the shortest.

    Args:
        state: named tensors.
        wanted: the encoder's own keys.
    """
    wanted = set(wanted)
    below: Counter[str] = Counter()
    for key in state:
        parts = key.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in wanted:
                below["".join(f"{part}." for part in parts[:start])] += 1
    prefix = min(below, key=lambda prefix: (-below[prefix], len(prefix)), default="")
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def read_npz(path: Path, encoder: nn.Module) -> dict[str, Tensor]:
    """The tensors of one of Google's ``.npz`` files under timm's names."""
    if not isinstance(encoder, VisionTransformer):
        raise UserError(f"{path}: .npz weights exist for plain ViT encoders only")
    reader = copy.deepcopy(encoder)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            keys = [key for key in arrays.files if key.endswith("pos_embedding")]
            position = torch.from_numpy(arrays[keys[0]]) if keys else None
        reader.load_pretrained(str(path))
    except (zipfile.BadZipFile, *DAMAGE) as error:
        raise UserError(
            f"{path} is no .npz file of this ViT encoder ({one_line(error)})"
        ) from error
    state = reader.state_dict()
    if position is not None:
        state["pos_embed"] = position  # timm would resize it bilinearly
    return state


def convert(state: dict[str, Tensor], encoder: nn.Module, path: Path) -> dict[str, Tensor]:
    """Tensors under the encoder's own names and on its grid, as timm does for its hub."""
    wanted = encoder.state_dict()
    if has_package_names(state, encoder):
        return to_timm_names(state, encoder)
    if all(
        key in state and state[key].shape == wanted[key].shape
        for key in wanted if not key.endswith(COUNTER)
    ):
        return state  # timm takes some files without a head for original ones
    # Most of timm's modules with models have a function for this, and some of these options.
    translate = getattr(sys.modules[type(encoder).__module__], "checkpoint_filter_fn", None)
    if translate is not None:
        known = inspect.signature(translate).parameters
        options = {"antialias": False, "adapt_layer_scale": True}  # the latter: DeiT-3's gamma_1
        options = {option: value for option, value in options.items() if option in known}
        try:
            state = translate(state, encoder, **options)
        except DAMAGE as error:
            raise UserError(f"{path} does not fit the encoder: {one_line(error)}") from error
    # The final norm stands before or behind the pooling, depending on the model's pooling.
    for mine, theirs in (("norm", "fc_norm"), ("fc_norm", "norm")):
        for kind in ("weight", "bias"):
            key, other = f"{mine}.{kind}", f"{theirs}.{kind}"
            if key in wanted and other not in wanted and key not in state and other in state:
                state[key] = state.pop(other)
    return state
