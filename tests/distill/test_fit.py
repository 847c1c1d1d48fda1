import argparse
import time

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cosa.core.device import choose_autocast
from cosa.distill import fit
from cosa.distill.crops import RandomCrops
from cosa.distill.networks import NormalizedEncoder, Student, Teacher
from cosa.distill.photographs import Photographs

CPU = torch.device("cpu")


@pytest.fixture
def parts(options):
    torch.manual_seed(0)
    photographs = Photographs(torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8),
                              torch.ones(4), torch.arange(3), torch.tensor([3]))
    autocast = choose_autocast(CPU)
    seen = NormalizedEncoder("resnet10t", {}, early_layer=-3)
    teacher = Teacher(seen, autocast, photographs.whole(photographs.learnt, 32), 4)
    student = Student(NormalizedEncoder("vit_tiny_patch16_224", options), teacher.widths)
    return student, teacher, RandomCrops(photographs, 32, 4, 0.5, 0), autocast


def fitted(parts, steps):
    student, teacher, crops, autocast = parts
    return fit.fit(student, teacher, crops, argparse.Namespace(lr=1e-3, steps=steps), autocast,
                   None)


def test_teacher_and_student_see_the_same_mixed_crops(parts, monkeypatch):
    student, teacher, crops, autocast = parts
    seen = {"crops": [], "teacher": [], "student": []}
    draw = crops.next

    def drawn():
        seen["crops"].append(draw())
        return seen["crops"][-1]

    monkeypatch.setattr(crops, "next", drawn)
    student.register_forward_pre_hook(lambda module, inputs: seen["student"].append(inputs[0]))
    read = Teacher.__call__
    monkeypatch.setattr(Teacher, "__call__",
                        lambda self, images: seen["teacher"].append(images) or read(self, images))
    fitted(parts, 2)
    assert len(seen["crops"]) == 2
    for kind in ("teacher", "student"):
        assert all(map(torch.equal, seen["crops"], seen[kind])), kind


class Waits(TorchDispatchMode):
    """Counts how often the host wants a number of the device."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_the_host_waits_for_the_device_only_to_look_at_the_loss(parts, monkeypatch):
    monkeypatch.setattr(fit, "RECENT", 3)
    with Waits() as waits:
        steps, loss = fitted(parts, 7)
    assert (steps, waits.count) == (7, 3)  # after 3, 6, and at the end
    assert 0 < loss < 20


def test_the_loss_is_the_mean_of_the_last_steps(parts, monkeypatch):
    monkeypatch.setattr(fit, "RECENT", 2)
    losses = iter([9.0, 1.0, 2.0, 4.0, 8.0])
    monkeypatch.setattr(fit, "loss_of",
                        lambda found, wanted: 0 * found.final.sum() + next(losses))
    assert fitted(parts, 5) == (5, 6.0)


def test_steps_and_time_are_shared_alike():
    assert list(fit.shares(4, None)) == [0, 0.25, 0.5, 0.75]
    begun = time.monotonic()
    found = []
    for share in fit.shares(None, begun + 0.1):
        found.append(share)
        time.sleep(0.02)
    assert 2 <= len(found) <= 6 and time.monotonic() - begun >= 0.1
    assert found == sorted(found) and 0 <= found[0] < 0.2 and found[-1] < 1


def test_the_learning_rate_rises_and_falls():
    assert fit.rate(0) == pytest.approx(0.05)
    assert fit.rate(0.025) == pytest.approx(0.525)
    assert fit.rate(0.05) == pytest.approx(1)
    assert fit.rate(0.525) == pytest.approx(0.5)
    assert 0 < fit.rate(0.999) < 0.002
