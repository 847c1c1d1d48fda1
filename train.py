#!/usr/bin/env python3
"""Train CoSA from image-level labels.

    python train.py                                    the demo, on generated scenes
    python train.py configs/voc.yaml data.root=VOC2012
    python train.py --resume runs/voc                  go on where a run stopped
    torchrun --nproc-per-node 4 train.py ...           the same on four GPUs
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from cosa.core.errors import NotFiniteError, UserError, run_program

if __name__ == "__main__":  # a failure of the imports is told as any other
    run_program(lambda: importlib.import_module("train").main())

import torch
from tqdm import tqdm

from cosa.config import Config, load_config, settled, to_dict
from cosa.core import distributed
from cosa.core.device import describe, memory_errors_explained
from cosa.core.memory import in_mebibytes, peak_memory
from cosa.core.signals import StopRequest
from cosa.core.terminal import Parser, progress_bar, say, tell
from cosa.data import SegmentationDataset, build_dataset, resolved
from cosa.data.batches import to_device
from cosa.data.check import examine
from cosa.data.loader import training_loader
from cosa.data.order import trained_on
from cosa.evaluate import EvaluationStopped, class_indices
from cosa.report import keep_up
from cosa.scores import format_table
from cosa.training.build import (
    build_cotraining,
    build_step,
    check_crop,
    check_processes,
    choose_stream,
    prepare,
)
from cosa.training.changes import tell_schedule
from cosa.training.estimate import check_memory, check_scenes
from cosa.training.evaluation import scored_split
from cosa.training.optimizer import build_optimizer, optimizer_step
from cosa.training.run_folder import RunFolder
from cosa.training.saved import State
from cosa.training.session import Session
from cosa.training.start import describe_start
from cosa.training.step_log import DivergedError

DEFAULT_CONFIG = "configs/demo.yaml"


@distributed.processes()
def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; return the exit code."""
    config, run, resume = read_arguments(arguments)
    with memory_errors_explained():
        return train(config, run, resume)


def read_arguments(arguments: Sequence[str] | None) -> tuple[Config, RunFolder, bool]:
    """What to train, where to, and whether to go on with what is there.

    Raises:
        UserError: the configuration is not usable, or there is no run to resume.
    """
    parser = Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", help=f"YAML file; default {DEFAULT_CONFIG}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="over the YAML file")
    parser.add_argument("--resume", metavar="RUN_FOLDER", help="continue this run")
    given = parser.parse_intermixed_args(arguments)
    if given.config and "=" in given.config:
        given.overrides.insert(0, given.config)
        given.config = None
    if given.resume:
        if given.config:
            raise UserError(f"--resume takes its configuration from {given.resume}: "
                            f"leave out {given.config}, give key=value to change something")
        run = RunFolder(given.resume)
        return run.reopen(given.overrides), run, True
    config = load_config(given.config or DEFAULT_CONFIG, given.overrides)
    return config, RunFolder(f"{config.output}/{config.name}"), False


def train(config: Config, run: RunFolder, resume: bool = False) -> int:
    """Train as configured into a run folder; return 0, or 128 + N if signal N stopped it.

    Raises:
        UserError: data, weights or folder are not usable, or the training diverged.
    """
    check_processes(config)
    if resume and not run.checkpoints():
        tell(f"{run.path} holds no checkpoint yet: training from the beginning")
        resume = False
    if not resume:
        run.check_free()
    device, autocast = prepare(config)
    check_scenes(config)
    train_set = build_dataset(config.data, "train")
    config = replace(config, data=resolved(config.data, train_set))
    val_set = build_dataset(config.data, "val")
    for dataset in (train_set, val_set):
        dataset.check()
    if val_set.classes != train_set.classes:
        raise UserError("training and validation images have different classes: use one list")
    report = distributed.from_main(lambda: examine(train_set, val_set, config.data.negatives))
    report.require()
    images = len(trained_on(train_set.labels, config.data.negatives))
    given, config = config, settled(config, images)

    check_memory(config, len(train_set.classes), len(val_set), device)
    cotraining = build_cotraining(config, len(train_set.classes), device, autocast, not resume)
    # What would otherwise fail in the first step, or in the first evaluation.
    check_crop(config, cotraining.online)
    class_indices(config.evaluate.coexistence_classes, train_set.classes)
    report.tell()
    tell_schedule(given, config, images)
    say(f"training on {describe(device, autocast)}")
    optimizer = build_optimizer(cotraining.online, config.optimizer, cotraining.regularizers)
    session = Session(config, run, cotraining, optimizer, val_set, State(images=images))
    if resume:
        session.restore()
    loader = training_loader(
        train_set,
        batch_size=config.train.batch_size,
        seed=config.seed,
        iterations=config.train.iterations,
        start_iteration=session.state.iteration,
        workers=config.data.workers,
        pin_memory=device.type == "cuda",
        stream=choose_stream(config),
        keep_decoded=config.data.keep_decoded,
        negatives=config.data.negatives,
        balance=config.data.balance,
        **to_dict(config.augment),
    )
    distributed.barrier()  # all have read what is there before the first one changes it
    with (
        run.locked(), StopRequest() as stop,
        session.board.opened(session.state.iteration, session.evaluation_next()),
    ):
        if resume:
            session.take_up()
            run.write_config(config)
        else:
            run.create(config)
        run.write_data(report.tree())
        run.log_start(describe_start(run, session.state.iteration, device, autocast))
        try:
            if fit(session, loader, train_set, stop):
                return explain_stop(session, stop)
            finish(session, stop)
        except EvaluationStopped:
            session.save()
            return explain_stop(session, stop)
    return 0


