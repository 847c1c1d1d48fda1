"""What two processes do together for test_distributed.py, one scenario after the other.

Run with RANK, WORLD_SIZE and MASTER_ADDR set, a folder, and one port for each scenario; leaves
result<RANK>.pt in the folder: for each scenario what its function returned.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import infer
import train
from cosa import losses
from cosa.cam import free_of_padding
from cosa.core import IGNORE, distributed
from cosa.core.errors import UserError
from cosa.cotrain import CoTraining
from cosa.data.loader import TrainingViews
from cosa.regularizers.cycle_association import label_smoothing_sum
from cosa.regularizers.domain_adaptation import (
    confident_pseudo_supervision_sum,
    domain_adversarial_sum,
)
from cosa.regularizers.importance_sampling import importance_sampling_sum
from cosa.regularizers.semantic_decoupling import (
    decoupling_background_sum,
    decoupling_foreground_sum,
)
from cosa.threshold import DynamicThreshold
from tests.helpers.tiny import CNN, tiny_tree, update_that_acts, write_yaml

BATCH, CLASSES = 4, 3

# With these no random number is drawn in a step: it is the same however the batch is split.
EXACT = {"fsl": {"weight": 0.1}, "dense_energy": {"weight": 0.1},
         "plda": {"weight": 0.5, "dropout": 0.0}}
# Thresholds count confidences in bins. The gradient of two processes is rounded otherwise than that
# of one: with this normalisation, that carries no confidence of these images over an edge.
EXACT_MODEL = {"normalization": "imagenet"}
ALL = {name: {"weight": 0.1} for name in ("isl", "fsl", "plda", "csd", "plca", "dense_energy")}
DROPOUT = {"encoder_options": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4,
                               "num_heads": 2, "proj_drop_rate": 0.1}}
SHORT = {"iterations": 6, "batch_size": BATCH, "log_every": 1, "evaluate_every": 0,
         "checkpoint_every": 2}
SHORT_CNN = SHORT | {"iterations": 3}


def configure(folder: Path, name: str, **sections) -> str:
    """Write a tiny configuration of a run folder/name."""
    sections = {"train": SHORT, "method": {"cls_iterations": 2, "s2c_start": 3}} | sections
    return str(write_yaml(folder / f"{name}.yaml", tiny_tree(folder, name=name, **sections)))


def terms() -> dict:
    """name -> (function, its tensors, of which the first gets the gradient).

    The halves of the batch count differently many pixels, or none.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    valid = torch.ones(BATCH, 8, 8, dtype=torch.bool)
    valid[0, :, 3:] = False
    valid[1] = False
    image_labels = (draw(BATCH, CLASSES) > 0).float()
    labels = torch.randint(0, CLASSES + 1, (BATCH, 8, 8), generator=generator)
    labels[3, 2:] = IGNORE
    sparse = labels.masked_fill(~valid | (labels == 2), IGNORE)  # a class that no image holds
    sparse[3] = IGNORE
    domains = torch.randint(0, 2, (BATCH, CLASSES, 8, 8), generator=generator)
    maps, seg = draw(BATCH, CLASSES, 8, 8), draw(BATCH, CLASSES + 1, 8, 8)
    probabilities = draw(BATCH, CLASSES + 1, 8, 8).softmax(dim=1)
    one = (torch.arange(BATCH) == 2)[:, None, None].expand(-1, 8, 8)
    return {
        "cls": (classification, [draw(BATCH, CLASSES), image_labels]),
        "c2s": (cam_to_seg, [seg, labels, draw(BATCH, 8, 8).abs() + 0.1, valid]),
        "c2s plain": (cam_to_seg, [seg, labels, None, valid]),
        "c2s none": (cam_to_seg, [seg, labels, None, torch.zeros_like(valid)]),
        "s2c": (seg_to_cam, [maps, probabilities, valid]),
        "csc": (separation,
                [maps, labels, draw(BATCH, 8, 8).abs()]),
        "isl": (lambda scores, names, inside: importance_sampling_sum(
            scores.expand(-1, -1, 8, 8), names, valid=inside),  # any sample of it is alike
            [draw(BATCH, CLASSES, 1, 1), image_labels, valid]),
        "adversarial": (domain_adversarial_sum,
                        [draw(BATCH, CLASSES, 2, 8, 8), domains, valid]),
        "adversarial all": (domain_adversarial_sum, [draw(BATCH, CLASSES, 2, 8, 8), domains]),
        "supervision": (confident_pseudo_supervision_sum, [maps, sparse]),
        "lsr": (label_smoothing_sum, [seg, valid]),
        "foreground": (lambda a, b, c: decoupling_foreground_sum(b, a, c),
                       [maps, draw(BATCH, CLASSES, 8, 8), one]),
        "background": (lambda a, b, c: decoupling_background_sum(b, a, c),
                       [maps, draw(BATCH, CLASSES, 8, 8), one]),
    }


