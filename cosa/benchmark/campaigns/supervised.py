"""The fully supervised bound: CoSA's network, trained on the masks.

Everything but the supervision is that of train.py: network, start of the encoder, optimizer,
schedule, moving average, number and size of the batches, augmentation (the strong view), and the
evaluation of the averaged network. Only this module trains on masks; train.py never reads them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cosa import checkpoint, losses
from cosa.config import Config, load_config, settled, to_dict
from cosa.core import IGNORE
from cosa.core.device import memory_errors_explained
from cosa.core.errors import NotFiniteError, UserError
from cosa.core.memory import in_mebibytes, peak_memory
from cosa.core.terminal import Parser, progress_bar, say
from cosa.cotrain import CoTraining
from cosa.data import SegmentationDataset, build_dataset, resolved
from cosa.data.batches import to_device
from cosa.data.loader import TrainingViews, training_loader
from cosa.data.order import trained_on
from cosa.data.subset import with_masks
from cosa.data.transforms import training_views
from cosa.training.build import build_cotraining, prepare
from cosa.training.evaluation import score, scored_split
from cosa.training.optimizer import build_optimizer, optimizer_step, require_finite
from cosa.training.run_folder import RunFolder


class SupervisedViews(TrainingViews):
    """The stream of train.py, image by image and view by view, with ``mask`` added.

    ``mask`` is (S, S) int64, aligned with both views; 255 in the padding and where it does not
    count. Raises ``UserError`` if a mask is not of its image's size.
    """

    def views(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        image, mask = self.dataset.open_image(index), self.dataset.mask(index)
        width, height = image.size
        if mask is None:
            mask = np.full((height, width), IGNORE, np.uint8)
        if mask.shape != (height, width):
            raise UserError(f"the mask of {self.dataset.names[index]} is {mask.shape[1]}x"
                            f"{mask.shape[0]} pixels, its image {width}x{height}: "
                            "make them one size")
        return training_views(image, rng, mask=mask, **self.augment)


def train_steps(
    cotraining: CoTraining,
    config: Config,
    dataset: SegmentationDataset,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> Iterator[float]:
    """Train ``cotraining.online`` on masks and move the average after it; yield each loss.

    Raises:
        UserError: there are no masks, or the training diverged.
    """
    if not dataset.has_masks:
        raise UserError("the supervised bound needs the masks of the training images: set "
                        "data.masks, or leave the row `supervised` out with --rows")
    network, total = cotraining.online, config.train.iterations
    optimizer = build_optimizer(network, config.optimizer)
    loader = training_loader(
        dataset,
        batch_size=config.train.batch_size,
        seed=config.seed,
        iterations=total,
        workers=config.data.workers,
        pin_memory=device.type == "cuda",
        stream=SupervisedViews,
        keep_decoded=config.data.keep_decoded,
        negatives=config.data.negatives,
        balance=config.data.balance,
        **to_dict(config.augment),
    )
    for iteration, batch in enumerate(loader):
        batch = to_device(batch, device, cotraining.online.mean)
        with autocast():
            seg = network(batch["strong"]).seg
        loss = losses.cam_to_seg(seg, batch["mask"], None, valid=batch["valid"])
        try:
            optimizer.zero_grad()
            _, norm = optimizer_step(optimizer, loss, config.optimizer, iteration, total)
            require_finite(loss, norm)
        except NotFiniteError as error:
            raise UserError(f"the supervised training diverged: {error} at iteration {iteration}; "
                            "lower optimizer.lr or set optimizer.clip_norm") from error
        cotraining.update_assignment(iteration)
        yield loss.item()


def train(config: Config, run: RunFolder) -> None:
    """Train as configured and score the averaged network, into a run folder.

    Training images without a mask take no part.

    Raises:
        UserError: data, weights or folder are not usable, or the training diverged.
    """
    run.check_free()
    device, autocast = prepare(config)
    dataset = build_dataset(config.data, "train")
    dataset.check()
    config = replace(config, data=resolved(config.data, dataset))
    dataset = with_masks(dataset)
    config = settled(config, len(trained_on(dataset.labels, config.data.negatives)))
    cotraining = build_cotraining(config, len(dataset.classes), device, autocast)
    with run.locked():
        run.create(config)

        total, started = config.train.iterations, time.monotonic()
        steps = train_steps(cotraining, config, dataset, device, autocast)
        bar = progress_bar(iterable=steps, total=total, desc=config.name, unit="it")
        for iteration, loss in enumerate(bar, start=1):
            if iteration % config.train.log_every == 0 or iteration == total:
                run.log({"iteration": iteration, "loss": loss})
        seconds = round(time.monotonic() - started, 1)
        memory = in_mebibytes(peak_memory(device))

        average = cotraining.assignment.network
        checkpoint.save_weights(
            run.path / "supervised.pth", average, config=to_dict(config), classes=dataset.classes,
            palette=dataset.palette,
        )
        scores = score(average, config, build_dataset(config.data, "test"), cotraining.xi())
        run.write_summary({**scores, "split": scored_split(config), "iterations": total,
                           "evaluation_seconds": scores["seconds"], "seconds": seconds,
                           "peak_memory_mb": memory})


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the fully supervised bound of a configuration; masks are its supervision."""
    parser = Parser(
        prog="python -m cosa.benchmark supervised", description=main.__doc__
    )
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="over the YAML file")
    given = parser.parse_intermixed_args(arguments)
    config = load_config(given.config, given.overrides)
    run = RunFolder(f"{config.output}/{config.name}")
    with memory_errors_explained():
        train(config, run)
    say(f"scores of the averaged network are in {run.summary}")
    return 0
