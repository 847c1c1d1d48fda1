"""An endless, exactly resumable stream of training batches.

Every sample is a pure function of (seed, position in the stream). The number of workers, the
batch boundaries and an interruption in between leave the stream as it is.

Batches travel as 8-bit pixels, a quarter of what the networks read; ``to_device`` makes float
planes of them where they are used.
"""

from __future__ import annotations

import atexit
import multiprocessing
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from cosa.core import distributed
from cosa.core.descriptors import FEWEST, allowed_files
from cosa.core.errors import UserError
from cosa.core.memory import in_mebibytes, shared_memory
from cosa.core.terminal import note
from cosa.core.threads import core_count
from cosa.data.base import SegmentationDataset
from cosa.data.batches import collate
from cosa.data.kept import KeptImages
from cosa.data.order import Order
from cosa.data.transforms import training_views

MAX_WORKERS = 8
# Keeps the draws that make a sample apart from those that order a pass.
_SAMPLE = 1
# Of a worker that the system killed, or that finds no room for its batch.
_DEAD_WORKER = re.compile(r"DataLoader worker \(pid.*|.*(shared memory|shm|too many open files).*",
                          re.IGNORECASE)
_READY = 2
"""Batches that each worker keeps ready: PyTorch's default."""
_FILES_OF_BATCH = 8
"""Descriptors of a batch on its way, one for each tensor in it, at least so many."""


