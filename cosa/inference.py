"""Folders of images to folders of masks: which files, in which order, with bounded memory."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cosa.data.images import IMAGE_SUFFIXES, network_input, read_image
from cosa.errors import UserError
from cosa.network import CoSANetwork
from cosa.palette import overlay, save_image, save_mask
from cosa.predict import multi_scale

MAX_LOGITS = 2**22
"""Upsampled logits held at once (16 MB); whole images of 30 megapixels would need gigabytes."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Size = tuple[int, int]


@dataclass(frozen=True)
class Job:
    """One image and the files that it becomes."""

    source: Path
    mask: Path
    overlay: Path | None = None

    @property
    def finished(self) -> bool:
        """Whether all its files are there."""
        return self.mask.exists() and (self.overlay is None or self.overlay.exists())


@dataclass(frozen=True)
class Plan(Sequence[Job]):
    """Jobs that are made when they are asked for: of each only the image's path is kept.

    A million files take about 100 MB, twice that for a moment while they are searched.
    """

    root: Path
    output: Path
    overlays: bool
    files: list[str]
    """Paths of the images below ``root``, sorted, in "/" notation."""

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Job:
        file = self.files[index]
        results = (self.output / name for name in self.results(file))
        return Job(self.root / file, *results)

    def results(self, file: str) -> list[str]:
        """Paths below ``output`` of what becomes of an image."""
        stem = os.path.splitext(file)[0]
        return [f"{stem}.png", f"{stem}.overlay.png"] if self.overlays else [f"{stem}.png"]

    def unfinished(self) -> Plan:
        """The part whose results are not all there."""
        kept = [file for file, job in zip(self.files, self, strict=True) if not job.finished]
        return replace(self, files=kept)


def plan(source: str, output: str | os.PathLike[str], overlays: bool = False) -> Plan:
    """Find the images of ``source`` and name their outputs.

    Masks keep the relative path and stem: ``output/a/b.png`` for ``a/b.jpg``; overlays are
    ``output/a/b.overlay.png``. In folders and globs, hidden files, files without the suffix of
    an image and everything inside ``output`` are left out; links to folders are followed.

    Args:
        source: a folder (searched with its subfolders), a file, or a glob, where ``**`` stands
            for any subfolders and relative paths start at the first part with a wildcard.
        output: folder of the outputs; it need not exist.
        overlays: whether the jobs have overlays.

    Returns:
        The jobs, sorted by path.

    Raises:
        UserError: no image there, two files would become one, or an image would be overwritten.
    """
    root, files = _find(source, Path(output))
    if not files:
        known = " ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"there is no image in {source}: none of its files ends in {known}")
    jobs = Plan(root, Path(output), overlays, files)
    written = set()
    for file in files:
        for name in jobs.results(file):
            if name in written:
                first = next(other for other in files if name in jobs.results(other))
                raise UserError(
                    f"{root / first} and {root / file} would both become {Path(output, name)}: "
                    "rename one of them"
                )
            written.add(name)
    real_root, real_output = Path(os.path.realpath(root)), Path(os.path.realpath(output))
    if real_root.is_relative_to(real_output):
        below = real_root.relative_to(real_output)
        for file in files:
            if (below / file).as_posix() in written:
                raise UserError(f"{root / file} would be overwritten: choose another --output")
    return jobs


def _find(source: str, output: Path) -> tuple[Path, list[str]]:
    """The folder that relative paths start from, and the images' relative paths, sorted."""
    path = Path(source)
    if path.is_file():
        return path.parent, [path.name]
    if path.is_dir():
        root, found = path, _walk(path)
    elif any(_is_pattern(part) for part in path.parts):
        first = next(i for i, part in enumerate(path.parts) if _is_pattern(part))
        root = Path(*path.parts[:first])
        found = (Path(match) for match in glob.iglob(source, recursive=True))
    else:
        raise UserError(f"{source} does not exist: give a folder, an image or a quoted glob")
    real_root, real_output = Path(os.path.realpath(root)), Path(os.path.realpath(output))
    if real_output == real_root:
        raise UserError(f"{output} holds the images themselves: choose another --output")
    # What an earlier run wrote, where the output folder lies among the images.
    written = real_output.relative_to(real_root) if real_root in real_output.parents else None
    files = set()
    for match in found:
        file = match.relative_to(root)
        hidden = any(part.startswith(".") for part in file.parts)
        if hidden or file.suffix.lower() not in IMAGE_SUFFIXES or written in file.parents:
            continue
        if match.is_file():
            files.add(file.as_posix())
    return root, sorted(files)


def _is_pattern(part: str) -> bool:
    return any(wildcard in part for wildcard in "*?[")


def _walk(folder: Path) -> Iterator[Path]:
    """All files below a folder; linked folders too, each once, lest a circle never ends."""
    seen = set()
    for here, subfolders, names in os.walk(folder, onerror=_cannot_search, followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(here, name) for name in names)


