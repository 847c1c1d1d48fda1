"""Checkpoints: written atomically, read without running any code from the file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypedDict

import torch
from torch import nn

from cosa.checkpoint import released
from cosa.checkpoint.files import REMEDY, read, save, save_safetensors
from cosa.config import Config, DataConfig, from_dict, upgraded
from cosa.core.declared import Within, check
from cosa.core.device import out_of_memory
from cosa.core.errors import UserError, one_line
from cosa.core.files import DAMAGE
from cosa.core.foreign import parse_json
from cosa.core.hub import fetch, is_model
from cosa.core.tensor_files import read_safetensors
from cosa.network import CoSANetwork

FORMAT = "cosa-1"

ARCHITECTURE = (
    "encoder", "encoder_options", "output_stride", "freeze_batch_norm", "normalization",
    "aux_layer", "aux_stage", "aux_norm", "pooling", "aux_pooling", "class_offset",
    "cam_steps", "seg_steps", "early_layer", "affinity_power", "aux_affinity_power",
    "decoder_width", "decoder_dilation", "decoder_aux", "decoder_stride",
)
"""Keys of the ``model`` section that are arguments of ``CoSANetwork``."""

READING = ("value_range", "bands")
"""Keys of the ``data`` section that say what becomes of the values in image files."""

_Byte = Annotated[int, Within(0, 255)]
_Share = Annotated[float, Within(0, 1)]


class Description(TypedDict):
    """What :func:`describe` makes, beside the format."""

    config: dict[str, Any]
    classes: tuple[str, ...]
    palette: tuple[tuple[_Byte, _Byte, _Byte], ...]
    thresholds: tuple[_Share | None, _Share | None]
    image_size: Annotated[int, Within(1, 2**31)]


class TrainedNetwork(CoSANetwork):
    """A network with what inference needs beside its weights, which are random at first.

    Args:
        config: of its training.
        classes: the C foreground names.
        palette: C + 1 RGB triples of 0..255, background first.
        thresholds: (xi, xi_aux) in [0, 1], the thresholds of M' and of the auxiliary M'; None
            where the training fits none.
        image_size: side in pixels of the square that it was evaluated at.

    Raises:
        UserError: ``config.model`` describes no network.
    """

    def __init__(
        self,
        config: Config,
        classes: Sequence[str],
        palette: Sequence[Sequence[int]],
        thresholds: Sequence[float | None],
        image_size: int,
    ) -> None:
        super().__init__(len(classes), **{key: getattr(config.model, key) for key in ARCHITECTURE})
        self.config = config
        self.classes: tuple[str, ...] = tuple(classes)
        self.palette: list[tuple[int, int, int]] = [tuple(color) for color in palette]
        self.thresholds: tuple[float | None, float | None] = tuple(thresholds)
        self.image_size = image_size


def describe(
    config: dict[str, Any],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    thresholds: tuple[float | None, float | None],
) -> dict[str, Any]:
    """What inference needs beside the weights, in plain types.

    Args:
        config: the whole configuration, as :func:`cosa.config.to_dict` gives it.
        classes: the C foreground names.
        palette: C + 1 RGB triples, background first.
        thresholds: (xi, xi_aux), the thresholds of M' and of the auxiliary M'; None where the
            training fits none.
    """
    return {
        "format": FORMAT,
        "config": config,
        "classes": list(classes),
        "palette": [[int(value) for value in rgb] for rgb in palette],
        "thresholds": [None if value is None else float(value) for value in thresholds],
        "image_size": int(config["evaluate"]["image_size"]),
    }


def shareable(config: Config) -> Config:
    """The configuration as others get it: without where somebody's files were."""
    reading = {key: getattr(config.data, key) for key in READING}
    weights = config.model.weights
    return replace(
        config,
        data=DataConfig(name=config.data.name, **reading),
        model=replace(config.model, weights=weights if is_model(weights) else Path(weights).name),
        output=Config.output,
    )


def build_network(config: dict[str, Any], num_classes: int) -> CoSANetwork:
    """The network that the ``model`` section of a configuration describes, random weights."""
    return CoSANetwork(num_classes, **{key: config["model"][key] for key in ARCHITECTURE})


