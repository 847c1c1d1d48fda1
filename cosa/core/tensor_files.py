"""PyTorch's files, read as data: what comes out are tensors and plain containers, nothing else."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosa.core.foreign import open_regular

MOST_VALUES = 200_000
"""In a file, those that are there several times counted each time; a checkpoint has thousands."""

MOST_DEPTH = 30
"""Containers within one another."""

_PLAIN = (str, bytes, bool, int, float, complex, type(None), torch.dtype, torch.device,
          pathlib.PurePosixPath, pathlib.PureWindowsPath)


def read_tensors(path: str | Path, safe_types: Sequence[Any] = ()) -> Any:
    """The content of a PyTorch file.

    Namespaces become dictionaries, and what a file may have hung on a tensor or dictionary, such
    as an attribute in the place of a method, is gone.

    Args:
        safe_types: beside tensors, plain values and namespaces, what it may hold.

    Raises:
        pickle.UnpicklingError: it holds objects that only code could restore.
        OSError, ValueError, ...: it cannot be read (``cosa.core.files.DAMAGE``).
    """
    open_regular(path).close()
    with torch.serialization.safe_globals([argparse.Namespace, *safe_types]):
        content = torch.load(path, map_location="cpu", weights_only=True)
    return _plain(content, count())


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

