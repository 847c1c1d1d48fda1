"""A training as the benchmarks step through it: that of train.py, without logs and checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor

from cosa.config import Config, settled, to_dict
from cosa.cotrain import CoTraining, Mark
from cosa.data import SegmentationDataset
from cosa.data.batches import to_device
from cosa.data.loader import TrainingLoader, training_loader
from cosa.data.order import trained_on
from cosa.training.build import (
    Step,
    build_cotraining,
    build_step,
    check_crop,
    choose_stream,
    prepare,
)
from cosa.training.optimizer import build_optimizer, optimizer_step

CACHED = 3
"""Different batches that are stepped through in turn where loading is not to be timed."""


class Trainer:
    """The training of a configuration, whose steps are made at the last iteration's terms.

    Args:
        config: its device, network, losses, schedule and batch size are used.
        dataset: the training images.

    Raises:
        UserError: weights, device or crop are not usable.
    """

    def __init__(self, config: Config, dataset: SegmentationDataset) -> None:
        images = len(trained_on(dataset.labels, config.data.negatives))
        self.config, self.dataset = settled(config, images), dataset
        config = self.config
        self.device, autocast = prepare(config)
        self.cotraining = build_cotraining(config, len(dataset.classes), self.device, autocast)
        check_crop(config, self.cotraining.online)
        self.optimizer = build_optimizer(
            self.cotraining.online, config.optimizer, self.cotraining.regularizers
        )
        self._step = build_step(self.cotraining)

    def batches(self, iterations: int, workers: int) -> TrainingLoader:
        """Batches from the configured loader, not yet on the device."""
        return training_loader(
            self.dataset, batch_size=self.config.train.batch_size, seed=self.config.seed,
            iterations=iterations, workers=workers, pin_memory=self.device.type == "cuda",
            stream=choose_stream(self.config), keep_decoded=self.config.data.keep_decoded,
            negatives=self.config.data.negatives, balance=self.config.data.balance,
            **to_dict(self.config.augment),
        )

    def cached_batches(self) -> list[dict[str, Tensor]]:
        """The first ``CACHED`` batches, on the device."""
        padding = self.cotraining.online.mean
        return [to_device(batch, self.device, padding) for batch in self.batches(CACHED, 0)]

    def train_on(
        self, batch: dict[str, Tensor], mark: Mark = lambda phase: None
    ) -> None:
        """One iteration of train.py without logging.

        Args:
            batch: on the device.
            mark: called with the name of each phase at its end; the moving average is in none.
        """
        training_step(self.cotraining, self.config, self._step, self.optimizer, batch, mark)


def training_step(
    cotraining: CoTraining,
    config: Config,
    step: Step,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    mark: Mark = lambda phase: None,
) -> None:
    """Targets, losses, backward, optimizer and average, at the last iteration's terms.

    Args:
        step: of :func:`cosa.training.build.build_step`.
        mark: see :func:`cosa.training.optimizer.optimizer_step`.
    """
    total = config.train.iterations
    optimizer.zero_grad()
    # The terms live on until the average has moved, as they do in train.py.
    loss, _terms = step(batch, total - 1, mark)
    optimizer_step(optimizer, loss, config.optimizer, total - 1, total, mark)
    cotraining.update_assignment(total - 1)
