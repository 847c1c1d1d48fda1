#!/usr/bin/env python3
"""Train CoSA from image-level labels.

    python train.py                                    the demo, on generated scenes
    python train.py configs/voc.yaml data.root=VOC2012
    python train.py --resume runs/voc                  go on where a run stopped
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from cosa import checkpoint
from cosa.config import Config, load_config, to_dict
from cosa.cotrain import CoTraining
from cosa.data import SegmentationDataset, build_dataset
from cosa.data.datasets import nearest
from cosa.data.loader import training_loader
from cosa.device import allow_tf32, choose_autocast, choose_device
from cosa.errors import UserError, run_program
from cosa.evaluate import evaluate, format_table
from cosa.network import CoSANetwork
from cosa.run_folder import RunFolder
from cosa.schedule import learning_rate_factor
from cosa.weights import load_encoder_weights

DEFAULT_CONFIG = "configs/demo.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, train, and return the exit code."""
    parser = argparse.ArgumentParser(
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
        config = run.reopen(given.overrides)
    else:
        config = load_config(given.config or DEFAULT_CONFIG, given.overrides)
        run = RunFolder(f"{config.output}/{config.name}")
    return train(config, run, resume=bool(given.resume))


def train(config: Config, run: RunFolder, resume: bool = False) -> int:
    """Train as configured into a run folder; return 0, or 128 + N if signal N stopped it.

    Raises:
        UserError: data, weights or folder are not usable, or the loss is no longer finite.
    """
    device = choose_device(config.device)
    autocast = choose_autocast(device, config.train.precision)
    allow_tf32(config.train.tf32)
    torch.manual_seed(config.seed)

    train_set, val_set = build_dataset(config.data, "train"), build_dataset(config.data, "val")
    for dataset in (train_set, val_set):
        dataset.check()
    if val_set.classes != train_set.classes:
        raise UserError("training and validation images have different classes: use one list")

    network = checkpoint.build_network(to_dict(config), len(train_set.classes))
    check_fit(config, network, train_set.classes)
    if config.model.pretrained and not resume:
        print(load_encoder_weights(network.encoder, config.model.encoder, config.model.weights))
    if config.model.freeze_position_embedding:
        network.freeze_position_embedding()
    cotraining = CoTraining(network.to(device).train(), config, autocast)
    options = config.optimizer
    optimizer = torch.optim.AdamW(
        network.parameter_groups(options.lr, options.head_lr_factor, options.weight_decay),
        betas=(options.beta1, options.beta2),
    )
    state = {"iteration": 0, "best": -1.0, "seconds": 0.0}
    if resume:
        state = restore(run, cotraining, optimizer, device)
        run.write_config(config)
    else:
        run.create(config)
    loader = training_loader(
        train_set,
        batch_size=config.train.batch_size,
        seed=config.seed,
        iterations=config.train.iterations,
        start_iteration=state["iteration"],
        workers=config.data.workers,
        pin_memory=device.type == "cuda",
        **to_dict(config.augment),
    )
    total = config.train.iterations
    started = time.monotonic() - state["seconds"]
    bar = tqdm(total=total, initial=state["iteration"], desc=config.name, unit="it")
    with bar, StopRequest() as stop:
        for batch in loader:
            iteration = state["iteration"]
            factor = learning_rate_factor(
                iteration, total, options.warmup_iterations, options.power
            )
            for group in optimizer.param_groups:
                group["lr"] = options.lr * group["lr_scale"] * factor
            batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}

            loss, terms = cotraining.step(batch, iteration)
            if not torch.isfinite(loss):
                raise UserError(describe_divergence(iteration, terms, batch, train_set, run))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if options.clip_norm > 0:
                torch.nn.utils.clip_grad_norm_(network.parameters(), options.clip_norm)
            optimizer.step()
            cotraining.update_assignment(iteration)

            iteration += 1
            state |= {"iteration": iteration, "seconds": time.monotonic() - started}
            bar.update()
            if iteration % config.train.log_every == 0 or iteration == total:
                log_training(run, bar, cotraining, config, state, loss, terms, factor)
            due = config.train.evaluate_every
            if due and iteration % due == 0 and iteration < total:
                scores = score(config, cotraining, val_set, device, autocast, run)
                log_scores(run, bar, iteration, scores)
                keep_best(run, config, cotraining, val_set, scores, state)
            if stop.signal or iteration % config.train.checkpoint_every == 0 or iteration == total:
                save(run, config, cotraining, optimizer, train_set, state)
            if stop.signal:
                bar.close()
                print(f"stopped at iteration {iteration}; continue with: "
                      f"python train.py --resume {run.path}", file=sys.stderr)
                return 128 + stop.signal
    return finish(config, run, cotraining, val_set, device, autocast, state)


