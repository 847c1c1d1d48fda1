"""A CUDA device made of main memory: does a program keep CUDA's rules? No GPU is needed.

A tensor "on cuda" is one on the CPU behind a subclass that says ``cuda:0``. While
:func:`pretended_cuda` is active, each operation runs on the CPU, and

* raises where a tensor on the CPU meets one on CUDA, as it does on a GPU;
* is noted where the host would wait for the device: reading a value, a shape that depends on
  values, a copy that blocks, an event or a stream;
* has, under ``torch.autocast("cuda")``, the dtype that PyTorch's table for CUDA gives it.

So it shows the device, the dtype and the waits of the program's own operations. It does not show
CUDA's kernels: their results, speed, memory and limits, or what PyTorch does in C++ for CUDA alone.
Streams run in order, the random numbers are the CPU's, ``inference_mode`` is ``no_grad``, and
autocast acts on what Python calls. Recomputation of checkpointed activations, compilation and
processes (workers of a loader, too) are not covered.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from tests.helpers.pretended_device import META, OnCuda, Operations, Pretended, pinned

# The table of autocast, by the names that Python calls.
_LOWER = set(
    "linear matmul __matmul__ __rmatmul__ mm mv bmm addmm addmv addr addbmm baddbmm einsum prelu "
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d chain_matmul "
    "multi_dot scaled_dot_product_attention".split()
)
_FLOAT32 = set(
    "acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow __pow__ "
    "__rpow__ softplus layer_norm group_norm norm normalize vector_norm matrix_norm "
    "cosine_similarity cross_entropy nll_loss kl_div l1_loss smooth_l1_loss huber_loss mse_loss "
    "binary_cross_entropy_with_logits soft_margin_loss dist pdist cdist renorm logsumexp prod "
    "softmax log_softmax cumprod cumsum sum interpolate".split()
)


class _Calls(TorchFunctionMode):
    """Translates devices, and does what PyTorch's C++ would do for CUDA without asking."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", ""), dict(kwargs or {})
        if func is torch.device:
            return func(*args, **kwargs)
        if func is torch.Tensor.backward:
            kwargs["grad_tensors"] = kwargs.pop("gradient", None)
            with self:
                return torch.autograd.backward(*args, **kwargs)
        if name == "is_pinned":
            return pinned(args[0])
        args = tuple(map(_translated, args))
        kwargs = {key: _translated(value) for key, value in kwargs.items()}
        if name == "pin_memory" and isinstance(args[0], OnCuda):
            raise RuntimeError("cannot pin 'torch.cuda.FloatTensor': only CPU tensors can be")
        if name == "pin_memory" or kwargs.pop("pin_memory", False):
            result = args[0].clone() if name == "pin_memory" else func(*args, **kwargs)
            result.pinned = True
            return result
        if name in ("tensor", "as_tensor", "new_tensor"):
            return _from_values(func, name, args, kwargs)
        if name == "tolist" and isinstance(args[0], OnCuda):
            return args[0].to("cpu").tolist()
        if name in ("cuda", "cpu"):
            return args[0].to(META if name == "cuda" else "cpu", *args[1:], **kwargs)
        if name in ("__getitem__", "__setitem__") and isinstance(args[0], OnCuda):
            return _at_index(func, args)
        args, kwargs = _autocast(name, args, kwargs)
        return func(*args, **kwargs)


def _translated(value: Any) -> Any:
    kind = OnCuda.where.type
    there = isinstance(value, torch.device) and value.type == kind
    return META if there or (isinstance(value, str) and value.split(":")[0] == kind) else value


def _from_values(func: Any, name: str, args: tuple, kwargs: dict) -> torch.Tensor:
    """A tensor of numbers: made on the CPU, then copied."""
    device = kwargs.pop("device", None)
    if name == "new_tensor":
        kwargs.setdefault("dtype", args[0].dtype)
        device = args[0].device if device is None else device
        func, args = torch.tensor, args[1:]
    grad = kwargs.pop("requires_grad", False)
    tensor = func(*args, **kwargs)
    tensor = tensor if device is None else tensor.to(_translated(device))
    return tensor.requires_grad_() if grad else tensor


def _at_index(func: Any, args: tuple) -> Any:
    tensor, index, *value = args
    mask = isinstance(index, torch.Tensor) and index.dtype == torch.bool
    if mask and value and isinstance(value[0], int | float):  # needs no wait
        wide = index.reshape(index.shape + (1,) * (tensor.dim() - index.dim()))
        return tensor.masked_fill_(wide, value[0])
    parts = index if isinstance(index, tuple) else (index,)
    parts = tuple(
        torch.tensor(part, dtype=None if len(part) else torch.int64)
        if isinstance(part, list | range | np.ndarray) else part for part in parts
    )
    return func(tensor, parts, *value)


_precision = threading.local()


