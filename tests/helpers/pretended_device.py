"""Tensors "on cuda" that lie in main memory, and what each operation on them would ask of a host.

The lower half of ``pretended_cuda``, below autograd: see there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

CUDA = torch.device("cuda", 0)
META = torch.device("meta")
"""What PyTorch's C++ takes the device for."""

_ROOT = Path(__file__).resolve().parents[2]
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
# Besides the pointwise ones: operations that take a scalar tensor of the CPU, too.
_SCALARS = ("masked_fill", "masked_fill_", "fill_", *_INDEXING)
_NUMPY = "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first"


class Wait(NamedTuple):
    """The host waits for the device."""

    operation: str
    place: str
    """file:line of the program, of the tests where these called PyTorch themselves."""
    function: str
    """The function that holds this line, with its module: images.normalize."""


class Pretended:
    """What the emulation noted."""

    def __init__(self) -> None:
        self.waits: list[Wait] = []

    def note(self, operation: str) -> None:
        """Note a wait where the program is now."""
        frame = sys._getframe(1)
        while frame.f_back is not None and not _of_the_program(frame.f_code):
            frame = frame.f_back
        path, name = Path(frame.f_code.co_filename), frame.f_code.co_name
        where = path.relative_to(_ROOT) if path.is_relative_to(_ROOT) else path
        place = f"{where.as_posix()}:{frame.f_lineno}"
        self.waits.append(Wait(operation, place, f"{path.stem}.{name}"))


class OnCuda(torch.Tensor):
    """A tensor that says it is on CUDA; ``inner`` holds its values on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    noted = Pretended()  # that of the context manager in force

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnCuda:
        sparse = inner.layout != torch.strided  # has no strides
        like = torch.empty(inner.shape, device=META) if sparse else inner
        shell = torch.empty_strided(
            inner.shape, like.stride(), dtype=inner.dtype, device=META
        )
        tensor = torch.Tensor._make_subclass(
            cls, shell, dispatch_device=False, device_for_backend_keys=CUDA
        )
        tensor.inner = inner
        return tensor

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)
    data = property(lambda self: self.detach())

    def get_device(self) -> int:
        return 0

    def __repr__(self, **options: Any) -> str:
        return f"OnCuda({self.inner})"

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.inner.__reduce_ex__(protocol)

    def numpy(self, **options: Any) -> np.ndarray:
        raise TypeError(_NUMPY)

    def __array__(self, *arguments: Any, **options: Any) -> np.ndarray:
        raise TypeError(_NUMPY)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _of_the_program(code: CodeType) -> bool:
    """Of a function, that is; comprehensions have code of their own in some versions of Python."""
    path, others = code.co_filename, ("site-packages", "/pretended_")
    own = path.startswith(f"{_ROOT}/") and not any(part in path for part in others)
    return own and code.co_name not in ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>")


def _bare(value: Any) -> Any:
    return value.inner if isinstance(value, OnCuda) else value


def pinned(tensor: torch.Tensor) -> bool:
    """Whether a tensor on the CPU would be page-locked."""
    return getattr(tensor, "pinned", False)


def _run(func: Any, args: tuple, kwargs: dict) -> Any:
    """One operation of PyTorch on the CPU, by the rules of CUDA."""
    name = func._schema.name.split("::")[1]
    tensors = list(_tensors((*args, *kwargs.values())))
    on = [x for x in tensors if isinstance(x, OnCuda)]
    device = kwargs.get("device")
    to_cuda = bool(on) if device is None else torch.device(device).type in ("cuda", "meta")
    if not (on or to_cuda):
        return func(*args, **kwargs)
    if name in ("_to_copy", "copy_"):
        _note_copy(func, name, args, kwargs, to_cuda)
    else:
        _check(func, name, args, tensors)
        _note_waits(func, name, args, kwargs)
    if kwargs.get("generator") is not None:
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    result = func(*tree_map(_bare, args), **tree_map(_bare, kwargs))
    return tree_map(lambda x: _dressed(x, args, on, to_cuda), result)


def _tensors(values: list | tuple) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _dressed(value: Any, args: tuple, on: list[OnCuda], to_cuda: bool) -> Any:
    """A result as the program sees it; what an operation wrote into is that very tensor."""
    if not isinstance(value, torch.Tensor):
        return value
    for tensor in on:
        if tensor.inner is value:
            if tensor.shape != value.shape:
                raise NotImplementedError("a change of shape in place")
            return tensor
    known = any(value is x for x in args)
    return OnCuda(value) if to_cuda and not known else value


def _check(func: Any, name: str, args: tuple, tensors: list[torch.Tensor]) -> None:
    """Raise where tensors of both devices meet that must not."""
    off = [x for x in tensors if not isinstance(x, OnCuda)]
    if not off or len(off) == len(tensors):
        return
    if name in _INDEXING and isinstance(args[0], OnCuda):
        off = [x for x in off if not any(x is index for index in args[1])]
    scalars = torch.Tag.pointwise in func.tags or name in _SCALARS
    first_on_cuda = not name.endswith("_") or isinstance(args[0], OnCuda)
    if not (scalars and first_on_cuda and all(x.dim() == 0 for x in off)):
        raise RuntimeError("Expected all tensors to be on the same device, but found at least "
                           f"two devices, cuda:0 and cpu! ({func})")


def _note_waits(func: Any, name: str, args: tuple, kwargs: dict) -> None:
    if name in _INDEXING:
        indices = [x for x in args[1] if x is not None]
        if any(not isinstance(x, OnCuda) for x in indices):
            OnCuda.noted.note("index from the CPU")
        if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
            OnCuda.noted.note("index by a mask")
    elif {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(func.tags):
        if name != "repeat_interleave" or kwargs.get("output_size") is None:
            OnCuda.noted.note({"_local_scalar_dense": "item"}.get(name, name.strip("_")))


def _note_copy(func: Any, name: str, args: tuple, kwargs: dict, to_cuda: bool) -> None:
    if name == "_to_copy":
        target, source = None, args[0]
    else:
        (target, source), to_cuda = args[:2], isinstance(args[0], OnCuda)
    if isinstance(source, OnCuda) == to_cuda:
        return
    host = source if to_cuda else target
    free = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
    if not free:
        OnCuda.noted.note("copy to CUDA" if to_cuda else "copy to the CPU")
    elif host is not None and not pinned(host):
        OnCuda.noted.note("copy of memory that is not pinned")


class Operations(TorchDispatchMode):
    """Sends every operation, those without a tensor as well, by way of the rules of CUDA."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})