def classification(logits, image_labels):
    values = losses.classification_of_images(logits, image_labels)
    return losses.Sum.of(values, torch.ones(len(values)))


def cam_to_seg(seg, labels, perplexity, valid):
    (cross_entropy,) = losses.cam_to_seg_at_pixels(seg, [labels])
    return losses.Sum.of(cross_entropy, losses.pixel_weights(labels, perplexity, valid))


def seg_to_cam(cam, seg_targets, valid):
    values = losses.seg_to_cam_at_positions(cam, seg_targets)
    return losses.Sum.of(values, free_of_padding(valid, cam.shape[2:]))


def separation(cam, labels, perplexity):
    values = losses.contrastive_separation_of_images(cam, labels, perplexity)
    return losses.Sum.of(values, torch.ones(len(values)))


def measure(name: str, share: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """A term of a share of the batch, and its gradient."""
    function, (first, *others) = terms()[name]
    first = first[share].clone().requires_grad_()
    term = function(first, *(None if o is None else o[share] for o in others))
    value = losses.divide({name: term}, distributed.all_mean)[name]
    return value.detach(), torch.autograd.grad(value, first)[0]


def confidences() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(3, BATCH, 20, generator=generator).square()


# The scenarios


def shares(folder: Path) -> dict:
    with distributed.processes():
        share = distributed.share_of_batch(BATCH)
        found = {}
        for name in terms():
            value, gradient = measure(name, share)
            # As DistributedDataParallel does: the mean over the processes.
            found[name] = distributed.all_mean(value), gradient / distributed.world()
        threshold = DynamicThreshold(smoothing=0.5, all_sum=distributed.all_sum)
        found["xi"] = [threshold.update(batch[share]) for batch in confidences()]
        found["histograms"] = threshold.state_dict()["histograms"]
        bad = confidences()[0][share].clone()
        bad[0, 0] = float("nan") if distributed.is_main() else 0.5
        try:
            threshold.update(bad)
        except ValueError as error:
            found["nan"] = str(error)
        try:
            distributed.share_of_batch(5)
        except UserError as error:
            found["odd"] = str(error)
        try:
            distributed.from_main(refuse)
        except UserError as error:
            found["from main"] = str(error)
        number = distributed.rank()
        found["highest"] = distributed.highest_each(number, 15 - number, True, number == 0)
        found["plan"] = distributed.from_main(lambda: [os.environ["RANK"], 2])
        torch.manual_seed(0)
        distributed.reseed(7, 3)
        found["random"] = torch.rand(3)
        return found


def refuse() -> None:
    raise UserError(f"process {os.environ['RANK']} refuses")


def exact(folder: Path) -> int:
    return train.main([
        configure(folder, "pair", regularizers=EXACT, model=EXACT_MODEL), "train.report=true",
    ])


def uninterrupted(folder: Path) -> int:
    return train.main([configure(folder, "whole", regularizers=ALL, model=DROPOUT)])


def interrupted(folder: Path) -> tuple[int, int]:
    """Only one of them gets the signal."""
    at = 4 if os.environ["RANK"] == "1" else -1
    with after(at, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        code = train.main([configure(folder, "halves", regularizers=ALL, model=DROPOUT)])
    return code, len((folder / "halves" / "metrics.jsonl").read_text().splitlines())


def resumed(folder: Path) -> int:
    return train.main(["--resume", str(folder / "halves")])


def moving(folder: Path) -> list[torch.Tensor]:
    """Batch statistics after the last step: own, of both processes, and their average."""
    found = []
    original = CoTraining.update_assignment

    def update(self, iteration):
        own = torch.cat(self.online.moving_statistics())
        original(self, iteration)
        average = self.assignment.network.moving_statistics()
        found[:] = own, torch.cat(self.online.moving_statistics()), torch.cat(average)

    CoTraining.update_assignment = update
    try:
        model = CNN | {"freeze_batch_norm": False}
        assert train.main([configure(folder, "moving", model=model, train=SHORT_CNN)]) == 0
    finally:
        CoTraining.update_assignment = original
    return found


def one_partner(folder: Path) -> int:
    """Images to paste in one of the processes only, and no other loss than theirs."""
    off = dict.fromkeys(("c2s", "c2s_aux", "s2c", "csc"), 0.0)
    original = TrainingViews.views

    def blank(self, index, rng):
        views = original(self, index, rng)
        if os.environ["RANK"] == "1":
            views["valid"] = torch.zeros_like(views["valid"])
        return views

    TrainingViews.views = blank
    try:
        return train.main([configure(
            folder, "pasting", loss=off, regularizers={"csd": {"weight": 1.0}},
        )])
    finally:
        TrainingViews.views = original


def divergence(folder: Path) -> str:
    original = losses.seg_to_cam_at_positions

    def broken(*args, **kwargs):
        loss = original(*args, **kwargs)
        return loss * float("nan") if os.environ["RANK"] == "1" else loss

    losses.seg_to_cam_at_positions = broken
    try:
        return end_of(lambda: train.main([configure(folder, "diverging")]))
    finally:
        losses.seg_to_cam_at_positions = original


def refusal(folder: Path) -> str:
    return end_of(lambda: train.main([configure(folder, "odd", train={"batch_size": 3})]))


def segment(folder: Path) -> tuple[int, str]:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = infer.main(infer_command(folder, "together"))
    return code, output.getvalue()


def infer_command(folder: Path, name: str) -> list[str]:
    options = ["--weights", "weights.pth", "--output", name, "--json", f"{name}.json",
               "--evaluate", "truth"]
    paths = [folder / o if i % 2 else o for i, o in enumerate(options)]
    return [str(folder / "images"), *map(str, paths), "--batch-size", "1", "--device", "cpu",
            "--workers", "1", "--review", "2"]


def killed(folder: Path) -> str:
    """Process 1 ends without a word; this comes last."""
    config = configure(folder, "killed", train=SHORT | {"iterations": 1000})
    at = 5 if os.environ["RANK"] == "1" else -1
    with after(at, lambda: os.kill(os.getpid(), signal.SIGKILL)):
        return end_of(lambda: train.main([config]))


SCENARIOS = (shares, exact, uninterrupted, interrupted, resumed, moving, one_partner, divergence,
             refusal, segment, killed)


@contextlib.contextmanager
def after(iterations: int, act):
    """Do something once so many iterations are done."""
    original = CoTraining.update_assignment
    CoTraining.update_assignment = update_that_acts(iterations, act)
    try:
        yield
    finally:
        CoTraining.update_assignment = original


def end_of(program) -> str:
    """The error that a program ends with, or its exit code."""
    try:
        return str(program())
    except UserError as error:
        return f"error: {error}"
    except SystemExit as error:
        return f"exit {error.code}"
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def main(folder: str, *ports: str) -> None:
    torch.set_num_threads(1)
    results = {}
    for scenario, port in zip(SCENARIOS, ports, strict=True):
        os.environ["MASTER_PORT"] = port
        results[scenario.__name__] = scenario(Path(folder))
        torch.save(results, Path(folder) / f"result{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
