"""Segment images with a trained network: python infer.py INPUT --weights FILE --output FOLDER.

Started by torchrun, each process segments its share of the images.

Exit code 0: all done; 1: finished, but some images failed or could not be scored; 2: could not
start, or could not go on; 130 or 143: stopped by Ctrl-C or SIGTERM, of which the first counts.
"""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":  # until the modules are there, which takes seconds
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: os._exit(128 + number))

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

import cosa
from cosa.checkpoint import check_finite
from cosa.core import distributed
from cosa.core.device import allow_tf32, choose_autocast, choose_device, out_of_memory
from cosa.core.errors import UserError, run_program
from cosa.core.files import remove_leftovers
from cosa.core.terminal import Interrupts
from cosa.core.threads import parallel_map
from cosa.inference.command_line import choose_crf, choose_settings, parse
from cosa.inference.counts import Counts
from cosa.inference.jobs import Plan, plan, share
from cosa.inference.labels import ImageLabels, read_image_labels
from cosa.inference.pipeline import Outcome, find_finished, read_back, segment_files
from cosa.inference.record import Record
from cosa.inference.scoring import Scorer
from cosa.inference.settings import Settings
from cosa.inference.summary import Summary
from cosa.network import CoSANetwork

Scored = tuple[Outcome, UserError | None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code, raises UserError if it cannot start or go on.

    Raises KeyboardInterrupt if a signal comes before there is anything to keep.
    """
    with Interrupts() as stop:
        return work(arguments, stop)


def program() -> int:
    """``main`` as a process of its own, which no number of signals ends without its exit code."""
    stop = Interrupts()
    stop.keep()
    try:
        return work(None, stop)
    except KeyboardInterrupt:
        print("stopped before the first image", file=sys.stderr)
        return stop.exit_code


@dataclass
class Task:
    """What is to be done, known before anything is written."""

    jobs: Plan
    finished: list[bool]
    """For each job, whether its files are there and are to be kept."""
    network: CoSANetwork
    settings: Settings
    labels: ImageLabels | None
    scorer: Scorer | None
    record: Record

    @property
    def writing(self) -> bool:
        """Whether there is anything left to do."""
        return not all(self.finished)


def look(args: argparse.Namespace, stack: ExitStack) -> Task:
    """Read and check all that the options name; writes nothing.

    The stack keeps other runs out of the output folder.

    Raises:
        UserError: what is asked for cannot be done.
    """
    jobs = distributed.from_main(
        lambda: plan(args.input, args.output, args.save, args.evaluate)
    )
    device = choose_device(args.device, "--device ")
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
    if args.json:
        check_json(args, jobs)
    record = stack.enter_context(Record(Path(args.output), network, settings, args.save))
    record.begin(args.overwrite, jobs)
    # Masks that are not saved can only be scored by computing them again.
    afresh = args.overwrite or (scorer is not None and "mask" not in args.save)
    finished = distributed.from_main(
        lambda: [False] * len(jobs) if afresh else find_finished(jobs, args.workers)
    )
    return Task(jobs, finished, network, settings, labels, scorer, record)


@distributed.processes(distributed.NO_TIMEOUT)
def work(arguments: Sequence[str] | None, stop: Interrupts) -> int:
    """What ``main`` does."""
    args = parse(arguments)
    with ExitStack() as stack:
        with stop.raising():
            task = look(args, stack)
        summary = None
        if args.json:
            summary = stack.enter_context(Summary(args.json, task.network.classes))
        if task.writing:
            # After all looked, before any result.
            distributed.from_main(lambda: start(task))
        counts = process(task, args, stop, summary)
    if counts.interrupted:
        if distributed.is_main():
            again = "starts over" if args.overwrite else "goes on where it left off"
            print(f"stopped; the same command {again}", file=sys.stderr)
        return 128 + (distributed.highest(stop.number) or signal.SIGINT)
    return 1 if counts.failed or counts.unscored else 0


def process(
    task: Task, args: argparse.Namespace, stop: Interrupts, summary: Summary | None
) -> Counts:
    """Segment this process's share, and tell what became of all images."""
    counts, scores, table = Counts(), None, ""
    own = share(task.finished)
    jobs, finished = task.jobs.part(own), task.finished[own]
    outcomes = segment(task, jobs.only(not there for there in finished), args)
    if summary or task.scorer:
        outcomes = in_order(finished, jobs, outcomes, task.network.num_classes, args.workers)
    else:
        counts.skipped = sum(finished)
    try:
        try:
            with closing(scored(outcomes, task.scorer, args.workers)) as results:
                follow(stop.awaiting(results), len(jobs) - counts.skipped, counts, summary)
        except KeyboardInterrupt:
            counts.interrupted = True
        counts.add_up()
        complete = not counts.interrupted
        if complete and task.writing and not counts.stale and distributed.is_main():
            task.record.end()
        if task.scorer and complete:
            task.scorer.add_up()
            scores, table = task.scorer.scores(), "\n" + task.scorer.table()
        if summary:
            about = {key: getattr(args, key) for key in ("input", "output", "weights")}
            made_with = task.record.new
            summary.finish({**about, **counts.report(), "made_with": made_with, "scores": scores})
    finally:
        # Last, since nobody may be reading.
        print(f"{counts.line()}; {'masks' if 'mask' in args.save else 'results'} are in "
              f"{args.output}{table}", flush=True)
    return counts


def segment(task: Task, jobs: Plan, args: argparse.Namespace) -> Iterator[Outcome]:
    """Segment images and write what is asked for; what became of each, in order."""
    training = task.network.config["train"]
    allow_tf32(training["tf32"])
    device = next(task.network.parameters()).device
    return segment_files(
        task.network,
        jobs,
        task.settings,
        save=args.save,
        labels_of=task.labels and task.labels.of,
        details=args.json is not None,
        keep_masks=task.scorer is not None,
        batch_size=args.batch_size,
        workers=args.workers,
        autocast=choose_autocast(device, training["precision"]),
    )


def start(task: Task) -> None:
    """Note the new results, and sweep up what killed programs left in their folders."""
    task.record.start()
    for folder in task.jobs.only(not there for there in task.finished).folders:
        remove_leftovers(folder)


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


if __name__ == "__main__":
    run_program(program)
