"""Folders of images to folders of masks: threads in stages, with bounded memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import numpy as np
import torch

from cosa.cam import resize
from cosa.checkpoint import TrainedNetwork
from cosa.core.device import memory_errors_as
from cosa.core.errors import UserError
from cosa.core.memory import memory_size
from cosa.core.terminal import warn
from cosa.core.threads import parallel_map
from cosa.data.images import TooManyPixels, open_image
from cosa.data.raster import Raster
from cosa.data.reading import Extent
from cosa.inference import outputs
from cosa.inference.certainty import certainty
from cosa.inference.huge import Huge
from cosa.inference.jobs import CannotGoOn, Job
from cosa.inference.kinds import KINDS
from cosa.inference.memory_budget import Room, decoding_memory
from cosa.inference.outcome import Outcome, found
from cosa.inference.outputs import (
    Results,
    cam_arrays,
    certainty_arrays,
    probability_arrays,
)
from cosa.inference.pixels import argmax_and_probability, argmax_at_size, pseudo_labels_at_size
from cosa.inference.segmenter import Maps, Prepared, Segmenter
from cosa.inference.settings import Settings
from cosa.inference.slide import SlidMaps

IMAGE_MEMORY = 0.5
"""Share of the main memory that images may take while they are decoded."""


@dataclass
class _Work:
    """An outcome on its way through the stages."""

    outcome: Outcome
    prepared: Prepared | None = None
    maps: Maps | None = None
    raster: Raster | None = None
    """The image, where it is not held; its maps are read, and its masks made, as it is written."""
    slid: SlidMaps | None = None
    """What to close when that is done."""
    results: Results = field(default_factory=Results)


def segment_files(
    network: TrainedNetwork,
    jobs: Iterable[Job],
    settings: Settings,
    *,
    save: Sequence[str] = ("mask",),
    labels_of: Callable[[str], list[int]] | None = None,
    details: bool = False,
    keep_masks: bool = False,
    batch_size: int = 4,
    workers: int = 4,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> Iterator[Outcome]:
    """Write the results of image files.

    Images are squashed to a square as in the evaluation, or seen in windows, and their logits
    resized to the image before the argmax. Reading, a CRF on the CPU, and writing go on in
    threads of their own beside the network. However many jobs there are, there are in memory at
    most ``2 * batch_size + workers`` images as the network reads them, ``workers + 1`` on their
    way through a CRF on the CPU, and ``batch_size + 2 * workers`` masks.

    Args:
        network: in evaluation mode; runs on the device where it is.
        jobs: may be lazy.
        settings: see ``Settings``.
        save: keys of ``KINDS``, those that the jobs have.
        labels_of: the foreground classes, from 1, of the image with this name; others are left
            out of all results. It may raise ``UserError``: the job fails then.
        details: fill in ``Outcome.found``.
        keep_masks: fill in ``Outcome.mask``.
        batch_size: images, or windows, per forward pass of the network (twice as many with
            flips).
        workers: threads that read, as many that write, and on the CPU as many that make masks out
            of maps; fewer run where the memory of their images would exceed ``IMAGE_MEMORY``, or
            that of their CRFs ``CRF_MEMORY``, a single one where pydensecrf is used.
        autocast: makes the context of the forward pass, such as bfloat16 autocast.

    Yields:
        The outcome of each job, in order.

    Raises:
        CannotGoOn: the device's memory is too small, or the disk is full.
    """
    made_of = {KINDS[kind].map for kind in save}
    labelled = details or keep_masks or any(KINDS[kind].of_labels for kind in save)
    segmenter = Segmenter(
        network,
        settings,
        seg=labelled or "seg" in made_of,
        cam="cam" in made_of,
        batch_size=batch_size,
        autocast=autocast,
    )

    stage = partial(_stage, too_large=segmenter.too_large)
    images = Room(int(IMAGE_MEMORY * memory_size()))
    huge = Huge(settings, save, keep_masks)

    untold = threading.Lock()

    def tell_doubt(job: Job, extent: Extent | None) -> None:
        """Of the first image whose values seem to be misread; the others are alike."""
        doubt = extent.doubt if extent else ""
        if doubt and untold.acquire(blocking=False):
            warn(f"{job.source}: {doubt}; if it should be another range, give --value-range LOW "
                 "HIGH (further images are not named)")

    def load(job: Job) -> _Work:
        return read(_Work(Outcome(job)))

    @_timed
    @stage
    def read(work: _Work) -> None:
        job = work.outcome.job
        present = None if labels_of is None else labels_of(job.name)
        try:
            with closing(open_image(job.source, settings.reading)) as image:
                need = decoding_memory(image.size, image.deep)
                if need > images.size:
                    raise TooManyPixels(job.source, image.size, "is {}x{} pixels, too many for "
                                        "this machine's memory".format(*image.size))
                with images.take(need):
                    decoded = image.decode()
                    tell_doubt(job, decoded.extent)
                    work.prepared = segmenter.prepare(decoded.image, present)
        except TooManyPixels as error:
            work.raster = raster = huge.open(job, error.what)
            work.prepared = segmenter.prepare_rows(raster.size[::-1], raster.strips, present)
        work.outcome.size = work.prepared.size

    def predict() -> Iterator[_Work]:
        with closing(parallel_map(load, jobs, workers, batch_size + workers)) as loaded:
            while chunk := list(islice(loaded, batch_size)):
                good = [work for work in chunk if work.outcome.error is None]
                started = time.perf_counter()
                with memory_errors_as(segmenter.out_of_memory):
                    compute(good)
                for work in good:
                    work.outcome.seconds += (time.perf_counter() - started) / len(good)
                yield from chunk

    def compute(batch: list[_Work]) -> None:
        """All that is done on the network's device."""
        held = [work for work in batch if work.raster is None]
        predicted = segmenter.predict([work.prepared for work in held])
        for work, maps in zip(held, predicted, strict=True):
            work.maps = maps
            collect(work)
            if not segmenter.finishes_in_threads:
                finish(work)
        for work in batch:
            if work.raster is not None:
                see_by_rows(work)

    def see_by_rows(work: _Work) -> None:
        """The same of an image that is not held."""
        job, folder = work.outcome.job, next(iter(work.outcome.job.results.values())).parent
        try:
            with closing(work.raster), outputs.told(job, folder):
                huge.tell(job, work.prepared.pixels.size, work.outcome.size)
                folder.mkdir(parents=True, exist_ok=True)
                work.maps, work.slid = segmenter.predict_rows(work.prepared, folder)
                tell_doubt(job, work.raster.extent)
        except CannotGoOn:
            raise
        except UserError as error:
            work.outcome.error = error
        work.prepared = None

    @stage
    def collect(work: _Work) -> None:
        _collect(work, segmenter, save)

    @stage
    def finish(work: _Work) -> None:
        """From the maps to the mask, of images that are held."""
        if work.slid is not None:
            return
        if labelled:
            if settings.crf:
                work.maps = segmenter.refine(work.maps, work.prepared.photo)
            _label(work, details, save)
        work.prepared = work.maps = None

    def finish_in_thread(work: _Work) -> _Work:
        with segmenter.room_for_crf(work.prepared):
            return _timed(finish)(work)

    @_timed
    @stage
    def write(work: _Work) -> None:
        job, outcome = work.outcome.job, work.outcome
        if work.slid is not None:
            with closing(work.slid):
                outcome.found = outputs.write_by_rows(
                    job, work.maps, outcome.size, network.palette, details)
            return
        # For an overlay, the image is read again; of regions, each pixel has its number.
        large = not {"overlay", "regions"}.isdisjoint(save)
        need = decoding_memory(outcome.size, deep="regions" in save) if large else 0
        with images.take(need):
            outputs.write(job, work.results, network.palette, settings.reading)

    with ExitStack() as stack:
        done = stack.enter_context(closing(predict()))
        if segmenter.finishes_in_threads:
            # pydensecrf holds the interpreter's lock: more of its threads would only take memory.
            threads = 1 if settings.crf and settings.crf.backend == "pydensecrf" else workers
            refined = parallel_map(finish_in_thread, done, threads, threads + 1)
            done = stack.enter_context(closing(refined))
        written = parallel_map(write, done, workers, 2 * workers)
        for work in stack.enter_context(closing(written)):
            if keep_masks:
                work.outcome.mask = work.results.mask
            yield work.outcome


