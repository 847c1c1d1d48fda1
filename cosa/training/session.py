"""What a training run keeps: its state, checkpoints, evaluations and best network."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cosa import checkpoint
from cosa.config import Config, to_dict
from cosa.core.declared import check
from cosa.core.distributed import is_main, main_only
from cosa.core.errors import NotFiniteError, UserError, one_line
from cosa.core.memory import in_mebibytes, peak_memory
from cosa.core.terminal import note
from cosa.cotrain import CoTraining
from cosa.data import SegmentationDataset
from cosa.evaluate import Parts, spread
from cosa.training.changes import told
from cosa.training.checkpoints import Rotation
from cosa.training.details import choose_examples, describe_parts, fitted_confidences
from cosa.training.evaluation import draw_images, score, validation_score
from cosa.training.run_folder import RunFolder
from cosa.training.saved import Saved, State
from cosa.training.step_log import StepLog
from cosa.training.tensorboard import Board


@dataclass
class Session:
    """A run between two interruptions: the objects of the training and where they are kept."""

    config: Config
    run: RunFolder
    cotraining: CoTraining
    optimizer: torch.optim.Optimizer
    val_set: SegmentationDataset
    state: State = field(default_factory=State)
    log: StepLog = field(default_factory=StepLog)
    best_weights: dict[str, Any] | None = None
    """The content of best.pth. Checkpoints hold it: going back to one brings back its best."""
    board: Board = field(init=False)
    """What is logged, for TensorBoard."""
    rotation: Rotation = field(init=False)
    """The checkpoints in the run folder."""
    _restored_from: Path | None = field(init=False, default=None)
    _saved_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.board = Board(self.run.tensorboard, self.config.train.tensorboard)
        self.rotation = Rotation(self.run, self.config.train.keep_checkpoints)
        self._saved_at = time.monotonic()

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.cotraining.online.parameters()).device

    def evaluation_due(self) -> bool:
        """Whether a periodic evaluation belongs to this iteration and has not been made."""
        every, done = self.config.train.evaluate_every, self.state.iteration
        if every == 0 or self.finished():  # the final evaluation is not a periodic one
            return False
        return done > self.state.evaluated and done % every == 0

    def evaluation_next(self) -> bool:
        """Whether an evaluation, a periodic one or the final one, is the next thing to do."""
        return self.finished() or self.evaluation_due()

    def finished(self) -> bool:
        """Whether all iterations are done."""
        return self.state.iteration >= self.config.train.iterations

    def logging_due(self) -> bool:
        """Whether a line of metrics.jsonl belongs to this iteration."""
        return self.finished() or self.state.iteration % self.config.train.log_every == 0

    def settling_due(self) -> bool:
        """Whether the steps so far must be read, to be logged or evaluated.

        On a GPU the host does not wait for each step. On the CPU it has waited already.
        """
        waited = self.device.type == "cpu"
        return waited or self.log.full or self.logging_due() or self.evaluation_due()

    def checkpoint_due(self) -> bool:
        """Whether a checkpoint belongs to this iteration; evaluations come after it."""
        return self.state.iteration % self.config.train.checkpoint_every == 0

    def checkpoint_overdue(self) -> bool:
        """Whether the last checkpoint is old by the clock, which the first process looks at."""
        age = time.monotonic() - self._saved_at
        return is_main() and 0 < self.config.train.checkpoint_minutes * 60 <= age

    def evaluate(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        """Score the assignment network on the validation images, log it, keep it if it is best.

        Raises:
            EvaluationStopped: ``should_stop`` returned True; nothing was logged.
        """
        scores = self.score(self.val_set, "val", should_stop)
        spent = round(self.state.seconds, 2)
        self.run.log_evaluation(self.state.iteration, {**scores, "training_seconds": spent})
        self.keep_best(scores)
        self.state.evaluated = self.state.iteration
        if self.finished() or not self.checkpoint_due():
            self.save()  # or a resumed run would repeat the evaluation
        # Else the checkpoint from before it is good enough: large ones take seconds to write.
        return scores

    def score(
        self, dataset: SegmentationDataset, split: str, should_stop: Callable[[], bool]
    ) -> dict[str, Any]:
        """Scores of the assignment network; panels, details and examples in the run folder.

        Args:
            split: "val" or "test", what the data set is.

        Raises:
            UserError: what the network says of an image is not finite.
            EvaluationStopped: ``should_stop`` returned True.
        """
        done, found = self.state.iteration, []
        try:
            scores = score(
                self.cotraining.assignment.network, self.config, dataset, self.cotraining.xi(),
                panels_folder=self.run.panels, should_stop=should_stop, on_parts=found.append,
            )
            for parts in found:
                self._keep_details(parts, dataset, split, should_stop)
                shown = [dataset.names[index]
                         for index in spread(parts.indices, self.config.evaluate.panels)]
                panels = [(name, self.run.panels / f"{name}.png") for name in shown]
                self.board.log_scores(done, split, scores, panels)
            return scores
        except NotFiniteError as error:
            about = f"in the evaluation after iteration {done}"
            raise self.diverged(f"{error} {about}") from error

    def _keep_details(
        self, parts: Parts, dataset: SegmentationDataset, split: str,
        should_stop: Callable[[], bool],
    ) -> None:
        """Write what an evaluation's scores are made of, and draw images that are worth a look."""
        done, xi = self.state.iteration, self.cotraining.xi()
        drawn = self.config.train.report and self.config.evaluate.panels
        examples = choose_examples(parts, dataset.labels) if drawn else []
        files = [f"{done:08d}-{split}-{number:02d}.png" for number in range(len(examples))]
        draw_images(
            self.cotraining.assignment.network, self.config, dataset, xi,
            [one.index for one in examples], [self.run.examples / file for file in files],
            should_stop,
        )
        self.run.write_details({
            "iteration": done, "split": split, "xi": xi,
            "fitted": fitted_confidences(self.cotraining.labeller.thresholds),
            "training_seconds": round(self.state.seconds, 2),
            "peak_memory_mb": in_mebibytes(peak_memory(self.device)),
            **describe_parts(parts, dataset, examples, files),
        })

    def require_finite(self) -> None:
        """Look at the weights, before they are saved or scored.

        A step whose loss is finite can still move a weight out of all bounds.

        Raises:
            NotFiniteError: one is NaN or infinite, in all processes alike.
        """
        networks = (self.cotraining.online, self.cotraining.assignment.network)
        weights = [weight for network in networks for weight in network.parameters()]
        if not torch.isfinite(nn.utils.get_total_norm(weights, norm_type=float("inf"))):
            raise NotFiniteError("a weight is not finite")

    def diverged(self, what: str) -> UserError:
        """One sentence about a training that cannot go on, to be raised."""
        return UserError(
            f"the training diverged: {what}; lower optimizer.lr or set optimizer.clip_norm, "
            f"and resume from {self.run.last} if it is there"
        )

    def keep_best(self, scores: dict[str, Any]) -> None:
        """Write best.pth if the validation score is the highest so far."""
        value = validation_score(self.config.loss, scores)
        if value is not None and value > self.state.best:
            self.state.best = value
            self.save_best()

    @main_only
    def save_best(self) -> None:
        """Write best.pth."""
        tensors = self.cotraining.assignment.network.state_dict()
        self.best_weights = {
            "about": self._describe(),
            "assignment": {key: value.detach().cpu().clone() for key, value in tensors.items()},
        }
        checkpoint.save(self.run.best, self.best_weights)

    @main_only
    def save(self) -> None:
        """Write last.pth: all that resuming needs, and all that inference needs.

        Any number of processes can go on from it: they differ in their random numbers alone,
        which follow from the seed then.
        """
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        if self.device.type == "mps":
            rng["mps"] = torch.mps.get_rng_state()
        content = {
            "about": self._describe(),
            **self.cotraining.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": rng,
            "state": asdict(self.state),
            "log": self.log.state_dict(),
            "best": self.best_weights,
        }
        self.rotation.save(content, self.state.iteration)
        self._saved_at = time.monotonic()

    def _describe(self) -> dict[str, Any]:
        return checkpoint.describe(
            to_dict(self.config), self.val_set.classes, self.val_set.palette, self.cotraining.xi()
        )

    def restore(self) -> None:
        """Load the newest readable checkpoint: networks, thresholds, optimizer, random generators.

        No file is changed; :meth:`take_up` does that.

        Raises:
            UserError: none is readable, or it is of another network or other classes.
        """
        path, content = self.rotation.read()
        try:
            check(Saved, content)
            classes = content["about"]["classes"]
            if list(classes) != list(self.val_set.classes):
                raise UserError(
                    f"{path} was trained on the classes {', '.join(classes)}, the data "
                    f"now has {', '.join(self.val_set.classes)}: resume with the run's own data"
                )
            online = self.cotraining.online
            configured_colours = torch.stack([online.mean, online.std])
            self.cotraining.load_state_dict(content)
            if not torch.equal(torch.stack([online.mean, online.std]), configured_colours):
                raise UserError(f"{path} was trained with another model.normalization than "
                                "configured: resume with that of the run")
            self._restore_optimizer(content["optimizer"])
            images, self.state = self.state.images, State(**content["state"])
            self._tell_changes(content["about"]["config"], images)
            self.state.images = images
            # Checkpoints of earlier versions have no such entry.
            self.log.load_state_dict(content.get("log", {}))
            torch.set_rng_state(content["rng"]["cpu"])
            if self.device.type == "cuda" and "cuda" in content["rng"]:
                torch.cuda.set_rng_state(content["rng"]["cuda"], self.device)
            if self.device.type == "mps" and "mps" in content["rng"]:
                torch.mps.set_rng_state(content["rng"]["mps"])
        except (LookupError, TypeError, RuntimeError, ValueError, AttributeError) as error:
            reason = one_line(error)
            raise UserError(f"{path} does not fit this configuration ({reason}): "
                            "resume with the model, regularizers and classes that the run began "
                            "with") from error
        if "best" in content:
            self.best_weights = content["best"]
        elif self.run.best.is_file():  # checkpoints did not hold it always
            self.best_weights = checkpoint.read(self.run.best)
        self._restored_from = path

    def _tell_changes(self, config: dict[str, Any], images: int) -> None:
        """A line for options that are no longer those of the checkpoint, and one for its images."""
        changed = told(config, self.config, self.state.iteration)
        if changed:
            note(changed)
        if self.state.images not in (0, images):
            note(f"{images} images are trained on, {self.state.images} when the checkpoint was "
                 "written: their order is another from here on, the schedule stays unless it is "
                 "given anew")

    def _restore_optimizer(self, saved: Any) -> None:
        """Load its state, but keep the options: the file's would undo an override on resuming."""
        configured = [{k: v for k, v in group.items() if k not in ("params", "lr")}
                      for group in self.optimizer.param_groups]  # every step sets its rate
        for group, options in zip(saved["param_groups"], configured, strict=True):
            group.update(options)
        self.optimizer.load_state_dict(saved)
        for parameter, state in self.optimizer.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                if state[name].shape != parameter.shape:
                    raise ValueError(f"optimizer: {name} is of shape {tuple(state[name].shape)}, "
                                     f"not {tuple(parameter.shape)}")

    @main_only
    def take_up(self) -> None:
        """Bring the run folder, whose lock is held, to the point that :meth:`restore` found.

        Raises:
            UserError: it cannot be written.
        """
        # First what may find a file damaged: then nothing has been deleted yet.
        self.run.forget_after(self.state.iteration)
        self.rotation.settle(self._restored_from, self.state.iteration)
        if self.best_weights is None:
            self.run.best.unlink(missing_ok=True)
        elif not checkpoint.holds(self.run.best, self.best_weights):
            checkpoint.save(self.run.best, self.best_weights)
