"""One step of co-training with swapping assignments: a batch becomes named loss terms.

The assignment network (AN) turns the weak view into pseudo-labels; the online network (ON) sees
the strong view. CAMs of AN supervise the segmentation of ON, segmentation of AN supervises the
CAMs of ON (Eq. 2 of CoSA).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cosa import losses
from cosa.cam import filter_by_labels, free_of_padding, normalize, resize
from cosa.config import Config
from cosa.core.device import weights_cast_once
from cosa.core.errors import UserError
from cosa.ema import AssignmentNetwork
from cosa.network import CoSANetwork, NetworkOutput
from cosa.predict import multi_scale
from cosa.present import PresentClasses
from cosa.regularizers.base import Context, Regularizer
from cosa.regularizers.registry import build_regularizers
from cosa.targets import CamTargets, SegTargets, cam_pseudo_labels, perplexity, seg_pseudo_labels
from cosa.threshold import DynamicThreshold
from cosa.training.compile import Compiled

CLASSIFICATION = ("cls", "cls_aux")
"""The terms of the warm-up; all others need pseudo-labels."""

CAM_TO_SEG = {"c2s": "cam", "c2s_aux": "aux_cam"}
"""The terms of Eq. (5), which share the segmentation's probabilities, and their targets."""

TARGETS = {**CAM_TO_SEG, "csc": "aux_cam", "s2c": "seg"}
"""Term -> the map of the assignment network that supervises it."""


