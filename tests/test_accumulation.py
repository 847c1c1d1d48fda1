import weakref

import pytest
import torch

from cosa.config import from_dict
from cosa.core import distributed
from cosa.core.errors import UserError
from cosa.cotrain import CoTraining
from cosa.training.build import build_step, check_processes
from tests.helpers.cotraining import TERMS, build, make_batch
from tests.helpers.tiny import tiny_tree

METHOD = {"cls_iterations": 0, "s2c_start": 0}


def uneven(size):
    """A batch whose images hold different numbers of classes, of valid pixels and of both."""
    batch = make_batch(size)
    batch["valid"][0, :, : 3 * batch["valid"].shape[-1] // 4] = False
    batch["image_labels"][1] = 1
    return batch


def gradient(cotraining):
    return {name: parameter.grad for name, parameter in cotraining.online.named_parameters()
            if parameter.grad is not None}


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("parts", [2, 3, 5])
def test_a_step_in_parts_is_the_step(parts, raw):
    whole, split = (build(method={**METHOD, "raw": raw}) for _ in range(2))
    split.accumulate = parts
    batch = uneven(5)
    for iteration in range(2):
        for cotraining in (whole, split):
            cotraining.online.zero_grad()
        loss, terms = whole.step(batch, iteration)
        loss.backward()
        other, other_terms = split.step(batch, iteration)
        assert set(other_terms) == set(TERMS)
        other.backward()
        assert other.item() == pytest.approx(loss.item(), rel=1e-5)
        for name in TERMS:
            assert other_terms[name].item() == pytest.approx(terms[name].item(), rel=1e-5), name
        assert whole.xi() == split.xi()
        expected, found = gradient(whole), gradient(split)
        assert set(expected) == set(found)
        for name, value in expected.items():
            assert torch.allclose(found[name], value, rtol=1e-3, atol=1e-6), name


def test_an_image_of_padding_alone_is_a_part_that_counts_nothing():
    whole, split, batch = build(), build(train={"accumulate": 2}), make_batch(2)
    batch["valid"][1] = False
    loss, _ = whole.step(batch, 0)
    other, terms = split.step(batch, 0)
    assert torch.isfinite(other) and other.item() == pytest.approx(loss.item(), rel=1e-5)
    batch["valid"][:] = False
    other, terms = split.step(batch, 0)
    assert terms["c2s"] == terms["s2c"] == 0


def test_the_warm_up_and_regularizers_work_in_parts():
    cotraining = build(method={"cls_iterations": 2, "s2c_start": 2},
                       regularizers={"fsl": {"weight": 0.1}, "dense_energy": {"weight": 0.1}},
                       train={"accumulate": 2})
    loss, terms = cotraining.step(make_batch(4), 0)
    assert set(terms) == {"cls", "cls_aux", "fsl"} and loss.requires_grad
    loss, terms = cotraining.step(make_batch(4), 2)
    assert {"fsl", "dense_energy", *TERMS} == set(terms) and torch.isfinite(loss)


def test_regularizers_count_with_the_share_of_images_that_a_part_has():
    """A mean over images is then the same, also of parts of different sizes."""
    options = {"regularizers": {"fsl": {"weight": 0.1}}}
    _, whole = build(**options).step(make_batch(3), 0)
    split = build(**options)
    for split.accumulate in (2, 3):
        _, terms = split.step(make_batch(3), 0)
        assert terms["fsl"].item() == pytest.approx(whole["fsl"].item(), rel=1e-5)


def test_what_a_part_counts_does_not_wait_for_the_online_network(monkeypatch):
    """A count is of the labelled batch alone: the parts before it and after it have none yet."""
    counted = []
    original = CoTraining._counts
    monkeypatch.setattr(CoTraining, "_counts", lambda self, active, parts: (
        counted.append(original(self, active, parts)) or counted[-1]))
    split = build(train={"accumulate": 2})
    split.step(uneven(4), 0)
    (counts,) = counted
    assert set(counts) == set(TERMS)
    assert counts["cls"] == counts["csc"] == 4
    assert 0 < counts["s2c"] < 4 * 36, "one image is padded"


def test_what_the_assignment_network_saw_is_let_go_before_the_losses(monkeypatch):
    """The maps are as large as the targets that are made of them."""
    alive, gone = [], []
    original = CoTraining.assign

    def assign(self, batch, maps):
        assigned = original(self, batch, maps)
        alive.extend(map(weakref.ref, (assigned.maps["seg"],)))
        return assigned

    def mark(phase):
        if phase == "losses":
            gone.append([reference() is None for reference in alive])

    monkeypatch.setattr(CoTraining, "assign", assign)
    cotraining = build(train={"accumulate": 2})
    cotraining.step(make_batch(4), 0, mark)
    assert gone == [[True, True]] * 2


def test_several_processes_do_not_accumulate(monkeypatch):
    cotraining = build(train={"accumulate": 2})
    assert build_step(cotraining) == cotraining.step
    monkeypatch.setattr(distributed, "world", lambda: 2)
    with pytest.raises(UserError, match="train.accumulate"):
        check_processes(from_dict(tiny_tree(train={"accumulate": 2})))
