"""Where and in which precision the networks run."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import nn

from cosa.core import distributed
from cosa.core.errors import UserError
from cosa.core.terminal import note
from cosa.core.threads import core_count

DEVICES = "auto, cpu, cuda, cuda:N or mps"


def choose_device(name: str, option: str = "device=") -> torch.device:
    """The device for "auto" (CUDA if there is one), "cpu", "cuda", "cuda:N" or "mps".

    An Apple GPU ("mps") is used where it is named alone: nobody has compared its results with those
    of other devices, and PyTorch had operations that were silently wrong there.

    A CUDA device that is named becomes the current one. Of several processes, each gets one of
    its own.

    Args:
        option: how the program is told its device, for advice.

    Raises:
        UserError: unknown name, or no such device on this machine.
    """
    gpu = name == "auto" or name.startswith("cuda")
    if gpu and distributed.world() > 1 and torch.cuda.is_available():
        return _own_device(name, option)
    if name == "auto":
        if not torch.cuda.is_available() and torch.backends.mps.is_available():
            note(f"computing on the CPU; {option}mps tries the Apple GPU, which nobody has "
                 "measured")
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device '{name}' is unknown: use {DEVICES}") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"device '{name}' is not supported: use {DEVICES}")
    if device.type == "mps":
        _check_apple(name, device, option)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device '{name}' is not there ({torch.cuda.device_count()} CUDA "
                        f"devices found): use {option}auto or {option}cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        # The driver counts devices also for a PyTorch that is too new for it.
        raise UserError(f"device '{name}' is there, but PyTorch {torch.__version__} cannot use it: "
                        "update the GPU's driver, install a PyTorch for an older CUDA, or use "
                        f"{option}cpu")
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # events and pinned memory are the current device's
    return device


def _check_apple(name: str, device: torch.device, option: str) -> None:
    """Raise ``UserError`` unless there is this Apple GPU, for a single process."""
    if device.index or not torch.backends.mps.is_available():
        raise UserError(f"device '{name}' is not there, or PyTorch {torch.__version__} cannot use "
                        f"it (an Apple GPU, from macOS 14 on): use {option}auto or {option}cpu")
    if distributed.world() > 1:
        raise UserError(f"device '{name}' is for a single process: start the program without "
                        f"torchrun, or use {option}cpu")


def _own_device(name: str, option: str) -> torch.device:
    """The CUDA device of this process among those of this machine."""
    number, count = distributed.local_rank(), torch.cuda.device_count()
    if name not in ("auto", "cuda"):
        raise UserError(f"device '{name}' is one for all processes, which take one each: use "
                        f"{option}auto or {option}cpu")
    if number >= count:
        raise UserError(f"this machine has {distributed.local_world()} processes but only {count} "
                        f"CUDA devices: use --nproc-per-node {count}, or {option}cpu")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


LESS_MEMORY = (
    "set train.activation_checkpointing=true, raise train.accumulate, or lower train.batch_size or "
    "augment.crop_size, or take a smaller network; if it happened in an evaluation, lower "
    "evaluate.batch_size"
)
"""The keys of the configuration that need less memory."""


def choose_autocast(
    device: torch.device, precision: str = "auto"
) -> Callable[[], AbstractContextManager]:
    """A factory of autocast contexts.

    Args:
        precision: "auto" (bf16 on CUDA devices that have it, float32 elsewhere), "bf16" (float32
            all the same on an Apple GPU that lacks it) or "fp32".
    """
    bf16 = precision == "bf16"
    if device.type == "mps":
        bf16 = bf16 and torch.backends.mps.is_macos_or_newer(14, 0)
    if precision == "auto" and device.type == "cuda":
        # Older devices only emulate it, slower than float32.
        bf16 = torch.cuda.get_device_capability(device)[0] >= 8
    if not bf16:
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)


def describe(device: torch.device, autocast: Callable[[], AbstractContextManager]) -> str:
    """Where and how networks run, such as "NVIDIA H100 80GB HBM3 in bfloat16"."""
    name = {"cpu": "the CPU", "mps": "the Apple GPU"}.get(device.type)
    name = name or torch.cuda.get_device_name(device)
    with autocast():
        lower = torch.is_autocast_enabled(device.type)
    return f"{name} in {'bfloat16' if lower else 'float32'}"


def machine(device: torch.device) -> str:
    """Processor, number of cores, GPU if it is used, and PyTorch version."""
    parts = [f"{_processor()}, {core_count()} cores"]
    if device.type == "cuda":
        parts.append(torch.cuda.get_device_name(device))
    return ", ".join([*parts, f"PyTorch {torch.__version__}"])


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextmanager
def weights_cast_once(network: nn.Module) -> Iterator[None]:
    """Let autocast cast the weights once for all passes of a network, not for each of them.

    Autocast keeps its casts of those weights alone that require a gradient, which a frozen
    network's do not, and none in inference mode. For passes under ``torch.no_grad`` within one
    autocast context; outside of autocast it does nothing.
    """
    frozen = [p for p in network.parameters() if not p.requires_grad]
    if not frozen or not torch.is_autocast_enabled(frozen[0].device.type):
        yield
        return
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def allow_tf32(allowed: bool) -> None:
    """Let float32 products on CUDA use TensorFloat-32 (10 bits of mantissa)."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def full_precision() -> Iterator[None]:
    """Matrix products and convolutions on CUDA without TensorFloat-32 or lower within the context.

    Autocast stays as it is.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    allow_tf32(False)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU's memory, or the machine's, is too small."""
    # PyTorch raises RuntimeError, whose text alone tells, for main memory (another one on
    # Windows), where a library of CUDA wants memory for itself, and on Apple's GPUs.
    told = ("DefaultCPUAllocator", "bad_alloc", "_STATUS_ALLOC_FAILED", "error: out of memory",
            "MPS backend out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in told)
    )


@contextmanager
def memory_errors_as(told: Callable[[], UserError]) -> Iterator[None]:
    """Turn "out of memory" within the context into the error that ``told`` makes, and raise it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise told() from error


def memory_errors_explained(remedy: str = LESS_MEMORY) -> AbstractContextManager[None]:
    """Turn "out of memory" within the context into one sentence.

    Args:
        remedy: what to do, for training and evaluation if it is not said.

    Raises:
        UserError: naming the remedy.
    """
    return memory_errors_as(lambda: UserError(
        f"the memory is too small, of the GPU if there is one: {remedy}"))
