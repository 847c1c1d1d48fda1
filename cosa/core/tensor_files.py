"""PyTorch's files, read as data: what comes out are tensors and plain containers, nothing else."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from cosa.core.errors import UserError, one_line
from cosa.core.files import DAMAGE
from cosa.core.foreign import open_regular

MOST_VALUES = 200_000
"""In a file, those that are there several times counted each time; a checkpoint has thousands."""

MOST_DEPTH = 30
"""Containers within one another."""

_PLAIN = (str, bytes, bool, int, float, complex, type(None), torch.dtype, torch.device,
          pathlib.PurePosixPath, pathlib.PureWindowsPath)

_NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


class _NumberType:
    """Stands for ``numpy.dtype``, of which it knows the name of a kind of number, and its order."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name, self.order = name, "="

    def __setstate__(self, state: Sequence[Any]) -> None:
        self.order = state[1]


def _number(kind: _NumberType, content: bytes) -> bool | int | float:
    """Stands for the function that makes NumPy's scalars: one of Python's numbers."""
    if kind.name not in _NUMBERS or kind.order not in ("=", "<", ">", "|"):
        raise ValueError("it holds a value of NumPy that is no number")
    (value,) = np.frombuffer(content, kind.order + kind.name)
    return value.item()


_NUMPY = [(_NumberType, "numpy.dtype"), (_number, "numpy.core.multiarray.scalar"),
          (_number, "numpy._core.multiarray.scalar")]
"""The names in a file of a score such as ``numpy.float64(0.5)``, from NumPy 1 and 2."""


class DamagedError(UserError):
    """A file that exists, and whose content is not what a program wrote there."""


def read_tensors(path: str | Path, remedy: str, safe_types: Sequence[Any] = ()) -> Any:
    """The content of a PyTorch file.

    Namespaces become dictionaries, NumPy's numbers Python's, and what a file may have hung on a
    tensor or dictionary, such as an attribute in the place of a method, is gone.

    Args:
        remedy: which file to give instead, for errors.
        safe_types: beside tensors, plain values, numbers and namespaces, what it may hold.

    Raises:
        UserError: no such file, no right to read it, damaged (``DamagedError``), or it holds
            objects that only code could restore.
    """
    check_readable(path, remedy)
    try:
        with torch.serialization.safe_globals([argparse.Namespace, *_NUMPY, *safe_types]):
            content = torch.load(path, map_location="cpu", weights_only=True)
        return _plain(content, count())
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise (UserError if named else DamagedError)(
            f"{path} holds more than tensors and plain values"
            f"{f' ({named[1]})' if named else ', or is no PyTorch file'}: it is refused, since "
            f"loading it could run code; {remedy}"
        ) from error
    except DAMAGE as error:
        raise _unreadable(path, error, remedy) from error


def read_safetensors(path: str | Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        UserError: see :func:`read_tensors`.
    """
    check_readable(path, remedy)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except (*DAMAGE, safetensors.SafetensorError) as error:
        raise _unreadable(path, error, remedy) from error


def _unreadable(path: str | Path, error: Exception, remedy: str) -> UserError:
    # Whatever memory is short of is not the file's fault.
    kind = UserError if "allocate memory" in str(error) else DamagedError
    # Of those, the message is a key or place that nobody knows.
    reason = "" if isinstance(error, LookupError) else f" ({one_line(error)})"
    return kind(f"{path} cannot be read, it may be damaged or of another kind{reason}: {remedy}")


def check_readable(path: str | Path, remedy: str) -> None:
    """Say why a file cannot be opened at all: the libraries' readers say it each in its own way.

    Raises:
        UserError: it is not there, or must not be read; ``DamagedError``: it is none, or empty.
    """
    try:
        with open_regular(path) as file:
            if not file.read(1):
                raise DamagedError(f"{path} is empty: {remedy}")
    except OSError as error:
        absent = isinstance(error, FileNotFoundError | PermissionError)
        kind = UserError if absent else DamagedError
        raise kind(f"{path} cannot be read ({error.strerror}): {remedy}") from error


def _plain(value: Any, counted: Iterator[int], depth: int = 0) -> Any:
    """A copy of the containers of a value, of bounded size and depth."""
    if next(counted) >= MOST_VALUES or depth > MOST_DEPTH:
        raise ValueError(f"it holds more than {MOST_VALUES} values, more than {MOST_DEPTH} levels, "
                         "or itself")
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, argparse.Namespace):
        value = object.__getattribute__(value, "__dict__")
    # The methods of the types themselves: a file can hang others on its dictionaries.
    if isinstance(value, dict):
        return {_plain(key, counted, depth + 1): _plain(inner, counted, depth + 1)
                for key, inner in dict.items(value)}
    for kind in (tuple, list, set, frozenset):  # of torch.Size, too
        if isinstance(value, kind):
            return kind(_plain(inner, counted, depth + 1) for inner in kind.__iter__(value))
    if isinstance(value, _PLAIN):
        return value
    raise ValueError(f"it holds a {type(value).__name__}")


def _tensor(value: Tensor) -> Tensor:
    if type(value) not in (Tensor, torch.nn.Parameter) or value.is_quantized or (
        value.layout is not torch.strided or value.device.type != "cpu"
    ):
        raise ValueError(f"it holds a tensor of another kind than numbers in memory, a "
                         f"{type(value).__name__}")
    return Tensor.detach(value)