def _autocast(name: str, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    dtype = getattr(_precision, "dtype", None)
    if dtype is None or name not in _LOWER | _FLOAT32:
        return args, kwargs
    if name == "interpolate" and kwargs.get("mode", (*args, "", "", "")[3]) == "area":
        return args, kwargs  # is a pooling
    target = dtype if name in _LOWER else torch.float32
    floats = (torch.float32, torch.bfloat16, torch.float16)
    return tree_map(
        lambda x: x.to(target) if isinstance(x, OnCuda) and x.dtype in floats else x,
        (args, kwargs),
    )


class _Autocast(contextlib.ContextDecorator):
    def __init__(self, device_type: str, dtype=torch.float16, enabled=True) -> None:
        self.dtype = dtype if enabled else None

    def __enter__(self) -> None:
        self.before, _precision.dtype = getattr(_precision, "dtype", None), self.dtype

    def __exit__(self, *error: Any) -> None:
        _precision.dtype = self.before


# The context manager


class _Waiting:
    """A stream or an event; all that was given to the device is done at once."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.time = 0.0

    def synchronize(self) -> None:
        OnCuda.noted.note("synchronize")

    def record(self, stream: Any = None) -> None:
        self.time = time.perf_counter()

    def elapsed_time(self, later: _Waiting) -> float:
        return 1000 * (later.time - self.time)

    def is_capturing(self) -> bool:
        return False


class _NoGrad:
    """What ``torch.inference_mode`` does here, also where it decorates a function already."""

    def __enter__(self: torch.inference_mode) -> None:
        self.before = torch.is_grad_enabled()
        torch.set_grad_enabled(self.before and not self.mode)

    def __exit__(self: torch.inference_mode, *error: Any) -> None:
        torch.set_grad_enabled(self.before)


def _nothing(*arguments: Any, **options: Any) -> None:
    return None


def _constantly(value: Any) -> Any:
    return lambda *arguments, **options: value


_CUDA = {
    "is_available": _constantly(True), "is_initialized": _constantly(True),
    "is_bf16_supported": _constantly(True), "is_current_stream_capturing": _constantly(False),
    "device_count": _constantly(1), "current_device": _constantly(0),
    "get_device_name": _constantly("pretended"), "get_device_capability": _constantly((9, 0)),
    "memory_allocated": _constantly(0), "max_memory_allocated": _constantly(0),
    "mem_get_info": _constantly((2**34, 2**34)),
    "get_device_properties": _constantly(SimpleNamespace(total_memory=2**34)),
    "current_stream": _Waiting, "Stream": _Waiting, "Event": _Waiting,
    "synchronize": lambda device=None: OnCuda.noted.note("synchronize"),
    "get_rng_state": lambda device=None: torch.get_rng_state(),
    "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
    **dict.fromkeys(
        ("init", "_lazy_init", "set_device", "manual_seed", "manual_seed_all", "empty_cache",
         "reset_peak_memory_stats", "set_sync_debug_mode"), _nothing,
    ),
}
_ACCELERATOR = {"is_available": _constantly(True), "device_count": _constantly(1),
                "current_stream": _Waiting}


def _run_thread(original: Any) -> Any:
    """Modes are of one thread each, and those that the program starts are to have them, too."""

    def run(thread: threading.Thread) -> None:
        with _Calls(), Operations():
            original(thread)

    return run


def _autocast_of(original: Any) -> Any:
    def autocast(device_type: str, *arguments: Any, **options: Any) -> Any:
        kind = _Autocast if device_type == "cuda" else original
        return kind(device_type, *arguments, **options)

    return autocast


def patched(module: Any, names: dict[str, Any]) -> Iterator[Any]:
    """Patches of those of the names that this version of PyTorch has."""
    for name, value in names.items():
        if hasattr(module, name):
            yield mock.patch.object(module, name, value)


def patches() -> Iterator[Any]:
    """What makes the device of ``OnCuda.where``, whichever that is."""
    for name in ("__enter__", "__exit__"):
        yield mock.patch.object(torch.inference_mode, name, getattr(_NoGrad, name))
    yield mock.patch.object(torch, "autocast", _autocast_of(torch.autocast))
    yield mock.patch.object(threading.Thread, "run", _run_thread(threading.Thread.run))
    yield mock.patch.object(OnCuda, "noted", Pretended())
    # Parameters become others as they move: the old ones are no tensors of this class.
    future = "torch.__future__.get_overwrite_module_params_on_conversion"
    yield mock.patch(future, _constantly(True))
    yield _Calls()
    yield Operations()


@contextlib.contextmanager
def pretended_cuda() -> Iterator[Pretended]:
    """Let PyTorch find a CUDA device, here and in threads started meanwhile.

    Gives what notes the waits. Not to be nested. What is left on the device, in caches of the
    program for instance, is of no use afterwards.
    """
    with contextlib.ExitStack() as stack:
        for patch in (*patched(torch.cuda, _CUDA), *patched(torch.accelerator, _ACCELERATOR),
                      *patches()):
            stack.enter_context(patch)
        yield OnCuda.noted
