import pytest
import torch

from cosa.core.tensors import present_index
from cosa.present import PresentClasses

LABELS = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]]).float()


def test_present_classes_come_first_and_in_order():
    index = present_index(LABELS)
    assert index.shape == (3, 2), "two is the most that an image holds"
    assert index[0].tolist() == [1, 3] and index[1, 0] == 2
    present = PresentClasses.of(LABELS)
    assert present.held.tolist() == [[True, True], [True, False], [False, False]]
    assert all(len(set(row)) == 2 for row in index.tolist()), "no place is there twice"


def test_an_index_that_is_given_is_used():
    index = torch.tensor([[3, 1, 0], [2, 0, 1], [0, 1, 2]])
    present = PresentClasses.of(LABELS, index)
    assert present.index is index
    assert present.held.tolist() == [[True, True, False], [True, False, False], [False] * 3]


@pytest.mark.parametrize("background", [False, True])
def test_select_and_spread(background):
    maps = torch.randn(3, 4 + background, 2, 5)
    present = PresentClasses.of(LABELS)
    chosen = present.select(maps, background)
    first = int(background)
    assert torch.equal(chosen[0, first:], maps[0, [1 + first, 3 + first]])
    assert not background or torch.equal(chosen[:, 0], maps[:, 0])
    full = present.spread(chosen, background)
    assert full.shape == maps.shape
    assert torch.equal(present.select(full, background), chosen)
    assert not full[0, [first, 2 + first]].any(), "absent classes are 0"


def test_places_become_classes():
    places = torch.tensor([[[0, 1, 2]], [[0, 1, 0]], [[0, 0, 0]]])
    named = PresentClasses.of(LABELS).name(places)
    assert named.tolist() == [[[0, 2, 4]], [[0, 3, 0]], [[0, 0, 0]]]
