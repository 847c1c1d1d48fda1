"""Images whose files are there already: which they are, and what their masks tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

import numpy as np

from cosa.core import IGNORE
from cosa.core.errors import UserError
from cosa.core.threads import parallel_map
from cosa.data.masks import read_mask
from cosa.inference import outputs
from cosa.inference.jobs import Job, Plan
from cosa.inference.outcome import Found, Outcome


def find_finished(jobs: Plan, workers: int = 4) -> list[bool]:
    """Whether each job has all its files, and they fit its image as it is now.

    Args:
        workers: threads that look at the headers of files that are there.
    """
    there = [job.finished for job in jobs]
    fitting = parallel_map(outputs.fits, jobs.only(there), workers, 2 * workers)
    return [complete and next(fitting) for complete in there]


def read_back(jobs: Iterable[Job], num_classes: int, workers: int = 4) -> Iterator[Outcome]:
    """The outcomes of jobs that are finished, with all that their mask files tell.

    Args:
        jobs: may be lazy.
        num_classes: C, of the weights.
        workers: threads that read.
    """

    def read(job: Job) -> Outcome:
        outcome = Outcome(job, skipped=True)
        path = job.results.get("mask")
        try:
            if "certainty" in job.results:
                outcome.certainty = outputs.read_certainty(job.results["certainty"])
            if path is None:
                return outcome
            mask = read_mask(path, num_classes)
            pixels = np.bincount(mask.ravel())
            if len(pixels) > num_classes + 1:  # true masks may hold it, the network's do not
                raise UserError(f"{path}: the mask holds the value {IGNORE}, which is no class of "
                                "the weights")
        except UserError as error:
            outcome.error = UserError(f"{error}; delete it, or use --overwrite")
            return outcome
        except MemoryError:
            outcome.error = UserError(f"out of memory at {path}: lower --workers")
            return outcome
        outcome.mask, outcome.size = mask, mask.shape
        outcome.found = [
            Found(int(label), float(pixels[label] / pixels.sum()), None)
            for label in np.flatnonzero(pixels)
        ]
        return outcome

    yield from parallel_map(read, jobs, workers, 2 * workers)


def in_order(
    finished: Sequence[bool], jobs: Plan, fresh: Iterator[Outcome], num_classes: int, workers: int
) -> Iterator[Outcome]:
    """Outcomes of all jobs in their order: the new ones, and those read from finished files.

    Args:
        finished: for each job, whether its outcome is read.
        fresh: the outcomes of the others, in order; closed at the end.
        num_classes, workers: see ``read_back``.
    """
    back = read_back(jobs.only(finished), num_classes, workers)
    with closing(fresh), closing(back):
        for there in finished:
            yield next(back if there else fresh)
