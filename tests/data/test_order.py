"""Which images are trained on, and how often."""

import numpy as np
import pytest
import torch

from cosa.core import distributed
from cosa.core.errors import UserError
from cosa.data.loader import TrainingViews, training_loader
from cosa.data.order import Order, image_weights, trained_on
from cosa.data.partners import PartnerViews
from tests.helpers.arrays import AUGMENT, Pictures

# Class 0 in six images, class 1 in two, both in the last of these; two without any.
LABELS = np.array([[1, 0]] * 5 + [[0, 1]] + [[1, 1]] + [[0, 0]] * 2, dtype=np.uint8)


def test_images_without_a_label_take_part_where_the_user_says_so():
    assert trained_on(LABELS).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert trained_on(LABELS, negatives=True).tolist() == [*range(9)]
    with pytest.raises(UserError, match="no training image has a label"):
        trained_on(np.zeros((3, 2), np.uint8), negatives=True)


def test_an_image_weighs_what_the_rarest_of_its_classes_does():
    assert image_weights(LABELS, 1.0).tolist() == [1 / 6] * 5 + [1 / 2] * 4
    assert image_weights(LABELS, 0.5) == pytest.approx([6**-0.5] * 5 + [2**-0.5] * 4)
    assert image_weights(LABELS[:7], 1.0).tolist() == [1 / 6] * 5 + [1 / 2] * 2
    assert image_weights(LABELS, 0.0).tolist() == [1.0] * 9


def passes(order, count):
    size = len(order.images)
    return np.array([[order[size * k + place] for place in range(size)] for k in range(count)])


@pytest.mark.parametrize("negatives, exponent", [(True, 1.0), (False, 1.0), (True, 0.5)])
def test_frequencies_are_the_weights(negatives, exponent):
    """In each pass but for rounding, on average over many passes exactly."""
    order = Order(LABELS, seed=1, negatives=negatives, balance=exponent)
    weights = image_weights(LABELS[order.images], exponent)
    wanted = len(order.images) * weights / weights.sum()
    drawn = np.array([np.bincount(one, minlength=9)[order.images] for one in passes(order, 400)])
    assert (np.abs(drawn - wanted) < 1).all()
    assert drawn.mean(axis=0) == pytest.approx(wanted, abs=0.1)


def test_at_exponent_1_classes_of_their_own_come_equally_often():
    """90 images of one class and 10 of another: 50 places of a pass each."""
    labels = np.eye(2, dtype=np.uint8)[[0] * 90 + [1] * 10]
    order = Order(labels, seed=0, balance=1.0)
    for one in passes(order, 5):
        assert np.bincount(labels[one, 1], minlength=2).tolist() == [50, 50]
        assert (np.bincount(one, minlength=100)[90:] == 5).all()


def test_equal_classes_give_a_permutation():
    labels = np.eye(3, dtype=np.uint8)[[0, 1, 2] * 4]
    order = passes(Order(labels, seed=0, balance=1.0), 6)
    assert (np.sort(order, axis=1) == np.arange(12)).all()
    assert len({tuple(one) for one in order}) == 6


def test_without_balance_the_order_is_what_it_was():
    """That of the program before there was any other: numpy's permutation of (seed, 0, pass)."""
    order = Order(LABELS, seed=3)
    for number in range(3):
        drawn = np.random.default_rng((3, 0, number)).permutation(np.arange(7))
        assert passes(order, number + 1)[-1].tolist() == drawn.tolist()


def test_a_position_has_its_image_whoever_asks_and_when():
    first, other = (Order(LABELS, 5, True, 0.7) for _ in range(2))
    whole = [first[position] for position in range(60)]
    assert [other[position] for position in reversed(range(60))] == whole[::-1]
    assert [Order(LABELS, 6, True, 0.7)[position] for position in range(60)] != whole


@pytest.mark.parametrize("stream", [TrainingViews, PartnerViews])
def test_batches_resume_and_are_shared_exactly(stream, monkeypatch):
    dataset = Pictures(LABELS)

    def batches(start=0, **options):
        return list(training_loader(
            dataset, batch_size=4, seed=2, iterations=8, start_iteration=start, workers=0,
            stream=stream, negatives=True, balance=1.0, **AUGMENT,
        ))

    whole = batches()
    seen = torch.cat([batch["index"] for batch in whole])
    assert {7, 8} <= set(seen.tolist())
    monkeypatch.setattr(distributed, "world", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(batches(start=5))
    for one, *halves in zip(whole[5:], *parts, strict=True):
        for key in ("weak", "strong", "image_labels", "index"):
            assert torch.equal(one[key], torch.cat([half[key] for half in halves])), key
    labels = torch.cat([batch["image_labels"] for batch in whole])
    assert (labels[seen >= 7] == 0).all() and labels.any(dim=1).any()
