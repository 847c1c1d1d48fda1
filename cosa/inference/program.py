"""The program infer.py: look, segment, score, count, and tell what became of all images."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

from cosa.core import distributed
from cosa.core.device import allow_tf32, choose_autocast
from cosa.core.signals import Interrupts
from cosa.core.terminal import note, progress_bar, say, tell
from cosa.inference.command_line import Options, parse
from cosa.inference.counts import Counts
from cosa.inference.exports import export
from cosa.inference.finished import in_order
from cosa.inference.gallery import GALLERY, write_gallery
from cosa.inference.jobs import Plan, share
from cosa.inference.outcome import Outcome
from cosa.inference.pipeline import segment_files
from cosa.inference.review import SHEET, TABLE, review
from cosa.inference.scoring import Scored, scored
from cosa.inference.summary import Summary
from cosa.inference.task import Task, look

FEW = 3
"""Of fewer masks, that none holds a class is usual."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code.

    Args:
        arguments: the words of the command line; None takes those of this process.

    Raises:
        UserError: it cannot start or go on.
        KeyboardInterrupt: a signal came before there was anything to keep.
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
        say("stopped before the first image", error=True)
        return stop.exit_code


@distributed.processes(distributed.NO_TIMEOUT)
def work(arguments: Sequence[str] | None, stop: Interrupts) -> int:
    """What ``main`` does, stopped by the signals that ``stop`` takes."""
    options = parse(arguments)
    with ExitStack() as stack:
        with stop.raising():
            task = stack.enter_context(look(options))
        summary = None
        if options.json:
            summary = stack.enter_context(Summary(options.json, task.network.classes))
        distributed.from_main(task.start)  # after all looked, before any result
        counts = process(task, stop, summary)
    if counts.interrupted:
        again = "starts over" if options.overwrite else "goes on where it left off"
        tell(f"stopped; the same command {again}")
        return 128 + (distributed.highest(stop.number) or signal.SIGINT)
    return 1 if counts.failed or counts.unscored else 0


def process(task: Task, stop: Interrupts, summary: Summary | None) -> Counts:
    """Segment this process's share, and tell what became of all images."""
    options, scorer, counts, scores = task.options, task.scorer, Counts(), None
    own = share(task.finished)
    jobs, finished = task.jobs.part(own), task.finished[own]
    outcomes = segment(task, jobs.only(not there for there in finished))
    if summary is not None or scorer is not None:
        outcomes = in_order(finished, jobs, outcomes, task.network.num_classes, options.workers)
    else:
        counts.skipped = sum(finished)
    awaited = len(jobs) - counts.skipped
    with telling(options, counts) as lines:
        with (
            counts.until_interrupted(),
            closing(scored(outcomes, scorer, options.workers)) as results,
        ):
            follow(stop.awaiting(results), awaited, counts, summary)
        counts.add_up()
        complete = not counts.interrupted
        if complete and not options.labels and counts.empty == counts.done >= FEW:
            note(f"all {counts.done} masks are background alone: the network finds no class in "
                 "these images, as after a training that was too short or on other ones")
        if complete and task.writing and not counts.stale and distributed.is_main():
            task.record.end()
        if complete and scorer is not None:
            scorer.add_up()
            scores = scorer.scores()
            lines += scorer.table().split("\n")
        if complete and task.writers:
            lines += annotate(task, counts, stop)
        if complete and options.review:
            lines += show_least_certain(task, counts, stop)
        if not counts.interrupted and complete and options.report:
            lines += show_gallery(task, counts, stop)
        if summary is not None:
            summary.finish({
                "input": options.input, "output": options.output, "weights": options.weights,
                **counts.report(), "made_with": task.record.new, "scores": scores,
            })
    return counts


def segment(task: Task, jobs: Plan) -> Iterator[Outcome]:
    """Segment images and write what is asked for; what became of each, in order."""
    options, training = task.options, task.network.config.train
    allow_tf32(training.tf32)
    device = next(task.network.parameters()).device
    return segment_files(
        task.network,
        jobs,
        task.settings,
        save=options.save,
        labels_of=task.labels and task.labels.of,
        details=options.json is not None,
        keep_masks=task.scorer is not None,
        batch_size=options.batch_size,
        workers=options.workers,
        autocast=choose_autocast(device, training.precision),
    )


def annotate(task: Task, counts: Counts, stop: Interrupts) -> list[str]:
    """Write the files for annotation tools, in one process; returns lines that tell of them."""
    options = task.options
    failed, interrupted = distributed.from_main(
        lambda: export(task.writers, task.jobs, {*counts.failures}, options, stop))
    counts.failed += failed
    counts.interrupted |= interrupted
    places = (", ".join(writer.PLACES) for writer in task.writers)
    return [] if interrupted else [f"for annotation tools: {', '.join(places)}"]


def show_least_certain(task: Task, counts: Counts, stop: Interrupts) -> list[str]:
    """Write the table and sheet of --review, in one process; returns lines that tell of them."""
    interrupted = look_again(review, task, counts, stop)
    return [] if interrupted else [f"least certain first: {TABLE}, {SHEET}"]


def show_gallery(task: Task, counts: Counts, stop: Interrupts) -> list[str]:
    """Write the page of --report, in one process; returns lines that tell of it."""
    interrupted = look_again(write_gallery, task, counts, stop)
    return [] if interrupted else [f"to look at: {GALLERY}"]


def look_again(make: Callable, task: Task, counts: Counts, stop: Interrupts) -> bool:
    """Let one process make something of all results; whether a signal came.

    Args:
        make: ``review`` or ``write_gallery``.
    """
    failures, interrupted = distributed.from_main(
        lambda: make(task.jobs, counts.failures, task.options, task.network, task.settings, stop))
    counts.failed += len(failures)
    counts.failures |= failures
    counts.interrupted |= interrupted
    return interrupted


def follow(
    results: Iterable[Scored], total: int, counts: Counts, summary: Summary | None
) -> None:
    """Count and report the outcomes as they come."""
    # Without a terminal there is no bar: logs should not fill with it.
    with progress_bar(total=total, unit="image", disable=None) as bar:
        for outcome, unscored in results:
            counts.add(outcome, unscored)
            if outcome.error is not None:
                say(f"failed: {outcome.error}", error=True)
            if unscored is not None:
                say(f"not scored: {unscored}", error=True)
            if summary is not None:
                summary.add(outcome, unscored)
            bar.update()


@contextmanager
def telling(options: Options, counts: Counts) -> Iterator[list[str]]:
    """Print the counts when the block ends, however it does, and then the lines it has added."""
    lines: list[str] = []
    try:
        yield lines
    finally:
        what = "masks" if "mask" in options.save else "results"
        # Last, since nobody may be reading.
        say(f"{counts.line()}; {what} are in {options.output}", *lines)
