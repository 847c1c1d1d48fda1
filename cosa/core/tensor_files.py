"""PyTorch's files, read as data: what comes out are tensors and plain containers, nothing else."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

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


def read_tensors(path: str | Path, safe_types: Sequence[Any] = ()) -> Any:
    """The content of a PyTorch file.

    Namespaces become dictionaries, NumPy's numbers Python's, and what a file may have hung on a
    tensor or dictionary, such as an attribute in the place of a method, is gone.

    Args:
        safe_types: beside tensors, plain values, numbers and namespaces, what it may hold.

    Raises:
        pickle.UnpicklingError: it holds objects that only code could restore.
        OSError, ValueError, ...: it cannot be read (``cosa.core.files.DAMAGE``).
    """
    open_regular(path).close()
    with torch.serialization.safe_globals([argparse.Namespace, *_NUMPY, *safe_types]):
        content = torch.load(path, map_location="cpu", weights_only=True)
    return _Plain().of(content)


class _Plain:
    """Copies the containers of a value, of bounded size and depth."""

    def __init__(self) -> None:
        self.count = 0

    def of(self, value: Any, depth: int = 0) -> Any:
        self.count += 1
        if self.count > MOST_VALUES or depth > MOST_DEPTH:
            raise ValueError(f"it holds more than {MOST_VALUES} values, more than {MOST_DEPTH} "
                             "levels, or itself")
        if isinstance(value, Tensor):
            return _tensor(value)
        if isinstance(value, argparse.Namespace):
            value = object.__getattribute__(value, "__dict__")
        # The methods of the types themselves: a file can hang others on its dictionaries.
        if isinstance(value, dict):
            return {self.of(key, depth + 1): self.of(inner, depth + 1)
                    for key, inner in dict.items(value)}
        if isinstance(value, tuple):  # torch.Size, too
            return tuple(self.of(inner, depth + 1) for inner in tuple.__iter__(value))
        if isinstance(value, list | set | frozenset):
            kind = list if isinstance(value, list) else set
            return kind(self.of(inner, depth + 1) for inner in kind.__iter__(value))
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