def check_fit(config: Config, network: CoSANetwork, classes: Sequence[str]) -> None:
    """Find what would otherwise fail in the first step or the first evaluation.

    Raises:
        UserError: the crop is no whole number of patches, or an evaluated class is unknown.
    """
    crop, patch = config.augment.crop_size, network.patch_size
    if crop % patch:
        near = max(1, round(crop / patch)) * patch
        raise UserError(f"augment.crop_size={crop} is no multiple of the encoder's patch size "
                        f"{patch}: use {near}")
    for name in config.evaluate.coexistence_classes:
        if name not in classes:
            raise UserError(f"evaluate.coexistence_classes: the data set has no class '{name}'"
                            f"{nearest(name, classes)}")


def finish(
    config: Config,
    run: RunFolder,
    cotraining: CoTraining,
    val_set: SegmentationDataset,
    device: torch.device,
    autocast: Any,
    state: dict[str, Any],
) -> int:
    """Score the trained network: on the validation and, where there is one, the test images."""
    scores = score(config, cotraining, val_set, device, autocast, run)
    run.log({"iteration": state["iteration"], "evaluation": scores})
    keep_best(run, config, cotraining, val_set, scores, state)
    split = "val"
    if config.data.name == "scenes":
        split = "test"
        test_set = build_dataset(config.data, split)
        scores = score(config, cotraining, test_set, device, autocast, run)
    xi, xi_aux = cotraining.xi()
    training_seconds = round(state["seconds"], 1)
    run.write_summary({
        **scores, "split": split, "iterations": state["iteration"], "xi": xi, "xi_aux": xi_aux,
        "best_validation_score": state["best"], "evaluation_seconds": scores["seconds"],
        "seconds": training_seconds,
    })
    print(format_table(scores))
    print(f"{split} scores of the final network after {training_seconds} s of training; "
          f"all files are in {run.path}, pictures in {run.panels}")
    return 0


class StopRequest:
    """Remembers SIGINT or SIGTERM so that the loop can save before it leaves.

    A second signal of the same kind acts at once. Outside of the ``with`` block all is as before.
    """

    def __enter__(self) -> StopRequest:
        self.signal = 0
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._former = {number: signal.signal(number, self._remember) for number in numbers}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: Any) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)


def score(
    config: Config,
    cotraining: CoTraining,
    dataset: SegmentationDataset,
    device: torch.device,
    autocast: Any,
    run: RunFolder,
) -> dict[str, Any]:
    """Scores of the assignment network, with panels in the run folder."""
    options = config.evaluate
    return evaluate(
        cotraining.assignment.network,
        dataset,
        thresholds=cotraining.xi(),
        image_size=options.image_size,
        scales=options.scales,
        flip=options.flip,
        batch_size=options.batch_size,
        coexistence_classes=options.coexistence_classes,
        device=device,
        panels_folder=run.panels if options.panels else None,
        panels=options.panels,
        autocast=autocast,
        max_images=options.max_images,
    )


def keep_best(
    run: RunFolder,
    config: Config,
    cotraining: CoTraining,
    dataset: SegmentationDataset,
    scores: dict[str, Any],
    state: dict[str, Any],
) -> None:
    """Write best.pth if the validation score is the highest so far.

    The score is the label-free mIoU; where no segmentation is trained the CAM's best mIoU, and
    without masks the classification's mean average precision.
    """
    segments = config.loss.c2s > 0 or config.loss.c2s_aux > 0
    name = "miou" if segments else "cam_best_miou"
    value = scores.get(name, scores["classification_map"])
    if value is None or value <= state["best"]:
        return
    state["best"] = value
    checkpoint.save_weights(
        run.best,
        cotraining.assignment.network,
        config=to_dict(config),
        classes=dataset.classes,
        palette=dataset.palette,
        thresholds=cotraining.xi(),
    )


