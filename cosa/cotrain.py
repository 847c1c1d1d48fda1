"""One step of co-training with swapping assignments, and its loss: Eq. (2) and (12) of CoSA.

The assignment network (AN) turns the weak view into pseudo-labels; the online network (ON) sees
the strong view. CAMs of AN supervise the segmentation of ON, segmentation of AN supervises the
CAMs of ON. What each term of the loss is stands in ``cosa.terms``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cosa.cam import filter_by_labels, normalize
from cosa.core.errors import UserError
from cosa.ema import AssignmentNetwork, ema_momentum
from cosa.losses import Sum, divide
from cosa.network import CoSANetwork, NetworkOutput
from cosa.predict import MAPS, fuse, passes
from cosa.present import PresentClasses
from cosa.regularizers.base import Context, Regularizer
from cosa.targets import Labeller
from cosa.terms import Labelled, Term

Network = Callable[[Tensor], NetworkOutput]
"""A network, or what compiles it."""
Mark = Callable[[str], None]
"""Called with the name of each phase of a step at its end."""
READ = ("logits", "aux_logits", "cam", "aux_cam", "seg")
"""The parts of the online network's output that CoSA's own losses read."""


class Calls:
    """How a step calls its functions of tensors: plainly. Others may replay them.

    Such a function does the same operations whenever its key and the shapes of its arguments are
    the same, and waits for nothing. Arguments and results are tensors in lists, tuples and
    dictionaries.
    """

    def call(self, key: tuple, function: Callable[..., Any], *given: Any) -> Any:
        """``function(*given)``, without gradient."""
        return function(*given)

    def losses(
        self, key: tuple, function: Callable[..., dict[str, Tensor]], read: dict[str, Tensor],
        *given: Any,
    ) -> dict[str, Tensor]:
        """``function(read, *given)``, scalars by name, of which the first one has a gradient.

        Args:
            read: may have a gradient; the others have none.
            given: numbers among them may come as scalar tensors.
        """
        return function(read, *given)


class Assigned(NamedTuple):
    """What the assignment network sees in a part of a batch."""

    maps: dict[str, Tensor]
    """By name, in pixels."""
    counts: dict[str, Tensor]
    """Of their confidences, see ``Labeller.count``."""


class CoTraining:
    """Both networks, the labeller between them, the regularizers, and the step of all of them.

    Args:
        network: the online network, on its device. The assignment network starts as its copy.
        terms: those of Eq. (12), of ``cosa.terms.loss_terms``.
        labeller: makes the pseudo-labels.
        regularizers: by name, on the network's device; they add terms of their own.
        scales, flip: of the assignment network's passes, see ``cosa.predict.multi_scale``.
        momentum, momentum_ramp: of the average, see ``cosa.ema.ema_momentum``.
        iterations: of the whole training.
        accumulate: make each step in so many parts of the batch, one after the other.
        autocast: makes the context in which the networks run; losses and targets are float32.
        wrap: how a network is called in the step's own passes (``cosa.training.compile``,
            ``cosa.training.graphs``).
        replay: how the functions between these passes are called.
        all_mean: the mean of a tensor over the processes that share each batch.

    Raises:
        UserError: no loss term is switched on at the first iteration.
    """

    def __init__(
        self,
        network: CoSANetwork,
        *,
        terms: Mapping[str, Term],
        labeller: Labeller,
        regularizers: nn.ModuleDict | None = None,
        scales: tuple[float, ...] = (1.0, 0.5, 1.5),
        flip: bool = True,
        momentum: float = 0.9994,
        momentum_ramp: bool = False,
        iterations: int = 32000,
        accumulate: int = 1,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        wrap: Callable[[nn.Module], Network] = lambda network: network,
        replay: Calls | None = None,
        all_mean: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> None:
        self.online = network
        self.assignment = AssignmentNetwork(network, _products(network, autocast))
        self.labeller = labeller
        self.regularizers = nn.ModuleDict() if regularizers is None else regularizers
        self.terms = terms
        self.scales, self.flip = scales, flip
        self.momentum, self.momentum_ramp = momentum, momentum_ramp
        self.iterations, self.accumulate = iterations, accumulate
        self.autocast, self.all_mean = autocast, all_mean
        self.replay = Calls() if replay is None else replay
        # Regularizers call the networks as they are, at sizes and with parts of their own.
        self._student, self._teacher = wrap(self.online), wrap(self.assignment.called)
        if not self.active_terms(0) and not self.active_regularizers(0):
            raise UserError("no loss term is switched on at the first iteration: set loss.cls or "
                            "loss.cls_aux above 0, or another one and method.cls_iterations=0")

    def step(
        self, batch: dict[str, Tensor], iteration: int, mark: Mark = lambda phase: None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one batch: Eq. (12) of CoSA, and the regularizers.

        Args:
            batch: weak, strong (B, 3, S, S) in [0, 1]; image_labels (B, C) float in {0, 1};
                valid (B, S, S) bool, False on padding; present, if it is there, what
                ``cosa.core.tensors.present_index`` makes of the labels; for CSD what
                ``PartnerViews`` adds; all on the networks' device but what
                ``cosa.data.batches.to_device`` leaves on the CPU.
            iteration: counted from 0; decides which terms have started.
            mark: called with the name of each phase at its end, for who times them.

        Returns:
            The weighted sum, with gradient, and each active term unweighted, detached. Several
            processes give their shares of the batch; the mean of their results is the batch's.
            With ``accumulate`` the gradient of all parts but the last has been added to the
            parameters, and the loss has the value of the whole and the gradient of the last.

        Raises:
            NotFiniteError: the assignment network's activations are NaN.
        """
        active, maps = self.active_terms(iteration), self.needed_maps(iteration)
        parts = split(batch, self.accumulate)
        assigned = [self.assign(part, maps) for part in parts]
        self.labeller.adapt([one.counts for one in assigned])
        mark("teacher")
        if len(parts) == 1 and not self.active_regularizers(iteration):
            return self._losses(active, batch, assigned[0].maps, mark)
        loss, values = 0.0, {}
        for number, part in enumerate(parts):
            with self.autocast():
                output = self._student(part["strong"])
            mark("student")
            if number == 0:
                # Not before: a host that fits ξ does so while the GPU is busy with the student.
                labelled = [self._label(one, assigned.pop(0).maps) for one in parts]
                counts = self._counts(active, labelled)
                mark("targets")
            # The context is not kept under a name: the next part needs the room.
            means = self._weighted(
                active, self._context(labelled[number], output, active, iteration), counts,
                len(part["weak"]) / len(batch["weak"]),
            )
            weighted = means.pop("loss")
            mark("losses")
            if number < len(parts) - 1:
                weighted.backward()
                weighted = weighted.detach()
                mark("backward")
            loss = loss + weighted
            for name, mean in means.items():
                values[name] = values.get(name, 0) + mean.detach()
        return loss, values

    def _losses(
        self, active: Mapping[str, float], batch: dict[str, Tensor], maps: dict[str, Tensor],
        mark: Mark,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The step of a whole batch without regularizers, whose losses can be replayed."""
        with self.autocast():
            output = self._student(batch["strong"])
        mark("student")
        read = {name: getattr(output, name) for name in READ}
        part = _without_images(batch)
        # Not before: a host that fits ξ does so while the GPU is busy with the student.
        xi = {key: self.labeller.threshold(key) for key in self.labeller.thresholds if key in maps}
        mark("targets")

        def losses(
            read: dict[str, Tensor], part: dict[str, Tensor], maps: dict[str, Tensor],
            xi: dict[str, float | Tensor],
        ) -> dict[str, Tensor]:
            seen = self._context(
                self._label(part, maps, xi), replace(output, **read), active, iteration=0
            )
            return self._weighted(active, seen)

        values = self.replay.losses(("losses", *active.items()), losses, read, part, maps, xi)
        mark("losses")
        return values.pop("loss"), {name: value.detach() for name, value in values.items()}

    @torch.no_grad()
    def assign(self, batch: dict[str, Tensor], maps: set[str]) -> Assigned:
        """What the assignment network sees in the weak view: each of ``maps``, in pixels.

        The maps are of the classes alone that an image holds; CAMs are normalised over the valid
        area and filtered by the image's labels.
        """
        if not maps:
            return Assigned({}, {})
        names = sorted(maps)
        self.assignment.refresh()
        with self.autocast():
            views = list(passes(self._teacher, batch["weak"], self.scales, self.flip, names))
        part = _without_images(batch)
        return Assigned(*self.replay.call(("maps", *names), self._fuse, views, part))

    def _fuse(
        self, views: list[dict[str, Tensor]], part: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The maps of an ``Assigned``, and its counts."""
        present, valid = _present(part), part["valid"]
        prediction = fuse(views, valid.shape[-2:], self.flip, present, normalized=False)
        assigned = {key: getattr(prediction, key) for key in views[0] if key in MAPS}
        for key in assigned.keys() & self.labeller.thresholds.keys():
            # Whatever fires on the padding sets the scale of nothing.
            assigned[key] = filter_by_labels(
                normalize(assigned[key], valid[:, None]), present.held
            )
        return assigned, self.labeller.count(assigned, _measured(part))

    @torch.no_grad()
    def _label(
        self, batch: dict[str, Tensor], assigned: dict[str, Tensor],
        xi: Mapping[str, float | Tensor] | None = None,
    ) -> Labelled:
        height, width = (side // self.online.stride for side in batch["valid"].shape[-2:])
        targets = self.labeller.targets(assigned, _present(batch), xi) if assigned else {}
        return Labelled(
            batch=batch, targets=targets, labeller=self.labeller, grid=(height, width)
        )

    def _context(
        self, part: Labelled, output: NetworkOutput, active: Iterable[str], iteration: int
    ) -> Context:
        terms = [self.terms[name] for name in active]
        return Context(
            **{field.name: getattr(part, field.name) for field in fields(Labelled)},
            output=output,
            segmented_by=tuple(term.reads for term in terms if term.of_segmentation),
            online=self.online,
            assignment=self.assignment,
            iteration=iteration,
            progress=iteration / self.iterations,
            autocast=self.autocast,
        )

    def _counts(self, active: Iterable[str], parts: list[Labelled]) -> dict[str, Tensor]:
        """What the active terms of CoSA count in all parts together; nothing for a whole batch."""
        if len(parts) == 1:
            return {}
        return {name: sum(self.terms[name].counts(part).sum() for part in parts) for name in active}

    def _weighted(
        self, active: Mapping[str, float], seen: Context,
        counts: Mapping[str, Tensor] = MappingProxyType({}), share: float = 1.0,
    ) -> dict[str, Tensor]:
        """First "loss", Eq. (12) and what the regularizers add to it, then each term unweighted.

        Args:
            counts, share: see :meth:`_divide`; those of a whole batch by default.
        """
        weights = dict(active)
        sums = {name: self.terms[name].sum(seen) for name in active}
        for regularizer in self.active_regularizers(seen.iteration):
            weights |= regularizer.weights()
            sums |= regularizer(seen)
        means = self._divide(sums, counts, share)
        return {"loss": sum(weight * means[name] for name, weight in weights.items()), **means}

    def _divide(
        self, sums: dict[str, Sum], counts: Mapping[str, Tensor], share: float
    ) -> dict[str, Tensor]:
        """Name -> mean, of which those of all parts and processes make that of the whole batch.

        Args:
            sums: of a part of the batch, which has this ``share`` of its images.
            counts: of the whole batch, as far as they are known: a regularizer takes the part for
                a batch, and what it counts for this share of it.
        """
        if share < 1:
            sums = {
                name: Sum(total, counts.get(name, count / share))
                for name, (total, count) in sums.items()
            }
        return divide(sums, self.all_mean)

    # What is active when

    def active_terms(self, iteration: int) -> dict[str, float]:
        """Name and weight of the terms of Eq. (12) that are switched on and have started."""
        weights = {
            name: term.weight for name, term in self.terms.items() if iteration >= term.start
        }
        for regularizer in self.active_regularizers(iteration):
            for name, factor in regularizer.loss_factors().items():
                weights[name] = factor * weights.get(name, 0.0)
        return {name: weight for name, weight in weights.items() if weight > 0}

    def active_regularizers(self, iteration: int) -> list[Regularizer]:
        """Those that have started."""
        return [r for r in self.regularizers.values() if iteration >= r.start]

    def needed_maps(self, iteration: int) -> set[str]:
        """The assignment network's maps that the terms of this iteration read."""
        maps = {self.terms[name].reads for name in self.active_terms(iteration)} - {None}
        return maps.union(*(r.needs for r in self.active_regularizers(iteration)))

    def update_assignment(self, iteration: int) -> None:
        """Move the assignment network towards the online one, after an optimizer step.

        If batch statistics move, those of the online network become the mean over the processes,
        of which each has seen its share of the batch.
        """
        statistics = self.online.moving_statistics()
        if statistics:
            means = self.all_mean(torch.cat(statistics)).split([len(s) for s in statistics])
            torch._foreach_copy_(statistics, list(means))
        momentum = ema_momentum(iteration, self.momentum, self.momentum_ramp)
        self.assignment.update(self.online, momentum)

    def xi(self) -> tuple[float | None, float | None]:
        """The thresholds in force, of M' and of the auxiliary M'; None for one without any data."""
        return self.labeller.known_thresholds()


    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs of this object."""
        return {
            "online": self.online.state_dict(),
            "assignment": self.assignment.state_dict(),
            "thresholds": self.labeller.state_dict(),
            "regularizers": dict(self.regularizers.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.online.load_state_dict(state["online"])
        self.assignment.load_state_dict(state["assignment"])
        # Checkpoints from before there were regularizers have no such entry.
        self.regularizers.load_state_dict(state.get("regularizers", {}))
        self.labeller.load_state_dict(state["thresholds"])


def _without_images(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is known of the images of a batch."""
    known = {key: batch[key] for key in ("image_labels", "valid")}
    return known | {"present": _present(batch).index}


def split(batch: dict[str, Tensor], parts: int) -> list[dict[str, Tensor]]:
    """A batch in so many parts, at most its size, which differ by one image at most."""
    if parts == 1:
        return [batch]
    chunks = [value.tensor_split(parts) for value in batch.values()]
    return [dict(zip(batch, values, strict=True)) for values in zip(*chunks, strict=True)]


def _products(
    network: nn.Module, autocast: Callable[[], AbstractContextManager]
) -> torch.dtype | None:
    """The precision of matrix products under an autocast, None without one."""
    kind = next(network.parameters()).device.type
    with autocast():
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _measured(batch: dict[str, Tensor]) -> Tensor:
    """(B, S, S) bool: the valid area of images that hold a class, whose confidences are measured.

    Without one, the labels make the CAM 0: as many zeros would be a Gaussian of their own.
    """
    return batch["valid"] & (batch["image_labels"] > 0).any(dim=1)[:, None, None]


def _present(batch: dict[str, Tensor]) -> PresentClasses:
    return PresentClasses.of(batch["image_labels"], batch.get("present"))