def _stage(
    function: Callable[[_Work], None], too_large: Callable[[Job], UserError]
) -> Callable[[_Work], _Work]:
    """A step of the work on one image, which may fail; later ones are left out then.

    ``too_large`` makes the error where there is too little memory.
    """

    def run(work: _Work) -> _Work:
        if work.outcome.error is None:
            try:
                with memory_errors_as(lambda: too_large(work.outcome.job)):
                    function(work)
            except CannotGoOn:
                raise
            except UserError as error:
                work.outcome.error = error
                work.prepared = work.maps = None  # what is held of it may be large
        return work

    return run


def _timed(function: Callable[[_Work], _Work]) -> Callable[[_Work], _Work]:
    """The same, adding its time to the outcome's."""

    def run(work: _Work) -> _Work:
        started = time.perf_counter()
        function(work)
        work.outcome.seconds += time.perf_counter() - started
        return work

    return run


def _collect(work: _Work, segmenter: Segmenter, save: Sequence[str]) -> None:
    """What is saved of the maps as the network yields them."""
    maps, size, settings = work.maps, work.outcome.size, segmenter.settings
    grid = segmenter.saved_grid(size)
    if maps.seg is not None:
        work.outcome.certainty = certainty(
            resize(maps.seg[None], grid)[0], maps.presence, maps.passes)
    if "certainty" in save:
        work.results.archives["certainty"] = certainty_arrays(work.outcome.certainty, size)
    if "probabilities" in save:
        work.results.archives["probabilities"] = probability_arrays(maps, size, grid)
    if "cam" in save:
        work.results.archives["cam"] = cam_arrays(maps, size, grid)
    if "cpl" in save:
        cpl = pseudo_labels_at_size(maps.cam, size, settings.threshold).numpy()
        work.results.cpl = np.array([0, *maps.cam_classes], dtype=np.uint8)[cpl]


def _label(work: _Work, details: bool, save: Sequence[str]) -> None:
    """The mask, and what it holds."""
    maps, size = work.maps, work.outcome.size
    of_pixels = torch.empty(size, dtype=torch.float16) if "regions" in save else None
    if details or of_pixels is not None:
        mask, pixels, probabilities = argmax_and_probability(
            maps.seg, size, maps.passes, of_pixels)
        work.results.probability = None if of_pixels is None else of_pixels.numpy()
    else:
        mask = argmax_at_size(maps.seg, size)
    if details:
        work.outcome.found = found(maps.classes, pixels, probabilities)
    work.results.mask = np.array(maps.classes, dtype=np.uint8)[mask.numpy()]
    work.outcome.empty = not work.results.mask.any()
