"""Where and in which precision the networks run."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

from cosa import distributed
from cosa.errors import UserError

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""What Linux grants a container: microseconds of processor time, or max, and per how many."""


def core_count() -> int:
    """Cores that this process may use: those of the machine, less what it is barred from."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    if _QUOTA.is_file():
        quota, period = _QUOTA.read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    return cores


def choose_device(name: str) -> torch.device:
    """The device for "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N".

    A CUDA device that is named becomes the current one. Of several processes, each gets one of
    its own.

    Raises:
        UserError: unknown name, or no such device on this machine.
    """
    gpu = name == "auto" or name.startswith("cuda")
    if gpu and distributed.world() > 1 and torch.cuda.is_available():
        return _own_device(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device '{name}' is unknown: use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device '{name}' is not supported: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device '{name}' is not there ({torch.cuda.device_count()} CUDA "
                        "devices found): use device=auto or device=cpu")
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # events and pinned memory are the current device's
    return device


def _own_device(name: str) -> torch.device:
    """The CUDA device of this process among those of this machine."""
    number, count = distributed.local_rank(), torch.cuda.device_count()
    if name not in ("auto", "cuda"):
        raise UserError(f"device '{name}' is one for all processes, which take one each: use "
                        "device=auto or device=cpu")
    if number >= count:
        raise UserError(f"this machine has {distributed.local_world()} processes but only {count} "
                        f"CUDA devices: use --nproc-per-node {count}, or device=cpu")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def choose_autocast(
    device: torch.device, precision: str = "auto"
) -> Callable[[], AbstractContextManager]:
    """A factory of autocast contexts.

    Args:
        precision: "auto" (bf16 on CUDA devices that have it, float32 elsewhere), "bf16" or
            "fp32".
    """
    bf16 = precision == "bf16"
    if precision == "auto" and device.type == "cuda":
        # Older devices only emulate it, slower than float32.
        bf16 = torch.cuda.get_device_capability(device)[0] >= 8
    if not bf16:
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)


def allow_tf32(allowed: bool) -> None:
    """Let float32 products on CUDA use TensorFloat-32 (10 bits of mantissa)."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU's memory, or the machine's, is too small."""
    # On the CPU, PyTorch raises RuntimeError, whose text alone tells (another one on Windows).
    told = ("DefaultCPUAllocator", "bad_alloc", "_STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in told)
    )


@contextmanager
def memory_errors_explained() -> Iterator[None]:
    """Turn "out of memory" of a GPU, in training or evaluation, into one sentence.

    Raises:
        UserError: naming the keys that need less memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError("the GPU's memory is too small: set train.activation_checkpointing=true, "
                        "raise train.accumulate, or lower train.batch_size or "
                        "augment.crop_size; if it happened in an evaluation, "
                        "evaluate.batch_size") from error