class CoTraining:
    """Both networks, both thresholds, the regularizers, and the step that ties them together.

    Args:
        network: the online network, on its device.
        config: its ``loss``, ``method``, ``teacher``, ``threshold`` and ``regularizers`` sections
            and ``train.iterations`` are read.
        autocast: makes the context in which the networks run; losses and targets are float32.

    Raises:
        UserError: no loss term is switched on at the first iteration.
    """

    def __init__(
        self,
        network: CoSANetwork,
        config: Config,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        self.online = network
        self.assignment = AssignmentNetwork(network)
        self.config = config
        self.autocast = autocast
        # Regularizers call the networks as they are, at sizes and with parts of their own.
        compiled = Compiled if config.train.compile else lambda network: network
        self._student, self._teacher = compiled(self.online), compiled(self.assignment)
        self.mark: Callable[[str], None] = lambda phase: None
        """Called at the end of each phase of a step; the benchmark times them."""
        self.thresholds = {"cam": self._new_threshold(), "aux_cam": self._new_threshold()}
        self.regularizers = build_regularizers(
            config.regularizers, network.classifier.in_channels, network.num_classes,
            vars(config.loss),
        ).to(next(network.parameters()).device)
        if not self.active_terms(0) and not self.active_regularizers(0):
            raise UserError("no loss term is switched on at the first iteration: set loss.cls or "
                            "loss.cls_aux above 0, or another one and method.cls_iterations=0")

    def step(
        self, batch: dict[str, Tensor], iteration: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one batch, Eq. (12) of CoSA plus the regularizers.

        Args:
            batch: weak, strong (B, 3, S, S) in [0, 1]; image_labels (B, C) float in {0, 1};
                valid (B, S, S) bool, False on padding; present, if it is there, what
                ``cosa.present.present_index`` makes of the labels; for CSD what
                ``PartnerViews`` adds; all on the networks' device but what
                ``cosa.data.loader.to_device`` leaves on the CPU.
            iteration: counted from 0; decides which terms have started.

        Returns:
            The weighted sum, with gradient, and each active term unweighted, detached. Several
            processes give their shares of the batch; the mean of their results is the batch's.

        Raises:
            NotFiniteError: the assignment network's activations are NaN.
        """
        assigned = self.assign(batch, self.needed_maps(iteration))
        self.adapt_thresholds([assigned])
        self.mark("teacher")
        output = self.see(batch)
        self.mark("student")
        # Only now is the host to know the threshold: a GPU is busy with the student meanwhile.
        targets = self.make_targets(assigned)
        self.mark("targets")
        weights, terms = self.terms(batch, output, targets, iteration)
        total = sum(weight * terms[name] for name, weight in weights.items())
        self.mark("losses")
        return total, {name: term.detach() for name, term in terms.items()}

    # The parts of a step, in their order.

    def needed_maps(self, iteration: int) -> set[str]:
        """The assignment network's maps that the terms of this iteration read."""
        maps = {TARGETS[name] for name in self.active_terms(iteration) if name in TARGETS}
        return maps.union(*(r.needs for r in self.active_regularizers(iteration)))

    @torch.no_grad()
    def assign(self, batch: dict[str, Tensor], maps: set[str]) -> dict[str, Any]:
        """What the assignment network sees in the weak view.

        Returns:
            "present" -> the batch's ``PresentClasses``; each of ``maps`` -> it, of these classes
            alone, CAMs normalised over the valid area; nothing for no maps.
        """
        if not maps:
            return {}
        teacher, valid = self.config.teacher, batch["valid"]
        present = PresentClasses.of(batch["image_labels"], batch.get("present"))
        with self.autocast(), weights_cast_once(self.assignment):
            prediction = multi_scale(
                self._teacher, batch["weak"], teacher.scales, teacher.flip, maps=maps,
                present=present, normalized=False,
            )
        assigned: dict[str, Any] = {"present": present, "valid": valid}
        for key in maps:
            assigned[key] = getattr(prediction, key)
            if key in self.thresholds:
                # Whatever fires on the padding sets the scale of nothing.
                cam = normalize(assigned[key], valid[:, None])
                assigned[key] = filter_by_labels(cam, present.held)
        return assigned

    @torch.no_grad()
    def adapt_thresholds(self, parts: Sequence[dict[str, Any]]) -> None:
        """Take in the confidences of a batch, given in one or several parts of :meth:`assign`."""
        for key, threshold in self.thresholds.items():  # in one order in all processes
            if self.config.threshold.dynamic and key in parts[0]:
                cells = [self._confidence_cells(part[key], part["valid"]) for part in parts]
                confidence, counted = (torch.cat(found) for found in zip(*cells, strict=True))
                threshold.push(confidence, counted)

    def see(self, batch: dict[str, Tensor]) -> NetworkOutput:
        """The online network's output for the strong view."""
        with self.autocast():
            return self._student(batch["strong"])

    @torch.no_grad()
    def make_targets(self, assigned: dict[str, Any]) -> dict[str, Any]:
        """Pseudo-labels from what :meth:`assign` returned: map -> its targets.

        Raises:
            NotFiniteError: the assignment network's activations are NaN.
        """
        present = assigned.get("present")
        targets: dict[str, Any] = {
            key: self._label(assigned[key], self._threshold(key), present)
            for key in self.thresholds if key in assigned
        }
        if "seg" in assigned:
            sharpened = seg_pseudo_labels(
                assigned["seg"], present.held, self.config.method.temperature
            )
            targets["seg"] = SegTargets(sharpened, present)
        return targets

    def terms(
        self, batch: dict[str, Tensor], output: NetworkOutput, targets: dict, iteration: int
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Name -> weight, and name -> unweighted scalar with gradient, of the active terms."""
        weights = self.active_terms(iteration)
        terms = self._terms(list(weights), output, batch, targets)
        regularizers = self.active_regularizers(iteration)
        if regularizers:
            context = self._context(batch, output, targets, iteration)
            for regularizer in regularizers:
                weights |= regularizer.weights()
                terms |= regularizer(context)
        return weights, terms

    def active_terms(self, iteration: int) -> dict[str, float]:
        """Name and weight of the terms of ``loss`` that are switched on and have started."""
        method, loss = self.config.method, self.config.loss
        start = {name: method.cls_iterations for name in ("c2s", "c2s_aux", "csc")}
        start["s2c"] = max(method.cls_iterations, method.s2c_start)
        start |= {name: 0 for name in CLASSIFICATION}
        weights = {
            name: getattr(loss, name)
            for name in (*CLASSIFICATION, "c2s", "c2s_aux", "s2c", "csc")
            if iteration >= start[name]
        }
        for regularizer in self.active_regularizers(iteration):
            for name, factor in regularizer.loss_factors().items():
                weights[name] *= factor
        return {name: weight for name, weight in weights.items() if weight > 0}

    def active_regularizers(self, iteration: int) -> list[Regularizer]:
        """Those that have started: with pseudo-labels to read, after the warm-up."""
        warm_up = self.config.method.cls_iterations
        return [
            regularizer for regularizer in self.regularizers.values()
            if iteration >= max(regularizer.options.start, warm_up if regularizer.needs else 0)
        ]

    def update_assignment(self, iteration: int) -> None:
        """Move the assignment network towards the online one, after an optimizer step."""
        momentum = self.config.teacher.momentum
        if self.config.teacher.momentum_ramp:
            momentum = min(momentum, (1 + iteration) / (10 + iteration))
        self.assignment.update(self.online, momentum)

    def xi(self) -> tuple[float | None, float | None]:
        """The thresholds in force, of M' and of the auxiliary M'.

        None for a dynamic one that no batch has adapted: no term uses it, or none has begun.
        """
        if not self.config.threshold.dynamic:
            return (self.config.threshold.fixed,) * 2
        cam, aux_cam = (self.thresholds[key] for key in ("cam", "aux_cam"))
        return cam.value if cam.started else None, aux_cam.value if aux_cam.started else None

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs of this object."""
        return {
            "online": self.online.state_dict(),
            "assignment": self.assignment.state_dict(),
            "thresholds": {k: t.state_dict() for k, t in self.thresholds.items()},
            "regularizers": dict(self.regularizers.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.online.load_state_dict(state["online"])
        self.assignment.load_state_dict(state["assignment"])
        # Checkpoints from before there were regularizers have no such entry.
        self.regularizers.load_state_dict(state.get("regularizers", {}))
        for key, threshold in self.thresholds.items():
            threshold.load_state_dict(state["thresholds"][key])

    def _new_threshold(self) -> DynamicThreshold:
        options = self.config.threshold
        return DynamicThreshold(
            queue_length=options.queue_length,
            initial=options.initial,
            smoothing=options.smoothing,
            min_confidence=options.min_confidence,
            variance_floor=options.variance_floor,
        )

    def _threshold(self, key: str) -> float:
        options = self.config.threshold
        return self.thresholds[key].value if options.dynamic else options.fixed

    def _context(
        self, batch: dict[str, Tensor], output: NetworkOutput, targets: dict, iteration: int
    ) -> Context:
        xi = targets["cam"].threshold if "cam" in targets else None
        return Context(
            batch=batch,
            output=output,
            targets=targets,
            online=self.online,
            assignment=self.assignment,
            pseudo_labels=partial(self._pseudo_labels, xi),
            cells=self._cells,
            iteration=iteration,
            progress=iteration / self.config.train.iterations,
            autocast=self.autocast,
        )

    @torch.no_grad()
    def _pseudo_labels(
        self, xi: float, cam: Tensor, image_labels: Tensor, valid: Tensor,
        index: Tensor | None = None,
    ) -> CamTargets:
        """Targets of another view of the batch or of other images, at the batch's threshold."""
        present = PresentClasses.of(image_labels, index)
        cam = resize(present.select(cam), valid.shape[-2:])
        cam = normalize(F.relu(cam), valid[:, None])
        return self._label(filter_by_labels(cam, present.held), xi, present)

    def _cells(self, target: CamTargets, grid: tuple[int, int]) -> CamTargets:
        """A CAM averaged over the cells of a coarser grid, and labelled there."""
        cam = F.interpolate(target.cam, grid, mode="area")
        return self._label(cam, target.threshold, target.present)

    def _label(self, cam: Tensor, xi: float, present: PresentClasses) -> CamTargets:
        method = self.config.method
        places, confidence = cam_pseudo_labels(cam, xi)
        doubt = perplexity(confidence, xi, method.perplexity_alpha, method.perplexity_beta)
        return CamTargets(cam, present.name(places), doubt, xi, present)

    def _confidence_cells(self, cam: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Confidences averaged over coarse cells, and which of these are free of padding."""
        grid = [side // self.config.threshold.cell for side in cam.shape[-2:]]
        confidence = F.interpolate(cam.amax(dim=1, keepdim=True), grid, mode="area")[:, 0]
        return confidence, free_of_padding(valid, grid)

    def _terms(
        self, names: list[str], output: NetworkOutput, batch: dict, targets: dict
    ) -> dict[str, Tensor]:
        """The terms of ``loss``, unweighted, in the order of ``names``."""
        terms = self._cam_to_seg([n for n in names if n in CAM_TO_SEG], output, batch, targets)
        for name in names:
            if name not in CAM_TO_SEG:
                terms[name] = getattr(self, f"_{name}")(output, batch, targets)
        return {name: terms[name] for name in names}

    def _cam_to_seg(
        self, names: list[str], output: NetworkOutput, batch: dict, targets: dict
    ) -> dict[str, Tensor]:
        if not names:
            return {}
        used = [targets[CAM_TO_SEG[name]] for name in names]
        doubts = [target.perplexity if self.config.method.raw else None for target in used]
        values = losses.cams_to_seg(
            output.seg, [target.labels for target in used], doubts, batch["valid"]
        )
        return dict(zip(names, values, strict=True))

    # One method for each other term of the loss section, called by the name it has there.

    def _cls(self, output: NetworkOutput, batch: dict, targets: dict) -> Tensor:
        return losses.classification(output.logits, batch["image_labels"])

    def _cls_aux(self, output: NetworkOutput, batch: dict, targets: dict) -> Tensor:
        return losses.classification(output.aux_logits, batch["image_labels"])

    def _s2c(self, output: NetworkOutput, batch: dict, targets: dict) -> Tensor:
        target = targets["seg"].cells(output.cam.shape[-2:])
        return losses.seg_to_cam(output.cam, target, valid=batch["valid"])

    def _csc(self, output: NetworkOutput, batch: dict, targets: dict) -> Tensor:
        """The auxiliary CAM's pseudo-labels are made anew at the token grid of the online CAM."""
        grid = output.cam.shape[-2:]
        cells = self._cells(targets["aux_cam"], grid)
        return losses.contrastive_separation(
            output.cam,
            cells.labels,
            cells.perplexity,
            epsilon=self.config.method.csc_epsilon,
            temperature=self.config.method.csc_temperature,
            valid=free_of_padding(batch["valid"], grid),
        )
