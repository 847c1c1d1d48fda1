"""What a regularizer is: named terms, sums with their counts, of one co-training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cosa.core.tensors import move
from cosa.core.terminal import note
from cosa.ema import AssignmentNetwork
from cosa.losses import Sum
from cosa.network import CoSANetwork, NetworkOutput
from cosa.targets import CamTargets
from cosa.terms import Seen


@dataclass
class Partner:
    """Single-label images that the data side drew for some images of the batch.

    ``n`` of the B images have one (``cosa.data.partners``); nothing here carries a gradient.
    """

    index: Tensor
    """(n,) int64: which images of the batch have a partner."""
    image_labels: Tensor
    """(n, C) float, one 1 in each row: the only class of the partner."""
    images: Tensor
    """(n, 3, S, S) weak views of the partners, in [0, 1]."""
    valid: Tensor
    """(n, S, S) bool, False on padding."""
    output: NetworkOutput
    """Of the assignment network on ``images``."""
    targets: CamTargets
    """CAM pseudo-labels of ``images`` at pixel resolution, at the threshold in force."""


@dataclass(kw_only=True)
class Context(Seen):
    """What a regularizer sees of a step, beside what CoSA's own terms do.

    With CSD the batch also has partner, partner_valid and partner_class. The last, and
    host_labels, the image_labels of a batch on a GPU once more, are on the CPU if
    ``cosa.data.batches.to_device`` made the batch: what they decide is known without waiting.
    """

    online: CoSANetwork
    assignment: AssignmentNetwork
    iteration: int = 0
    """Counted from 0."""
    progress: float = 0.0
    """``iteration`` over all iterations of the training, in [0, 1)."""
    autocast: Callable[[], AbstractContextManager] = field(default=nullcontext)
    """In this context the networks run."""

    @cached_property
    def partner(self) -> Partner | None:
        """The partners, seen by the assignment network when first asked for; None without any."""
        if "partner_class" not in self.batch:
            return None
        classes = self.batch["partner_class"]
        index = (classes >= 0).nonzero()[:, 0]
        if not len(index):
            return None
        classes, index = (
            move(tensor, self.batch["partner"].device) for tensor in (classes[index, None], index)
        )
        images, valid = self.batch["partner"][index], self.batch["partner_valid"][index]
        labels = torch.zeros_like(self.batch["image_labels"][index])
        labels.scatter_(1, classes, 1)
        with self.autocast():
            output = self.assignment(images)
        targets = self.labeller.label_view(output.cam, labels, valid, classes)
        return Partner(index, labels, images, valid, output, targets)


class Regularizer(nn.Module):
    """Base of all regularizers; its parameters, if any, are trained and saved with the run.

    Args:
        options: its section of the configuration, with at least ``weight`` > 0 and ``start``.
        num_features: D of ``NetworkOutput.features``.
        num_classes: C.
        loss_weights: name -> weight of the terms of the ``loss`` section; 1 where it has none.
        warm_up: iterations without pseudo-labels; those that read some begin after them.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    """Maps of the assignment network that it reads: of cam, aux_cam, seg."""

    def __init__(
        self,
        options: Any,
        num_features: int,
        num_classes: int,
        loss_weights: Mapping[str, float] | None = None,
        warm_up: int = 0,
    ) -> None:
        super().__init__()
        self.options = options
        self.start: int = max(options.start, warm_up if self.needs else 0)
        """The first iteration at which it counts."""
        self.loss_weights = dict(loss_weights or {})
        self._noted: set[str] = set()

    def weights(self) -> dict[str, float]:
        """Name -> weight in the total loss of the terms; those of weight 0 are not computed."""
        raise NotImplementedError

    def loss_factors(self) -> dict[str, float]:
        """Factors on terms of the ``loss`` section that this one replaces in part."""
        return {}

    def forward(self, context: Context) -> dict[str, Sum]:
        """The terms named in :meth:`weights`, unweighted and not divided, float32.

        A term for which the batch holds nothing is 0 over a count of 0; all processes have the
        same terms, since some may hold something.
        """
        raise NotImplementedError

    def note_once(self, message: str) -> None:
        """Tell the user once why a term is skipped."""
        if message not in self._noted:
            self._noted.add(message)
            note(message)
