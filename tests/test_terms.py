"""The table of the terms, and how sums become losses."""

import dataclasses

import pytest
import torch

from cosa.config import LossConfig
from cosa.cotrain import split
from cosa.losses import Sum, divide
from cosa.terms import WEIGHTS, loss_terms
from tests.helpers.cotraining import TERMS, build, make_batch


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_table_has_the_terms_and_weights_of_the_configuration():
    terms = loss_terms()
    assert tuple(terms) == TERMS == tuple(field.name for field in dataclasses.fields(LossConfig))
    assert {name: term.weight for name, term in terms.items()} == WEIGHTS == vars(LossConfig())


def test_the_table_says_when_a_term_starts_and_what_it_reads():
    terms = loss_terms(warm_up=3, s2c_start=5)
    assert {name: term.start for name, term in terms.items()} == {
        "cls": 0, "cls_aux": 0, "c2s": 3, "c2s_aux": 3, "s2c": 5, "csc": 3,
    }
    assert loss_terms(warm_up=8, s2c_start=5)["s2c"].start == 8
    assert {name: term.reads for name, term in terms.items()} == {
        "cls": None, "cls_aux": None, "c2s": "cam", "c2s_aux": "aux_cam", "s2c": "seg",
        "csc": "aux_cam",
    }


def test_a_mean_by_hand():
    assert Sum(tensor(6.0)[0], torch.tensor(4)).mean() == 1.5
    # Of classes: 6/4 and 1/2, the third counts nothing.
    assert Sum(tensor(6.0, 1.0, 0.0), torch.tensor([4, 2, 0])).mean() == 1.0


@pytest.mark.parametrize("shape", [(), (3,)])
def test_nothing_counted_is_0_without_a_gradient(shape):
    total = torch.zeros(shape, requires_grad=True)
    loss = Sum(total * 1, torch.zeros(shape)).mean()
    loss.backward()
    assert loss == 0 and loss.shape == () and not total.grad.any()


def test_a_term_sends_a_gradient_to_its_sum_alone():
    total, count = torch.tensor(3.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    Sum(total, count).mean().backward()
    assert total.grad == 0.5 and count.grad is None


def test_dividing_asks_for_the_counts_of_all_terms_at_once():
    """Two processes, of which the other one counts 3, 1 and 0 where this one counts 1, 1, 2."""
    asked = []

    def all_mean(counts):
        asked.append(counts)
        return (counts + tensor(3.0, 1.0, 0.0)) / 2

    sums = {"a": Sum(tensor(6.0)[0], torch.tensor(1)), "b": Sum(tensor(2.0, 5.0), tensor(1.0, 2.0))}
    means = divide(sums, all_mean)
    assert [counts.tolist() for counts in asked] == [[1, 1, 2]]
    # The mean over the processes of 6 / 2 here and x / 2 there is (6 + x) / 4, of all that count.
    assert means["a"] == 3.0
    assert means["b"] == (2.0 / 1 + 5.0 / 1) / 2


def test_parts_of_a_batch_differ_by_one_image_at_most_and_keep_the_order():
    batch = {"a": torch.arange(7), "b": torch.arange(14).view(7, 2)}
    parts = split(batch, 3)
    assert [len(part["a"]) for part in parts] == [3, 2, 2]
    for key, value in batch.items():
        assert torch.equal(torch.cat([part[key] for part in parts]), value)
    assert split(batch, 1) == [batch]


def test_terms_of_weight_0_are_not_in_the_table():
    assert set(loss_terms({**WEIGHTS, "csc": 0.0})) == set(TERMS) - {"csc"}
    cotraining = build(loss={"csc": 0.0})
    _, values = cotraining.step(make_batch(), 0)
    assert set(values) == set(cotraining.terms) == set(TERMS) - {"csc"}
