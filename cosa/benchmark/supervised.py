"""The fully supervised bound: CoSA's network, trained on the masks.

Everything but the supervision is that of train.py: network, start of the encoder, optimizer,
schedule, moving average, number and size of the batches, augmentation (the strong view), and the
evaluation of the averaged network. Only this module trains on masks; train.py never reads them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cosa import checkpoint, losses
from cosa.benchmark.scoring import score, scored_split
from cosa.config import Config, load_config, to_dict
from cosa.cotrain import CoTraining
from cosa.data import SegmentationDataset, build_dataset
from cosa.data.loader import TrainingViews, training_loader
from cosa.data.transforms import IGNORE, training_views
from cosa.device import allow_tf32, choose_autocast, choose_device
from cosa.errors import UserError
from cosa.run_folder import RunFolder
from cosa.schedule import learning_rate_factor
from cosa.weights import load_encoder_weights


class SupervisedViews(TrainingViews):
    """The stream of train.py, image by image and view by view, with ``mask`` added.

    ``mask`` is (S, S) int64, aligned with both views; 255 in the padding and where it does not
    count. Raises ``UserError`` if a mask is not of its image's size.
    """

    def views(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        image, mask = self.dataset.image(index), self.dataset.mask(index)
        if mask is None:
            mask = np.full((image.height, image.width), IGNORE, np.uint8)
        if mask.shape != (image.height, image.width):
            raise UserError(f"the mask of {self.dataset.names[index]} is {mask.shape[1]}x"
                            f"{mask.shape[0]} pixels, its image {image.width}x{image.height}: "
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
        UserError: there are no masks, or the loss is no longer finite.
    """
    if not dataset.has_masks:
        raise UserError("the supervised bound needs the masks of the training images: set "
                        "data.masks, or leave the row `supervised` out with --rows")
    network, options, total = cotraining.online, config.optimizer, config.train.iterations
    optimizer = torch.optim.AdamW(
        network.parameter_groups(options.lr, options.head_lr_factor, options.weight_decay),
        betas=(options.beta1, options.beta2),
    )
    loader = training_loader(
        dataset,
        batch_size=config.train.batch_size,
        seed=config.seed,
        iterations=total,
        workers=config.data.workers,
        pin_memory=device.type == "cuda",
        stream=SupervisedViews,
        **to_dict(config.augment),
    )
    for iteration, batch in enumerate(loader):
        factor = learning_rate_factor(iteration, total, options.warmup_iterations, options.power)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * group["lr_scale"] * factor
        batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        with autocast():
            seg = network(batch["strong"]).seg
        loss = losses.cam_to_seg(seg, batch["mask"], None, valid=batch["valid"])
        if not torch.isfinite(loss):
            raise UserError(f"the supervised loss is not finite at iteration {iteration}: "
                            "lower optimizer.lr or set optimizer.clip_norm")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if options.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(network.parameters(), options.clip_norm)
        optimizer.step()
        cotraining.update_assignment(iteration)
        yield loss.item()


def train(config: Config, run: RunFolder) -> None:
    """Train as configured and score the averaged network, into a run folder.

    Raises:
        UserError: data, weights or folder are not usable, or the loss is no longer finite.
    """
    device = choose_device(config.device)
    autocast = choose_autocast(device, config.train.precision)
    allow_tf32(config.train.tf32)
    torch.manual_seed(config.seed)
    dataset = build_dataset(config.data, "train")
    dataset.check()
    network = checkpoint.build_network(to_dict(config), len(dataset.classes))
    if config.model.pretrained:
        print(load_encoder_weights(network.encoder, config.model.encoder, config.model.weights))
    if config.model.freeze_position_embedding:
        network.freeze_position_embedding()
    cotraining = CoTraining(network.to(device).train(), config, autocast)
    run.create(config)

    total, started = config.train.iterations, time.monotonic()
    steps = train_steps(cotraining, config, dataset, device, autocast)
    for iteration, loss in enumerate(tqdm(steps, config.name, total, unit="it"), start=1):
        if iteration % config.train.log_every == 0 or iteration == total:
            run.log({"iteration": iteration, "loss": loss})
    seconds = round(time.monotonic() - started, 1)

    average = cotraining.assignment.network
    checkpoint.save_weights(
        run.path / "supervised.pth", average, config=to_dict(config), classes=dataset.classes,
        palette=dataset.palette,
    )
    scores = score(average, config, build_dataset(config.data, "test"), cotraining.xi())
    run.write_summary({**scores, "split": scored_split(config), "iterations": total,
                       "evaluation_seconds": scores["seconds"], "seconds": seconds})


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the fully supervised bound of a configuration; masks are its supervision."""
    parser = argparse.ArgumentParser(
        prog="python -m cosa.benchmark supervised", description=main.__doc__
    )
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="over the YAML file")
    given = parser.parse_intermixed_args(arguments)
    config = load_config(given.config, given.overrides)
    run = RunFolder(f"{config.output}/{config.name}")
    train(config, run)
    print(f"scores of the averaged network are in {run.summary}")
    return 0
