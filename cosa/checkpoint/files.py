"""Files of tensors and plain values: written whole or not at all, read without running code."""

from __future__ import annotations

import errno
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cosa.checkpoint import released
from cosa.core.errors import UserError, one_line
from cosa.core.files import DAMAGE, check_target, replacing
from cosa.core.tensor_files import DamagedError, check_readable, read_tensors

REMEDY = "give the best.pth or last.pth of a run folder, or a copy of the file"


def save(path: str | Path, content: dict[str, Any]) -> None:
    """Write a dictionary of tensors and plain types so that the file is whole or not there.

    Raises:
        UserError: the folder cannot be written or the disk is full; an older file stays.
    """
    with replacing_with_torch(path) as temporary:
        torch.save(content, temporary)


def save_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]
) -> None:
    """Write tensors in the format safetensors so that the file is whole or not there.

    Raises:
        UserError: see :func:`save`.
    """
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with replacing_with_torch(path) as temporary:
        rights = os.stat(temporary).st_mode & 0o777
        safetensors.torch.save_file(tensors, temporary, metadata)
        # It makes a file of its own, which some versions let nobody else read.
        os.chmod(temporary, rights)


def check_new_safetensors(path: str | Path) -> None:
    """Tell, before the work that is to fill it, that a file cannot be a new one of that format.

    Raises:
        UserError: its suffix is another one, it is there already, or it could not be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path} must end with .safetensors: name it so")
    if path.exists():
        raise UserError(f"{path} exists already: choose another name, or delete it")
    check_target(path)


def read(path: str | Path) -> dict[str, Any]:
    """Read a PyTorch file of tensors and plain types.

    Raises:
        UserError: no such file, no right to read it, damaged, or it holds objects that only code
            could restore.
    """
    content = read_tensors(path, REMEDY + _hub_hint(path), released.SAFE_TYPES)
    if type(content) is not dict:
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint of train.py")
    return content


def _hub_hint(path: str | Path) -> str:
    """How to write what looks like a model on the hub, user/name, where no such folder is."""
    user, _, name = str(path).partition("/")
    if not re.fullmatch(r"[\w-][\w.-]*", user) or not re.fullmatch(r"[\w-]+(\.\d+)*", name):
        return ""
    return "" if Path(user).exists() else f"; if a model on the hub is meant, write hf-hub:{path}"


def verify(path: str | Path) -> None:
    """Compare the content of a file of :func:`save` with its check sums: PyTorch does not.

    Raises:
        DamagedError: they differ, or it is no such file at all.
        UserError: no such file, or it must not be read.
    """
    check_readable(path, REMEDY)
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (*DAMAGE, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedError(f"{path} is damaged: {one_line(error)}") from error
    if bad:
        raise DamagedError(f"{path} is damaged: the check sum of {bad} is wrong")


def holds(path: str | Path, weights: dict[str, Any]) -> bool:
    """Whether a file has this content: ``about`` and ``assignment``, as best.pth does.

    False if it is missing or damaged.

    Raises:
        UserError: it must not be read.
    """
    if not Path(path).is_file():
        return False
    try:
        verify(path)
        content = read(path)
    except DamagedError:
        return False
    tensors, expected = content.get("assignment", {}), weights["assignment"]
    return content.get("about") == weights["about"] and tensors.keys() == expected.keys() and all(
        torch.equal(tensors[key], value) for key, value in expected.items())


@contextmanager
def replacing_with_torch(path: str | Path) -> Iterator[str]:
    """``cosa.core.files.replacing`` for writers that raise errors of their own on a full disk."""
    with replacing(path) as temporary:
        try:
            yield temporary
        except (RuntimeError, safetensors.SafetensorError) as error:
            raise OSError(errno.EIO, "not all of it could be written") from error