def _cannot_search(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be searched: {error.strerror}") from error


def segment_files(
    network: CoSANetwork,
    jobs: Iterable[Job],
    *,
    size: int,
    scales: Sequence[float],
    flip: bool,
    batch_size: int = 4,
    workers: int = 4,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> Iterator[tuple[Job, UserError | None]]:
    """Write the masks (and overlays) of image files.

    Images are squashed to a square as in the evaluation, and their logits resized back before
    the argmax. Reading and writing go on in threads. At most ``2 * workers`` whole images and
    ``2 * workers + 1`` masks are in memory, however many jobs there are.

    Args:
        network: in evaluation mode, with ``palette``; runs on the device where it is.
        jobs: may be lazy.
        size: side of the square in pixels.
        scales, flip: of ``multi_scale``.
        batch_size: images per forward pass of the network (twice as many with ``flip``).
        workers: threads that read, and as many that write.
        autocast: makes the context of the forward pass, such as bfloat16 autocast.

    Yields:
        Each job in order, with the reason if it failed.

    Raises:
        UserError: the device's memory is too small.
    """

    def load(job: Job) -> tuple[Job, UserError | tuple[Tensor, Size]]:
        try:
            image = read_image(job.source)
        except UserError as error:
            return job, error
        return job, (network_input(image, size), (image.height, image.width))

    def predict() -> Iterator[tuple[Job, UserError | np.ndarray]]:
        with closing(parallel_map(load, jobs, workers, batch_size + workers)) as loaded:
            while chunk := list(islice(loaded, batch_size)):
                good = [value for _, value in chunk if not isinstance(value, UserError)]
                masks = _predict_masks(network, good, scales, flip, autocast)
                for job, value in chunk:
                    yield job, value if isinstance(value, UserError) else next(masks)

    def write(result: tuple[Job, UserError | np.ndarray]) -> tuple[Job, UserError | None]:
        job, mask = result
        if isinstance(mask, UserError):
            return job, mask
        try:
            _write(job, mask, network.palette)
        except UserError as error:
            return job, error
        return job, None

    with closing(predict()) as masks:
        with closing(parallel_map(write, masks, workers, 2 * workers)) as results:
            yield from results


def parallel_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int
) -> Iterator[Result]:
    """Map in threads, in order, with at most ``ahead`` items begun and not yet handed out.

    ``items`` is advanced by the caller's thread. When the generator is closed, what has begun is
    finished and the rest dropped. An exception of ``function`` is raised at its item's turn.
    """
    pool = ThreadPoolExecutor(workers)
    pending = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= ahead or pending[0].done():
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _predict_masks(
    network: CoSANetwork,
    inputs: Sequence[tuple[Tensor, Size]],
    scales: Sequence[float],
    flip: bool,
    autocast: Callable[[], AbstractContextManager],
) -> Iterator[np.ndarray]:
    """Masks (H, W) uint8, one by one, of squares (3, S, S) that stand for images of (H, W)."""
    if not inputs:
        return
    device = next(network.parameters()).device
    try:
        images = torch.stack([square for square, _ in inputs]).to(device)
        with torch.inference_mode(), autocast():
            logits = multi_scale(network, images, scales, flip).seg
        for k, (_, size) in enumerate(inputs):
            yield argmax_at_size(logits[k], size).numpy()
    except torch.OutOfMemoryError as error:
        raise UserError(f"out of memory on {device}: lower --batch-size or --size") from error


@torch.inference_mode()
def argmax_at_size(logits: Tensor, size: Size) -> Tensor:
    """Argmax of logits (K, h, w), K <= 256, resized bilinearly to ``size`` (H, W).

    The same as ``F.interpolate(..., mode="bilinear")`` and argmax up to rounding, but a few rows
    at a time, so that memory does not grow with the size. Returns (H, W) uint8 on the CPU.
    """
    logits = logits.float()
    height, width = size
    source = (torch.arange(height, dtype=torch.float64) + 0.5) * logits.shape[1] / height - 0.5
    source = source.clamp(min=0)
    above = source.floor().long().clamp(max=logits.shape[1] - 1)
    below = (above + 1).clamp(max=logits.shape[1] - 1)
    weight = (source - above).float()
    above, below, weight = (values.to(logits.device) for values in (above, below, weight))
    rows_at_once = max(1, MAX_LOGITS // (logits.shape[0] * width))
    mask = torch.empty(size, dtype=torch.uint8)
    for start in range(0, height, rows_at_once):
        part = slice(start, min(start + rows_at_once, height))
        rows = torch.lerp(logits[:, above[part]], logits[:, below[part]], weight[part, None])
        wide = F.interpolate(rows[None], (rows.shape[1], width), mode="bilinear")
        # max() is several times faster than argmax() across the channels on the CPU.
        mask[part] = wide[0].max(dim=0).indices.byte().cpu()
    return mask


def _write(job: Job, mask: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> None:
    """Write the files of a job, each atomically; the image is read again for its overlay.

    Raises:
        UserError: naming the file that cannot be written, or no longer be read.
    """
    try:
        job.mask.parent.mkdir(parents=True, exist_ok=True)
        save_mask(job.mask, mask, palette)
        if job.overlay is not None:
            image = read_image(job.source)
            if mask.shape != (image.height, image.width):
                raise UserError(f"{job.source} changed while it was segmented; run again")
            save_image(job.overlay, overlay(image, mask, palette))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"the result of {job.source} cannot be written: {reason}") from error
