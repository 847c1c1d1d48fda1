import pytest
import torch

from cosa.core import distributed
from cosa.core.errors import UserError
from cosa.parts import step_in_parts
from cosa.training.build import build_step
from tests.helpers.cotraining import TERMS, build, make_batch

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
    batch = uneven(5)
    for iteration in range(2):
        for cotraining in (whole, split):
            cotraining.online.zero_grad()
        loss, terms = whole.step(batch, iteration)
        loss.backward()
        other, other_terms = step_in_parts(split, batch, iteration, parts)
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
    whole, split, batch = build(), build(), make_batch(2)
    batch["valid"][1] = False
    loss, _ = whole.step(batch, 0)
    other, terms = step_in_parts(split, batch, 0, 2)
    assert torch.isfinite(other) and other.item() == pytest.approx(loss.item(), rel=1e-5)
    batch["valid"][:] = False
    other, terms = step_in_parts(split, batch, 0, 2)
    assert terms["c2s"] == terms["s2c"] == 0


def test_the_warm_up_and_regularizers_work_in_parts():
    cotraining = build(method={"cls_iterations": 2, "s2c_start": 2},
                       regularizers={"fsl": {"weight": 0.1}, "dense_energy": {"weight": 0.1}})
    loss, terms = step_in_parts(cotraining, make_batch(4), 0, 2)
    assert set(terms) == {"cls", "cls_aux", "fsl"} and loss.requires_grad
    loss, terms = step_in_parts(cotraining, make_batch(4), 2, 2)
    assert {"fsl", "dense_energy", *TERMS} == set(terms) and torch.isfinite(loss)


def test_the_option_chooses_the_step(monkeypatch):
    assert build_step(build()).__name__ == "step"
    cotraining = build(train={"accumulate": 2})
    assert build_step(cotraining).func is step_in_parts
    monkeypatch.setattr(distributed, "world", lambda: 2)
    with pytest.raises(UserError, match="train.accumulate"):
        build_step(cotraining)
