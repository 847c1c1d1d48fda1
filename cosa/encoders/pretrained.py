"""Pre-trained weights of the encoder: from a file, the weights folder or timm's hub."""

from __future__ import annotations

import argparse
import copy
import pickle
import socket
import urllib.request
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import eva, get_pretrained_cfg, vision_transformer
from torch import Tensor, nn

from cosa.core.errors import UserError, one_line
from cosa.core.files import DAMAGE, PROJECT_FOLDER

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")

# Under these keys programs keep the state dict, beside optimizers and the like.
NESTING_KEYS = ("model", "state_dict", "teacher", "student", "encoder", "module")


def load_encoder_weights(
    encoder: nn.Module, name: str, file: str | Path = "", folder: str | Path = "weights"
) -> str:
    """Load pre-trained weights into a timm ViT, in place.

    The first of these is taken: ``file``; ``<folder>/<name>`` with one of the ``SUFFIXES``, the
    name with or without timm's tag; timm's repository on the Hugging Face hub (its local cache
    first). Relative paths count from the working directory, then from the project's folder.

    Any key prefix, heads and nested state dicts are understood, as are original DINOv2, DINOv3,
    DeiT and open_clip files and Google's ``.npz``. A position embedding of another grid is resized
    bicubically. Files are read as data: none can run code.

    Args:
        encoder: a timm ``VisionTransformer`` or ``Eva``, see ``cosa.encoders.build.build_encoder``.
        name: its timm name, such as ``vit_base_patch16_224.augreg2_in21k_ft_in1k``.
        file: an explicit weight file.
        folder: where files are looked up by name.

    Returns:
        One line for the log: the source and how many tensors were loaded and ignored.

    Raises:
        UserError: nothing was found, or the file is unreadable or does not fit the encoder.
    """
    if file:
        path = find_file(file)
        if path is None:
            raise UserError(f"the weight file {file} does not exist: correct model.weights")
    else:
        path = find_by_name(name, folder) or download(name, folder)
    state = read_npz(path, encoder) if path.suffix == ".npz" else read_state_dict(path)
    state = convert(state, encoder, path)
    wanted = encoder.state_dict()
    missing = [key for key in wanted if key not in state]
    if missing:
        raise UserError(
            f"{path} does not fit the encoder {name}: {len(missing)} of its {len(wanted)} tensors "
            f"are not in the file ({_some(missing)}); check model.encoder and encoder_options"
        )
    for key, tensor in wanted.items():
        if state[key].shape != tensor.shape:
            raise UserError(
                f"{path} does not fit the encoder {name}: {key} has shape "
                f"{tuple(state[key].shape)} in the file and {tuple(tensor.shape)} in the encoder; "
                "check model.encoder and encoder_options"
            )
    encoder.load_state_dict({key: state[key] for key in wanted})
    ignored = sorted(key for key in state if key not in wanted)
    names = f" ({_some(ignored)})" if ignored else ""
    return f"{path}: {len(wanted)} tensors loaded, {len(ignored)} ignored{names}"


def find_file(file: str | Path) -> Path | None:
    """An existing file, relative to the working directory or to the project's folder."""
    for path in (Path(file).expanduser(), PROJECT_FOLDER / file):
        if path.is_file():
            return path
    return None


def find_by_name(name: str, folder: str | Path) -> Path | None:
    """The weight file of an encoder in ``folder``, or None.

    The exact name comes before the name without tag, and that before the name with the tag
    that timm takes by default.
    """
    model, _, tag = name.partition(".")
    default = getattr(get_pretrained_cfg(model, allow_unregistered=True), "tag", None)
    for stem in (name, model if tag else f"{model}.{default}"):
        for suffix in SUFFIXES:
            path = find_file(Path(folder) / (stem + suffix))
            if path is not None:
                return path
    return None


