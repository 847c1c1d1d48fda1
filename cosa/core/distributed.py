"""Several processes that work as one, as torchrun starts them; in a single one nothing happens.

In a training each process has its share of every batch and the same weights. Each sum of the loss
is divided by :func:`all_mean` of what it counts (``cosa.losses.divide``): the mean of the losses
over the processes is that of the whole batch. The gradients, which DistributedDataParallel
averages, are those of the whole batch then.

Functions that exchange something must be called by all processes, in the same order.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from datetime import timedelta
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cosa.core.errors import UserError, one_line

Result = TypeVar("Result")

TIMEOUT = timedelta(minutes=30)
"""How long processes that train wait for one another."""

NO_TIMEOUT = timedelta(days=30)
"""For processes that meet at the end of their work only."""

# What an exchange says once another process is gone, with gloo or NCCL.
_LOST = re.compile(
    r"connection (closed|reset|refused|was)|broken pipe|gloo|nccl|socket|remote process|peer", re.I
)

_LETTING_GO = 0.1
"""Seconds before the end, in which PyTorch's threads let go of what was exchanged last. They need
the interpreter for that, which PyTorch 2.6 keeps while it waits for them to end: for ever."""

_store: dist.Store | None = None


def world() -> int:
    """The number of processes."""
    return dist.get_world_size() if _started() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _started() else 0


def is_main() -> bool:
    """Whether this process is the one that writes and talks."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process among those of this machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0)) if world() > 1 else 0


def local_world() -> int:
    """The number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if world() > 1 else 1


@contextmanager
def processes(timeout: timedelta = TIMEOUT) -> Iterator[None]:
    """Join the processes of torchrun, and leave them at the end; without torchrun, do nothing.

    CUDA tensors are exchanged by NCCL, all else by gloo. Standard output is that of the first
    process. An error that several of them meet is told once: the others leave with exit code 2.

    Args:
        timeout: how long to wait for a process that is alive but does not answer.

    Raises:
        UserError: another process ended, so this one cannot go on.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or "RANK" not in os.environ:
        yield
        return
    _start(timeout)
    with ExitStack() as stack:
        if not is_main():
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        try:
            yield
        except (UserError, OSError) as error:
            _leave_telling_to_another(str(error))
            raise
        except RuntimeError as error:
            if not _LOST.search(str(error)) or isinstance(error, torch.OutOfMemoryError):
                raise
            _leave_telling_to_another("a process is gone")
            raise UserError(
                "one of the processes ended or cannot be reached, and the others cannot go on "
                "without it: see what it said above, and start again, a training with --resume "
                f"({one_line(error)})"
            ) from error
    barrier()  # where one leaves with an exit code other than 0, torchrun ends the others
    time.sleep(_LETTING_GO)
    dist.destroy_process_group()


def _start(timeout: timedelta) -> None:
    global _store
    if not dist.is_available():
        raise UserError("this PyTorch cannot train in several processes: start without torchrun")
    nccl = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        _store, number, count = next(dist.rendezvous("env://", timeout=timeout))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if nccl else "gloo",
            store=dist.PrefixStore("cosa", _store), rank=number, world_size=count, timeout=timeout,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the processes do not find each other ({one_line(error)}): start them "
                        "with torchrun, and check MASTER_ADDR and MASTER_PORT") from error


def _leave_telling_to_another(message: str) -> None:
    """End this process quietly if another one has this very message already."""
    try:
        told = _store.add(f"told: {message}", 1) > 1
    except RuntimeError:  # the process that held the store is gone
        told = False
    if told:
        raise SystemExit(2)


def all_sum(tensor: Tensor) -> Tensor:
    """The sum over the processes, without gradient; in a single one the tensor itself."""
    if world() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def all_mean(tensor: Tensor) -> Tensor:
    """The mean over the processes, floating point, without gradient; alone the tensor itself."""
    return tensor if world() == 1 else all_sum(tensor) / world()


def highest(number: int) -> int:
    """The highest of the processes' numbers: one of them asks, and all know."""
    return highest_each(number)[0]


def highest_each(*numbers: int) -> tuple[int, ...]:
    """:func:`highest` of several numbers, each by itself, in one exchange."""
    if world() == 1:
        return numbers
    shared = torch.tensor([int(number) for number in numbers])
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return tuple(shared.tolist())


def barrier() -> None:
    """Wait until all processes are here."""
    highest(0)


def add_up(*arrays: np.ndarray) -> None:
    """Replace each array by its sum over the processes."""
    if world() > 1:
        for array in arrays:
            array[...] = all_sum(torch.from_numpy(array)).numpy()


def gather(item: Any) -> list[Any]:
    """The objects of all processes, by their number; they are pickled."""
    items = [item] * world()
    if world() > 1:
        dist.all_gather_object(items, item)
    return items


def from_main(function: Callable[[], Result]) -> Result:
    """What the function returns in the first process, which alone calls it, once all are here.

    Raises:
        UserError: the function did; all processes raise it.
    """
    if world() == 1:
        return function()
    barrier()
    told: list[Any] = [None, None]
    if is_main():
        try:
            told[0] = function()
        except UserError as error:
            told[1] = str(error)
    dist.broadcast_object_list(told)
    if told[1] is not None:
        raise UserError(told[1])
    return told[0]


def main_only(function: Callable[..., None]) -> Callable[..., None]:
    """Decorator: in processes other than the first the function does nothing."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> None:
        if is_main():
            function(*args, **kwargs)

    return call


def share_of_batch(batch_size: int) -> slice:
    """This process's part of a batch.

    Raises:
        UserError: the processes cannot have equal parts.
    """
    size, rest = divmod(batch_size, world())
    if rest or not size:
        near = " or ".join(str(k * world()) for k in (size, size + 1) if k)
        raise UserError(f"train.batch_size={batch_size} is the whole batch and cannot be split "
                        f"evenly over {world()} processes: use {near}")
    return slice(rank() * size, (rank() + 1) * size)


def reseed(seed: int, iteration: int) -> None:
    """Give each of several processes random numbers of its own, the same whenever it resumes."""
    if world() > 1:
        key = np.random.SeedSequence((seed, iteration, rank())).generate_state(1, np.uint64)
        torch.manual_seed(int(key[0]))


def _started() -> bool:
    return dist.is_available() and dist.is_initialized()
