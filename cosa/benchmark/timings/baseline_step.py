"""The same training step written straightforwardly, as the released programs do.

What ``python -m cosa.benchmark train --baseline`` compares with: everything in float32 without
TensorFloat-32, attention by plain matrix products, the maps of all classes at pixel size,
pseudo-labels image by image, scikit-learn's mixture on all confidences of the queue at each
iteration, one optimizer kernel per tensor, and a look at every loss. It computes the same terms
from the same batch, which the tests hold it to.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.mixture import GaussianMixture
from torch import Tensor

from cosa import losses
from cosa.cam import free_of_padding, normalize, resize
from cosa.config import Config
from cosa.core.device import full_precision
from cosa.core.errors import UserError
from cosa.cotrain import CoTraining
from cosa.predict import scaled_size
from cosa.targets import cam_pseudo_labels, perplexity, seg_pseudo_labels
from cosa.training.optimizer import learning_rate_factor

CAMS = ("cam", "aux_cam")


class Baseline:
    """A training whose step is the textbook's.

    Args:
        cotraining: the networks, which are trained on; its own step is not used.
        config: of the training.

    Raises:
        UserError: a regularizer is on; the baseline has none.
    """

    def __init__(self, cotraining: CoTraining, config: Config) -> None:
        if cotraining.regularizers:
            raise UserError("the baseline has no regularizers, and would not be compared with the "
                            "same step: set their weights to 0, or leave out --baseline")
        self.config = config
        self.online, self.assignment = cotraining.online, cotraining.assignment.network
        self.active, self.terms = cotraining.active_terms, cotraining.terms
        for network in (self.online, self.assignment):
            for module in network.modules():
                if hasattr(module, "fused_attn"):
                    module.fused_attn = False
        options = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.online.parameter_groups(
                options.lr, options.head_lr_factor, options.weight_decay
            ),
            betas=(options.beta1, options.beta2), foreach=False, fused=False,
        )
        self.thresholds = {key: MixtureThreshold(config) for key in CAMS}

    def step(self, batch: dict[str, Tensor], iteration: int) -> dict[str, float]:
        """Loss, gradient, optimizer and average; return "loss" and the terms, unweighted."""
        with full_precision():
            weights = self.active(iteration)
            targets = self.targets(batch, {self.terms[name].reads for name in weights} - {None})
            output = self.online(batch["strong"])
            terms = {name: self.term(name, output, batch, targets) for name in weights}
            loss = sum(weight * terms[name] for name, weight in weights.items())
            self._move(loss, iteration)
        return {"loss": loss.item(), **{name: term.item() for name, term in terms.items()}}

    @torch.no_grad()
    def targets(self, batch: dict[str, Tensor], maps: set[str]) -> dict[str, tuple | Tensor]:
        """The pseudo-labels: "cam" and "aux_cam" -> (cam, labels, perplexity, xi), "seg"."""
        if not maps:
            return {}
        prediction = self.predict(batch["weak"])
        targets: dict[str, tuple | Tensor] = {
            key: self.cam_targets(key, prediction[key], batch) for key in CAMS if key in maps
        }
        if "seg" in maps:
            temperature = self.config.method.temperature
            targets["seg"] = torch.stack([
                seg_pseudo_labels(seg[None], labels[None], temperature)[0]
                for seg, labels in zip(prediction["seg"], batch["image_labels"], strict=True)
            ])
        return targets

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """The assignment network's maps of all classes, over scales and flips, in pixels."""
        size = tuple(images.shape[-2:])
        total: dict[str, Tensor | float] = dict.fromkeys((*CAMS, "seg"), 0.0)
        for scale in self.config.teacher.scales:
            scaled = resize(images, scaled_size(size, scale, self.assignment.stride))
            views = [self.assignment(scaled)]
            if self.config.teacher.flip:
                views.append(self.assignment(scaled.flip(-1)))
            for key in total:
                maps = [resize(getattr(view, key), size) for view in views]
                maps[1:] = [mirrored.flip(-1) for mirrored in maps[1:]]
                stacked = torch.stack(maps)
                fused = stacked.sum(0) if key == "seg" else F.relu(stacked.amax(0))
                total[key] = total[key] + fused
        return total

    def cam_targets(
        self, key: str, cams: Tensor, batch: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        """CAM, labels, perplexity and threshold of a batch, image by image."""
        method, options = self.config.method, self.config.threshold
        filtered, confidences = [], []
        for cam, labels, valid in zip(
            cams, batch["image_labels"], batch["valid"], strict=True
        ):
            cam = normalize(cam, valid)
            cam = cam * labels[:, None, None]
            filtered.append(cam)
            grid = [side // options.cell for side in cam.shape[-2:]]
            cells = F.interpolate(cam.amax(0)[None, None], grid, mode="area")[0, 0]
            confidences.append(cells[free_of_padding(valid[None], grid)[0]].cpu().numpy())
        xi = options.fixed
        if options.dynamic:
            xi = self.thresholds[key].update(np.concatenate(confidences))
        labels, doubts = [], []
        for cam in filtered:
            label, confidence = cam_pseudo_labels(cam[None], xi)
            labels.append(label[0])
            doubts.append(
                perplexity(confidence, xi, method.perplexity_alpha, method.perplexity_beta)[0]
            )
        return torch.stack(filtered), torch.stack(labels), torch.stack(doubts), xi

    def term(self, name: str, output, batch: dict[str, Tensor], targets: dict) -> Tensor:
        """One term of the loss."""
        method, valid = self.config.method, batch["valid"]
        if name == "cls":
            return losses.classification(output.logits, batch["image_labels"])
        if name == "cls_aux":
            return losses.classification(output.aux_logits, batch["image_labels"])
        if name == "s2c":
            return losses.seg_to_cam(output.cam, targets["seg"], valid=valid)
        cam, labels, doubt, xi = targets[self.terms[name].reads]
        if name != "csc":
            return losses.cam_to_seg(output.seg, labels, doubt if method.raw else None, valid)
        grid = output.cam.shape[-2:]
        labels, confidence = cam_pseudo_labels(F.interpolate(cam, grid, mode="area"), xi)
        doubt = perplexity(confidence, xi, method.perplexity_alpha, method.perplexity_beta)
        return losses.contrastive_separation(
            output.cam, labels, doubt, method.csc_epsilon, method.csc_temperature,
            free_of_padding(valid, grid),
        )

    def _move(self, loss: Tensor, iteration: int) -> None:
        options, teacher = self.config.optimizer, self.config.teacher
        total = self.config.train.iterations
        factor = learning_rate_factor(iteration, total, options.warmup_iterations, options.power)
        for group in self.optimizer.param_groups:
            group["lr"] = options.lr * group["lr_scale"] * factor
        self.optimizer.zero_grad()
        loss.backward()
        if options.clip_norm:
            torch.nn.utils.clip_grad_norm_(
                self.online.parameters(), options.clip_norm, foreach=False
            )
        self.optimizer.step()
        momentum = teacher.momentum
        if teacher.momentum_ramp:
            momentum = min(momentum, (1 + iteration) / (10 + iteration))
        with torch.no_grad():
            for average, current in zip(
                self.assignment.parameters(), self.online.parameters(), strict=True
            ):
                average.mul_(momentum).add_(current, alpha=1 - momentum)


class MixtureThreshold:
    """The dynamic threshold by scikit-learn's mixture on every confidence of the queue."""

    def __init__(self, config: Config) -> None:
        self.options = config.threshold
        self.value = config.threshold.initial
        self.queue: deque[np.ndarray] = deque(maxlen=config.threshold.queue_length)

    def update(self, confidence: np.ndarray) -> float:
        """Take in the confidences of a batch, (n,), and return the new threshold."""
        options = self.options
        if options.min_confidence > 0:
            confidence = confidence[confidence > options.min_confidence]
        self.queue.append(confidence)
        samples = np.concatenate(self.queue)[:, None]
        if len(samples) < 2:
            return self.value
        mixture = GaussianMixture(2, reg_covar=options.variance_floor, random_state=0)
        mixture.fit(samples)
        low, high = np.sort(mixture.means_.ravel())
        grid = np.linspace(low, high, 1000)
        upper = mixture.predict_proba(grid[:, None])[:, mixture.means_.ravel().argmax()] > 0.5
        if upper.any() and not upper.all():
            fit = float(grid[upper.argmax()])
            self.value = options.smoothing * self.value + (1 - options.smoothing) * fit
        return self.value
