"""Rows that come from the top down."""

import weakref

import pytest
import torch

from cosa.core.rolling import Rolling


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("step", [1, 3, 7, 40])
def test_slices_that_move_down_are_those_of_the_whole(dim, step):
    whole = torch.arange(40 * 5).view(40, 5).movedim(0, dim)
    rolling = Rolling(iter(whole.split(step, dim)), 40, dim)
    for first, end in ((0, 1), (0, 6), (2, 6), (5, 9), (9, 12), (20, 31), (31, 40), (39, 40)):
        assert torch.equal(rolling.take(slice(first, end)), whole.narrow(dim, first, end - first))


def test_all_rows_at_once():
    whole = torch.rand(3, 9, 2)
    rolling = Rolling(iter(whole.split(2, dim=1)), 9, dim=1)
    assert torch.equal(rolling.take(slice(None)), whole)


def test_what_lies_above_is_let_go():
    seen = []

    def parts():
        for _ in range(50):
            part = torch.zeros(4, 1000)
            seen.append(weakref.ref(part))
            yield part

    rolling = Rolling(parts(), 200, dim=0)
    for first in range(0, 190, 5):
        rolling.take(slice(first, first + 10))
        assert sum(part() is not None for part in seen) <= 4  # of four rows, for ten


def test_parts_that_end_too_early_are_no_endless_wait():
    with pytest.raises(ValueError, match="rows end at 3 of 9"):
        Rolling(iter([torch.zeros(3, 2)]), 9, dim=0).take(slice(1, 5))