class TrainingViews(Dataset):
    """The endless stream: position -> weak and strong view of one image.

    Masks are never read.

    Args:
        dataset: where images and labels come from.
        seed: non-negative integer.
        negatives, balance: which images, and how often: see ``cosa.data.order.Order``.
        augment: keyword arguments of ``cosa.data.transforms.training_views``.

    Raises ``UserError`` if no image has a label.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        seed: int,
        negatives: bool = False,
        balance: float = 0.0,
        **augment,
    ) -> None:
        self.dataset = dataset
        self.seed = seed
        self.augment = augment
        self.order = Order(dataset.labels, seed, negatives, balance)

    @property
    def bytes(self) -> int:
        """Of a sample, without the few of its labels: both views and what is padding."""
        return 7 * self.augment["crop_size"] ** 2

    def sample_index(self, position: int) -> int:
        """Index in the data set of the image at a stream ``position``."""
        return self.order[position]

    def __getitem__(self, position: int) -> dict:
        """The sample at ``position``.

        Returns weak, strong (S, S, 3) uint8; image_labels (C,) float32 of 0 and 1;
        valid (S, S) bool; index, the image's index in the data set.
        """
        index = self.sample_index(position)
        rng = np.random.default_rng((self.seed, _SAMPLE, position))
        labels = torch.from_numpy(self.dataset.labels[index]).float()
        return {**self.views(index, rng), "image_labels": labels, "index": index}

    def views(self, index: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """What ``training_views`` makes of image ``index``."""
        return training_views(self.dataset.open_image(index), rng, **self.augment)

    def __getitems__(self, positions: list[int]) -> list[dict] | UserError:
        """A whole batch; a user's mistake is returned, for ``TrainingLoader`` to raise.

        Raised in a worker process it would arrive as a traceback instead of one sentence.
        """
        try:
            return [self[position] for position in positions]
        except UserError as error:
            return error


class Positions(Sampler[int]):
    """This process's positions in the stream, batch by batch; none is kept in memory.

    Args:
        batches: the numbers of the batches.
        batch_size: of the whole batch.
        share: this process's part of each.
    """

    def __init__(self, batches: range, batch_size: int, share: slice) -> None:
        self.batches, self.batch_size = batches, batch_size
        self.share = range(batch_size)[share]

    def __len__(self) -> int:
        return len(self.batches) * len(self.share)

    def __iter__(self) -> Iterator[int]:
        for batch in self.batches:
            for place in self.share:
                yield batch * self.batch_size + place


class TrainingLoader:
    """Iterates over the batches ``start_iteration``, ..., ``iterations`` - 1 of a stream."""

    def __init__(self, loader: DataLoader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        with _children_die_silently():
            batches = iter(self._loader)
        # Again, that it comes before what PyTorch has just registered: last in, first out.
        atexit.unregister(_kill_workers)
        atexit.register(_kill_workers)
        while (batch := _next(batches)) is not None:
            if isinstance(batch, UserError):
                raise batch
            yield batch


def training_loader(
    dataset: SegmentationDataset,
    *,
    batch_size: int,
    seed: int,
    iterations: int,
    start_iteration: int = 0,
    workers: int = -1,
    pin_memory: bool = False,
    stream: type[TrainingViews] = TrainingViews,
    keep_decoded: bool = False,
    negatives: bool = False,
    balance: float = 0.0,
    **augment,
) -> TrainingLoader:
    """Batches ``start_iteration`` to ``iterations`` - 1 of a training run.

    Args:
        dataset: where images and labels come from.
        batch_size: B of the whole batch, of which each process loads its share; every batch is
            full, the stream runs on across epochs.
        seed: non-negative integer that fixes the whole stream.
        iterations: of the whole run, those before ``start_iteration`` included.
        start_iteration: first batch; it equals the one that a run from 0 would see there.
        workers: worker processes; 0 loads in this process, -1 picks a number.
        pin_memory: page-locked batches, for fast copies to a CUDA device.
        stream: what makes the samples; a subclass may add to them.
        keep_decoded: each process that loads keeps the images that it decodes, see
            ``cosa.data.kept``; samples are the same.
        negatives, balance: which images, and how often: see ``cosa.data.order.Order``.
        augment: keyword arguments of ``cosa.data.transforms.training_views``.

    Batches are dicts of weak, strong (B, S, S, 3) uint8, image_labels (B, C) float32,
    valid (B, S, S) bool, index (B,) int64 and present, see ``cosa.core.tensors.present_index``;
    ``to_device`` makes of them what the networks read. Iterating raises ``UserError`` naming the
    file if an image cannot be read, and one naming the remedy if the system kills a worker.

    Raises:
        UserError: no image has a label, or the batch cannot be split evenly over the processes.
    """
    share = distributed.share_of_batch(batch_size)
    positions = Positions(range(start_iteration, iterations), batch_size, share)
    images = KeptImages(dataset) if keep_decoded else dataset
    views = stream(images, seed, negatives=negatives, balance=balance, **augment)
    count = len(positions.share)
    loader = DataLoader(
        views,
        batch_size=count,
        sampler=positions,
        num_workers=fitting_workers(worker_count(workers), views.bytes * count),
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_parent,
        # Workers start once, as the stream has no end, and keep PyTorch's two batches each ready,
        # in shared memory.
        # Its own generator: the loader must not advance the global one, or resuming would.
        generator=torch.Generator().manual_seed(seed),
    )
    return TrainingLoader(loader)


def worker_count(requested: int) -> int:
    """Worker processes for ``requested``; -1 means one per usable core but one, 8 at most.

    The cores are shared by the training processes of the machine.
    """
    if requested >= 0:
        return requested
    return min(MAX_WORKERS, max(0, core_count() // distributed.local_world() - 1))


def fitting_workers(wanted: int, batch: int) -> int:
    """So many of the wanted workers as there is shared memory and there are descriptors for.

    Batches are the same whoever loads them; a note says so where there are fewer.

    Args:
        batch: bytes of a batch.
    """
    free, files = shared_memory(), allowed_files(FEWEST + wanted * _READY * _FILES_OF_BATCH)
    room = wanted if free is None else free // (_READY * batch)
    fitting = max(0, min(wanted, room, (files - FEWEST) // (_READY * _FILES_OF_BATCH)))
    if fitting < wanted:
        reason = f"{files} files may be open (ulimit -n)" if fitting < room else (
            f"/dev/shm has {in_mebibytes(free)} MiB free (in a container: --shm-size=8g)")
        who = f"{fitting} of {wanted} processes load" if fitting else "the training itself loads"
        note(f"{who} the images, as only {reason}")
    return fitting


def _next(batches: Iterator) -> dict[str, torch.Tensor] | UserError | None:
    """The next batch, None at the end."""
    try:
        return next(batches, None)
    except RuntimeError as error:
        dead = _DEAD_WORKER.search(str(error))
        if dead is None:
            raise
        raise UserError(
            "a process that loads images died, most often for want of (shared) memory: set "
            "data.workers=0 or fewer than now, or start the container with --shm-size=8g "
            f"({dead[0]})"
        ) from error


@contextmanager
def _children_die_silently() -> Iterator[None]:
    """Undo what PyTorch does to SIGCHLD when workers start.

    Its handler raises wherever the program happens to be, in the middle of a training step.
    Without it the loader itself finds the dead worker, within seconds.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if main and hasattr(signal, "SIGCHLD") else None
    yield
    if before is not None:
        signal.signal(signal.SIGCHLD, before)


def _kill_workers() -> None:
    """At the program's end, end the workers that an error's traceback has kept alive.

    Python would ask them to leave, which they ignore, and wait for them for ever.
    """
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _leave_signals_to_parent(worker: int) -> None:
    """Ctrl-C and SIGTERM reach the whole process group, yet are the main process's affair.

    It saves first and then stops the workers; should it die, they notice and leave.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
