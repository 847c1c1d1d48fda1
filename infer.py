"""Segment images with a trained network: python infer.py INPUT --weights FILE --output FOLDER.

Started by torchrun, each process segments its share of the images.

Exit code 0: all done; 1: finished, but some images failed or could not be scored; 2: could not
start, or could not go on; 130: stopped.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import cosa
from cosa import distributed
from cosa.checkpoint import check_finite
from cosa.device import allow_tf32, choose_autocast, choose_device, out_of_memory
from cosa.errors import UserError, run_program
from cosa.files import remove_leftovers
from cosa.inference.jobs import Plan, plan, share
from cosa.inference.labels import read_image_labels
from cosa.inference.options import choose_crf, choose_settings, parse
from cosa.inference.pipeline import (
    Outcome,
    find_finished,
    parallel_map,
    read_back,
    segment_files,
)
from cosa.inference.record import Record
from cosa.inference.scoring import Scorer
from cosa.inference.summary import Summary
from cosa.network import CoSANetwork
from cosa.terminal import GRACE

Scored = tuple[Outcome, UserError | None]


@distributed.processes(distributed.NO_TIMEOUT)
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code, raises UserError if it cannot start or go on."""
    args = parse(arguments)
    jobs = distributed.from_main(
        lambda: plan(args.input, args.output, args.save, args.evaluate)
    )
    device = choose_device(args.device)
    crf = choose_crf(args)
    network = load_network(args.weights, device)
    labels = read_image_labels(args.labels, network.classes) if args.labels else None
    settings = choose_settings(args, network, crf, labels)
    scorer = None
    if args.evaluate:
        scorer = Scorer(
            args.evaluate, network.classes, label_filtered=labels is not None,
            coexistence=network.config["evaluate"]["coexistence_classes"],
        )
        scorer.check(jobs)
    record = Record(Path(args.output), network, settings, args.save)
    record.begin(args.overwrite, jobs)
    # Masks that are not saved can only be scored by computing them again.
    afresh = args.overwrite or (scorer is not None and "mask" not in args.save)
    finished = distributed.from_main(
        lambda: [False] * len(jobs) if afresh else find_finished(jobs, args.workers)
    )
    writing = not all(finished)
    own, folders = share(finished), jobs.only(not there for there in finished).folders
    all_jobs, jobs, finished = jobs, jobs.part(own), finished[own]
    todo = jobs.only(not there for there in finished)
    training = network.config["train"]
    allow_tf32(training["tf32"])
    outcomes = segment_files(
        network,
        todo,
        settings,
        save=args.save,
        labels_of=labels and labels.of,
        details=args.json is not None,
        keep_masks=scorer is not None,
        batch_size=args.batch_size,
        workers=args.workers,
        autocast=choose_autocast(device, training["precision"]),
    )
    counts = Counts()
    with ExitStack() as stack:
        stack.enter_context(terminable())
        summary = None
        if args.json:
            check_json(args, all_jobs)
            summary = stack.enter_context(Summary(args.json, network.classes))
        if writing:
            # After all looked, before any result.
            distributed.from_main(lambda: start(record, folders))
        if summary or scorer:
            outcomes = in_order(finished, jobs, outcomes, network.num_classes, args.workers)
        else:
            counts.skipped = sum(finished)
        try:
            try:
                with closing(scored(outcomes, scorer, args.workers)) as results:
                    follow(results, len(jobs) - counts.skipped, counts, summary)
            except KeyboardInterrupt:
                counts.interrupted = True
            counts.add_up()
            complete = not counts.interrupted
            # Before anything is printed: nobody may be reading.
            if complete and writing and not counts.stale and distributed.is_main():
                record.end()
        finally:
            print(f"{counts.line()}; {'masks' if 'mask' in args.save else 'results'} are in "
                  f"{args.output}")
        scores = None
        if scorer and complete:
            scorer.add_up()
            scores = scorer.scores()
            print(scorer.table())
        if summary:
            about = {key: getattr(args, key) for key in ("input", "output", "weights")}
            summary.finish({**about, **counts.report(), "made_with": record.new, "scores": scores})
    if counts.interrupted:
        if not distributed.is_main():
            return 130
        again = "starts over" if args.overwrite else "goes on where it left off"
        print(f"stopped; the same command {again}", file=sys.stderr)
        return 130
    return 1 if counts.failed or counts.unscored else 0


def start(record: Record, folders: Iterable[Path]) -> None:
    """Sweep up what killed programs left in the folders of the results, and note the new ones."""
    for folder in folders:
        remove_leftovers(folder)
    record.start()