def save_weights(
    path: str | Path,
    network: nn.Module,
    *,
    config: dict[str, Any],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    thresholds: tuple[float | None, float | None] = (0.5, 0.5),
    half: bool = False,
) -> None:
    """Write a network for inference: .safetensors, or anything else as a PyTorch file.

    Args:
        config, classes, palette, thresholds: see :func:`describe`.
        half: keep 16 bits of each number (float16): half the size; loaded, they are float32.
    """
    about = describe(config, classes, palette, thresholds)
    tensors = network.state_dict()
    if half:
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    if Path(path).suffix == ".safetensors":
        save_safetensors(path, tensors, {"cosa": json.dumps(about)})
    else:
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        save(path, {"about": about, "assignment": tensors})


def load(path: str | Path, device: str | torch.device = "cpu") -> TrainedNetwork:
    """Load trained weights (the assignment network of a checkpoint) for inference.

    Args:
        path: best.pth, last.pth or a .safetensors file written by this program, or a .pth file
            of the authors' released program (see :mod:`cosa.checkpoint.released`); or the name of
            a model on the hub, ``hf-hub:user/name`` or ``hf-hub:user/name@revision``.

    Returns:
        The network in eval mode without gradients. Of its ``config``, what inference reads (the
        sections ``model``, ``evaluate`` and ``train``, and ``READING`` of ``data``) is that of the
        file. So are the others, unless one is of another version that this one cannot read: then
        all of them are the defaults.

    Raises:
        UserError: no such file, damaged, altered, or not written by this program; or the hub does
            not give it (see :func:`cosa.core.hub.fetch`).
    """
    path = fetch(str(path)) if is_model(path) else path
    about, tensors = _read_weights(Path(path))
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(f"{path} is not of the format {FORMAT} that this version reads: "
                        "give a file written by it")
    try:
        check(Description, about)
        check(dict[str, torch.Tensor], tensors)
        if len(about["palette"]) != len(about["classes"]) + 1:
            raise ValueError(f"palette has not the {len(about['classes']) + 1} colours of the "
                             "classes and of the background")
        network = TrainedNetwork(
            _read_config(upgraded(about["config"])), about["classes"], about["palette"],
            about["thresholds"], about["image_size"],
        )
        network.load_state_dict(tensors)
    except (*DAMAGE, ArithmeticError, UserError) as error:
        if out_of_memory(error):
            raise
        reason = f"no {error}" if isinstance(error, KeyError) else one_line(error)
        raise UserError(f"{path} does not fit its own configuration: {reason}; "
                        "the file was altered or is of another version") from error
    return network.to(device).eval().requires_grad_(False)


def _read_config(config: dict[str, Any]) -> Config:
    """The configuration in a file, whose sections that inference does not read may be unreadable.

    Keys that an older version did not have get their defaults, but for those of the architecture:
    another one may fit the weights, and yet yield other outputs.

    Raises:
        UserError: naming the key of an unknown name or a wrong type.
        KeyError: naming what is missing of the architecture.
    """
    read = {name: config[name] for name in ("model", "evaluate", "train") if name in config}
    data = config.get("data")
    if isinstance(data, dict):
        read["data"] = {key: data[key] for key in READING if key in data}
    typed = from_dict(read, "the file")
    missing = next((key for key in ARCHITECTURE if key not in config["model"]), None)
    if missing is not None:
        raise KeyError(missing)
    try:
        return from_dict(config, "the file")
    except (UserError, ArithmeticError):  # other sections are of another version
        return typed


def _read_weights(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path, REMEDY)
        if "cosa" not in metadata:
            raise UserError(f"{path} holds tensors but no description of a CoSA network: "
                            "give a file written by train.py")
        return parse_json(metadata["cosa"], f"{path}: the description is damaged"), tensors
    content = read(path)
    if "about" in content and "assignment" in content:
        return content["about"], content["assignment"]
    tensors = released.find_state_dict(content)
    if tensors is None:
        raise UserError(f"{path} is no checkpoint of this program: give the best.pth or last.pth "
                        "of a run folder, or a file of the released CoSA program")
    return _import_released(tensors, content.get("args"), path)


def check_finite(network: nn.Module, what: str) -> None:
    """Raise ``UserError``, beginning with ``what``, unless all weights are finite."""
    for name, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            raise UserError(f"{what} holds values in {name} that are not finite, its training "
                            "has diverged: give another checkpoint")


def _import_released(
    tensors: dict[str, torch.Tensor], arguments: Any, path: Path
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    config, classes, palette = released.describe_released(tensors, arguments, str(path))
    # What the file lacks gets the same values at each loading, so that the digest of the weights,
    # by which infer.py knows its own results, stays the same.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        expected = build_network(config, len(classes)).state_dict()
    about = describe(config, classes, palette, (None, None))
    return about, released.fill_missing(tensors, expected, str(path))