def download(name: str, folder: str | Path) -> Path:
    """The weight file of a timm name in the hub's local cache, downloaded if need be.

    Raises:
        UserError: it cannot be had; the message says which file to put where.
    """
    config = get_pretrained_cfg(name, allow_unregistered=True)
    repository = getattr(config, "hf_hub_id", None)
    if not repository:
        url = getattr(config, "url", None)
        raise UserError(
            f"timm's hub has no pre-trained weights of {name}: set model.weights to a file"
            f"{f' (such as {url})' if url else ''}, or model.pretrained=false"
        )
    candidates = (config.hf_hub_filename,) if config.hf_hub_filename else HUB_FILES
    for candidate in candidates:
        try:
            return Path(hf_hub_download(repository, candidate, local_files_only=True))
        except LocalEntryNotFoundError:
            continue
    reason = "the hub is not reachable"
    if hub_is_reachable():
        for candidate in candidates:
            try:
                return Path(hf_hub_download(repository, candidate))
            # Besides OSError the errors of whichever HTTP client the hub's package uses, and
            # RuntimeError from its compiled part.
            except Exception as error:
                reason = one_line(error)
    target = Path(folder) / f"{name}{Path(candidates[0]).suffix}"
    raise UserError(
        f"no pre-trained weights of {name}: put {candidates[0]} of "
        f"{constants.ENDPOINT}/{repository} at {target}, or set model.weights to a file, or "
        f"model.pretrained=false to start from random weights ({reason})"
    )


def hub_is_reachable(timeout: float = 5.0) -> bool:
    """Whether the hub's host answers; the hub's own client would retry for a minute."""
    if constants.HF_HUB_OFFLINE:
        return False
    address = urlsplit(constants.ENDPOINT)
    if address.scheme in urllib.request.getproxies():
        return True  # only the proxy can tell
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname, port), timeout).close()
    except OSError:
        return False
    return True


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch or safetensors file, on the CPU, nesting and prefix removed."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} is no weight file: its suffix must be one of {_some(SUFFIXES)}")
    if is_torchscript(path):
        raise UserError(
            f"{path} is a TorchScript program, as OpenAI's CLIP files are, and only data is read: "
            "take the weights of timm or open_clip instead"
        )
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            # Namespaces are plain containers that many training programs save beside the model.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors, and only data is read: save its state dict as "
            ".safetensors"
        ) from error
    except (SafetensorError, *DAMAGE) as error:
        raise UserError(
            f"cannot read the weight file {path}: copy it again ({one_line(error)})"
        ) from error
    return strip_prefix(unnest(content))


def is_torchscript(path: Path) -> bool:
    """Whether a file is a compiled model rather than its weights."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def unnest(content: Any) -> dict[str, Tensor]:
    """The named tensors of a checkpoint, from below the ``NESTING_KEYS``; else an empty dict."""
    while isinstance(content, Mapping):
        inner = [content[k] for k in NESTING_KEYS if isinstance(content.get(k), Mapping)]
        if not inner:
            return {k: v for k, v in content.items() if isinstance(v, Tensor)}
        content = inner[0]
    return {}


def strip_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of ``state`` that holds a ViT, without the prefix of its keys."""
    anchor = "patch_embed.proj.weight"
    prefixes = [key.removesuffix(anchor) for key in state if key.endswith(anchor)]
    prefix = min(prefixes, key=len, default="")
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def read_npz(path: Path, encoder: nn.Module) -> dict[str, Tensor]:
    """The tensors of one of Google's ``.npz`` files under timm's names."""
    if not isinstance(encoder, vision_transformer.VisionTransformer):
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
    options: dict[str, Any] = {"antialias": False}
    filter_function = eva.checkpoint_filter_fn
    if isinstance(encoder, vision_transformer.VisionTransformer):
        filter_function = vision_transformer.checkpoint_filter_fn
        options["adapt_layer_scale"] = True  # DeiT-3's gamma_1
    try:
        state = filter_function(state, encoder, **options)
    except DAMAGE as error:
        raise UserError(f"{path} does not fit the encoder: {one_line(error)}") from error
    # The final norm stands before or behind the pooling, depending on the model's pooling.
    wanted = encoder.state_dict()
    for mine, theirs in (("norm", "fc_norm"), ("fc_norm", "norm")):
        for kind in ("weight", "bias"):
            key, other = f"{mine}.{kind}", f"{theirs}.{kind}"
            if key in wanted and other not in wanted and key not in state and other in state:
                state[key] = state.pop(other)
    return state


def _some(names: Any, limit: int = 3) -> str:
    names = list(names)
    more = ", ..." if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