def save(
    run: RunFolder,
    config: Config,
    cotraining: CoTraining,
    optimizer: torch.optim.Optimizer,
    dataset: SegmentationDataset,
    state: dict[str, Any],
) -> None:
    """Write last.pth: all that resuming needs, and all that inference needs."""
    about = checkpoint.describe(
        to_dict(config), dataset.classes, dataset.palette, cotraining.xi()
    )
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    checkpoint.save(run.last, {
        "about": about,
        **cotraining.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": {"cpu": torch.get_rng_state(), "cuda": cuda},
        "state": dict(state),
    })


def restore(
    run: RunFolder,
    cotraining: CoTraining,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> dict[str, Any]:
    """Load last.pth into the networks, thresholds, optimizer and random generators."""
    content = checkpoint.read(run.last)
    # The file's options would undo an override given on resuming.
    configured = [{k: v for k, v in group.items() if k != "params"}
                  for group in optimizer.param_groups]
    try:
        cotraining.load_state_dict(content)
        optimizer.load_state_dict(content["optimizer"])
        state, rng = content["state"], content["rng"]
    except (KeyError, RuntimeError, ValueError) as error:
        reason = checkpoint.one_line(error)
        raise UserError(f"{run.last} does not fit this configuration ({reason}): "
                        "resume with the model and classes that the run began with") from error
    for group, options in zip(optimizer.param_groups, configured, strict=True):
        group.update(options)
    torch.set_rng_state(rng["cpu"])
    if device.type == "cuda" and len(rng["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(rng["cuda"])
    run.forget_after(state["iteration"])
    return state


def log_training(
    run: RunFolder,
    bar: tqdm,
    cotraining: CoTraining,
    config: Config,
    state: dict[str, Any],
    loss: torch.Tensor,
    terms: dict[str, torch.Tensor],
    factor: float,
) -> None:
    """One line in metrics.jsonl, and the same on the progress bar."""
    xi, xi_aux = cotraining.xi()
    losses = {"loss": loss.item(), **{name: term.item() for name, term in terms.items()}}
    speed = (bar.format_dict["rate"] or math.nan) * config.train.batch_size
    run.log({
        "iteration": state["iteration"], **losses, "xi": xi, "xi_aux": xi_aux,
        "lr": config.optimizer.lr * factor, "seconds": round(state["seconds"], 2),
    })
    shown = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
    bar.set_postfix_str(f"{shown} xi {xi:.2f}/{xi_aux:.2f} {speed:.1f} images/s")


def log_scores(run: RunFolder, bar: tqdm, iteration: int, scores: dict[str, Any]) -> None:
    """Scores of a periodic evaluation: metrics.jsonl and one line above the progress bar."""
    run.log({"iteration": iteration, "evaluation": scores})
    names = ("miou", "cam_miou", "aux_cam_miou", "classification_map")
    shown = [f"{name} {100 * scores[name]:.1f}" for name in names if scores.get(name) is not None]
    bar.write(f"iteration {iteration}: " + ", ".join(shown))


def describe_divergence(
    iteration: int,
    terms: dict[str, torch.Tensor],
    batch: dict[str, torch.Tensor],
    dataset: SegmentationDataset,
    run: RunFolder,
) -> str:
    """One sentence about a loss that is not finite."""
    bad = [name for name, term in terms.items() if not torch.isfinite(term)]
    images = ", ".join(dataset.names[i] for i in batch["index"].tolist())
    return (f"the loss is not finite at iteration {iteration} (terms: {', '.join(bad) or 'sum'}; "
            f"images: {images}): lower optimizer.lr or set optimizer.clip_norm, "
            f"and resume from {run.last} if it is there")


if __name__ == "__main__":
    run_program(main)