def fit(
    session: Session,
    loader: Iterable[dict[str, torch.Tensor]],
    train_set: SegmentationDataset,
    stop: StopRequest,
) -> int:
    """Train on every batch of the loader; return the number of the signal that stopped it, or 0.

    Raises:
        UserError: the training diverged; the last checkpoint is good.
        EvaluationStopped: a signal came during an evaluation.
    """
    config, state = session.config, session.state
    step = build_step(session.cotraining)
    started = time.monotonic() - state.seconds
    total = config.train.iterations
    with progress_bar(total=total, initial=state.iteration, desc=config.name, unit="it") as bar:
        for batch in loader:
            if session.evaluation_due():
                show_scores(state.iteration, session.evaluate(stop.asked))
                report_on(session)

            batch = to_device(batch, session.device, session.cotraining.online.mean)
            distributed.reseed(config.seed, state.iteration)
            with divergence_explained(session, batch, train_set):
                session.optimizer.zero_grad()
                loss, terms = step(batch, state.iteration)
                lr, norm = optimizer_step(
                    session.optimizer, loss, config.optimizer, state.iteration, total
                )
                loss = loss.detach()  # the next step may record its graphs
                session.log.add(state.iteration, loss, norm, terms, batch["index"])
                session.cotraining.update_assignment(state.iteration)
                state.iteration += 1
                state.seconds = time.monotonic() - started

                # A signal reaches one process, the clock is the first one's: all are to know.
                signal, overdue = distributed.highest_each(
                    stop.signal, session.checkpoint_overdue()
                )
                saving = signal or overdue or session.checkpoint_due() or session.finished()
                # Nothing is saved before it is known that the steps went well.
                if saving or session.settling_due():
                    session.log.settle()
                    session.cotraining.xi()  # a GPU's tells only now of what was not finite
                if saving or session.evaluation_due():
                    session.require_finite()

            bar.update()
            if session.logging_due():
                log_training(session, bar, lr)
            if saving:
                session.save()
            if signal:
                return signal
    return 0


def finish(session: Session, stop: StopRequest) -> None:
    """Score the trained network: on the validation and, where there is one, the test images.

    Raises:
        EvaluationStopped: a signal came.
    """
    config, run, state = session.config, session.run, session.state
    memory = in_mebibytes(peak_memory(session.device))
    scores = session.evaluate(stop.asked)
    if not run.best.exists():  # no validation score was defined
        session.save_best()
        session.save()
    split = scored_split(config)
    if split != "val":
        scores = session.score(build_dataset(config.data, split), split, stop.asked)
    xi, xi_aux = session.cotraining.xi()
    seconds = round(state.seconds, 1)
    run.write_summary({
        **scores, "split": split, "iterations": state.iteration, "xi": xi, "xi_aux": xi_aux,
        "best_validation_score": state.best, "evaluation_seconds": scores["seconds"],
        "seconds": seconds, "peak_memory_mb": memory,
    })
    report_on(session)
    say(*format_table(scores).split("\n"))
    say(f"{split} scores of the final network after {seconds} s of training, evaluations on the "
        f"way included; all files are in {run.path}, pictures in {run.panels}")


def explain_stop(session: Session, stop: StopRequest) -> int:
    """Say how to go on after a signal; return the exit code."""
    tell(f"stopped at iteration {session.state.iteration}; continue with: python train.py --resume "
         f"{session.run.path}")
    return 128 + distributed.highest(stop.signal)


def log_training(session: Session, bar: tqdm, lr: float) -> None:
    """One line in metrics.jsonl, means since the last one, and the same on the progress bar."""
    state, (xi, xi_aux) = session.state, session.cotraining.xi()
    losses = session.log.take_means()
    if not distributed.is_main():
        return
    record = {
        "iteration": state.iteration, **losses, "xi": xi, "xi_aux": xi_aux,
        "lr": lr, "seconds": round(state.seconds, 2),
    }
    session.run.log(record)
    session.board.log(record)
    shown = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
    known = "/".join("-" if value is None else f"{value:.2f}" for value in (xi, xi_aux))
    rate = bar.format_dict["rate"] or (bar.n - bar.initial) / bar.format_dict["elapsed"]
    speed = rate * session.config.train.batch_size
    bar.set_postfix_str(f"{shown} xi {known} {speed:.1f} images/s", refresh=False)


def show_scores(iteration: int, scores: dict[str, Any]) -> None:
    """The main scores of a periodic evaluation in one line above the progress bar."""
    names = ("miou", "cam_miou", "aux_cam_miou", "classification_map")
    shown = [f"{name} {100 * scores[name]:.1f}" for name in names if scores.get(name) is not None]
    say(f"iteration {iteration}: " + ", ".join(shown))


def report_on(session: Session) -> None:
    """Write the report of what there is so far, if the configuration wants one."""
    if session.config.train.report:
        keep_up(session.run.path)


@contextmanager
def divergence_explained(
    session: Session, batch: dict[str, torch.Tensor], dataset: SegmentationDataset
) -> Iterator[None]:
    """One sentence about a step that was not finite: the present one, or one noticed late.

    Raises:
        UserError: in place of a ``NotFiniteError``, which comes in all processes or in none.
    """
    try:
        yield
    except NotFiniteError as error:
        iteration, index, about = session.state.iteration, batch["index"], ""
        if isinstance(error, DivergedError):
            iteration, index = error.iteration, error.index
            about = f"terms: {', '.join(error.terms)}; " if error.terms else ""
        indices = sum(distributed.gather(index.tolist()), start=[])
        images = ", ".join(dataset.names[i] for i in indices)
        raise session.diverged(
            f"{error} at iteration {iteration} ({about}images: {images})"
        ) from error