@dataclass
class Counts:
    """What became of the images so far."""

    done: int = 0
    skipped: int = 0
    failed: int = 0
    unscored: int = 0
    stale: int = 0
    """Images that failed and whose files are those of an earlier run."""
    interrupted: bool = False
    started: float = field(default_factory=time.perf_counter)

    def add_up(self) -> None:
        """Add what became of the other processes' images; one interrupted interrupts all."""
        every = [asdict(counts) for counts in distributed.gather(self)]
        for name in ("done", "skipped", "failed", "unscored", "stale"):
            setattr(self, name, sum(counts[name] for counts in every))
        self.interrupted = any(counts["interrupted"] for counts in every)

    def report(self) -> dict[str, Any]:
        """For the summary."""
        counts = asdict(self)
        del counts["stale"]
        seconds = time.perf_counter() - counts.pop("started")
        return {
            **counts,
            "seconds": round(seconds, 3),
            "images_per_second": round(self.done / seconds, 3),
        }

    def line(self) -> str:
        """For the terminal."""
        unscored = f", {self.unscored} not scored" if self.unscored else ""
        rate = self.done / (time.perf_counter() - self.started)
        return (
            f"{self.done} done ({rate:.2f} images/s), {self.skipped} skipped (already there), "
            f"{self.failed} failed{unscored}"
        )


def follow(
    results: Iterable[Scored], total: int, counts: Counts, summary: Summary | None
) -> None:
    """Count and report the outcomes as they come."""
    # Without a terminal there is no bar: logs should not fill with it.
    hidden = None if distributed.is_main() else True
    with tqdm(total=total, unit="image", disable=hidden) as bar:
        for outcome, unscored in results:
            if outcome.error is not None:
                counts.failed += 1
                counts.stale += any(map(os.path.exists, outcome.job.results.values()))
                tqdm.write(f"failed: {outcome.error}", file=sys.stderr)
            elif outcome.skipped:
                counts.skipped += 1
            else:
                counts.done += 1
            if unscored is not None:
                counts.unscored += 1
                tqdm.write(f"not scored: {unscored}", file=sys.stderr)
            if summary is not None:
                summary.add(outcome, unscored)
            bar.update()


def in_order(
    finished: Sequence[bool],
    jobs: Plan,
    fresh: Iterator[Outcome],
    num_classes: int,
    workers: int,
) -> Iterator[Outcome]:
    """Outcomes of all jobs in their order: the new ones, and those read from finished files."""
    back = read_back(jobs.only(finished), num_classes, workers)
    with closing(fresh), closing(back):
        for there in finished:
            yield next(back if there else fresh)


def scored(
    outcomes: Iterator[Outcome], scorer: Scorer | None, workers: int
) -> Iterator[Scored]:
    """The outcomes, each with the reason why it could not be scored, if it was to be."""

    def score(outcome: Outcome) -> Scored:
        if scorer is None or outcome.mask is None:
            return outcome, None
        return outcome, scorer.update(outcome)

    with closing(outcomes):
        if scorer is None:
            yield from map(score, outcomes)
        else:  # in a single thread: scores add up in order
            with closing(parallel_map(score, outcomes, 1, 2 * workers)) as results:
                yield from results


def load_network(path: str, device: torch.device) -> CoSANetwork:
    """Load weights that are finite and whose classes fit into a mask."""
    try:
        network = cosa.load(path, device)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(f"{path} takes more memory than {device} has free: end other programs, "
                        "or choose another --device") from error
    check_finite(network, path)
    if network.num_classes > 255:
        raise UserError(f"{path} has {network.num_classes} classes: masks hold at most 255")
    return network


def check_json(args: argparse.Namespace, jobs: Plan) -> None:
    """Raise ``UserError`` if the summary would be in the way of another file or a folder.

    That is: replace one, or a true mask, or need one of that name.
    """
    target, output = Path(os.path.realpath(args.json)), Path(args.output)
    others = [args.weights, args.labels, output / "classes.csv", output / ".cosa.json"]
    others = {Path(os.path.realpath(other)) for other in others if other}
    above = [target, *target.parents]
    taken = not others.isdisjoint(above)
    taken |= any(jobs.overwritten(path.parent, [path.name]) for path in above)
    folders = (Path(os.path.realpath(folder)) for folder in jobs.folders)
    # Of a folder that is there already, Summary says what it is.
    taken |= not target.is_dir() and any(folder.is_relative_to(target) for folder in folders)
    root = Path(os.path.realpath(jobs.root))
    taken |= target.is_relative_to(root) and target.relative_to(root).as_posix() in jobs.files
    if args.evaluate:
        truth = Path(os.path.realpath(args.evaluate))
        names = {os.path.splitext(file)[0] + ".png" for file in jobs.files}
        taken |= target.is_relative_to(truth) and target.relative_to(truth).as_posix() in names
    if taken:
        raise UserError(f"--json {args.json} is the name of another file or folder of this run, "
                        "or below it: choose another")


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM stop the program as Ctrl-C does, so that nothing half-written stays.

    torchrun passes on to its processes what the terminal has sent them already: of several
    processes, each takes signals in quick succession as one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopped = -math.inf

    def stop(number: int, frame: Any) -> None:
        nonlocal stopped
        last, stopped = stopped, time.monotonic()
        if stopped - last > GRACE:
            raise KeyboardInterrupt

    if distributed.world() == 1:
        handlers = {signal.SIGTERM: signal.default_int_handler}
    else:
        handlers = {signal.SIGTERM: stop, signal.SIGINT: stop}
    former = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    run_program(main)
