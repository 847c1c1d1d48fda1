"""Which lattice points exist and which are neighbours, against lookups in a dictionary."""

import pytest
import torch

from cosa.lattice import points
from cosa.lattice.points import neighbours, pack, simplices
from tests.helpers.draws import randn


def lattice_points(features, group):
    """Packed key -> (group, coordinates) of every lattice point, and the arguments of a lookup."""
    corner, place, _ = simplices(features)
    keys, strides, room = pack(corner, place, group)
    corners, known = len(corner), {}
    for i in range(len(features)):
        for r in range(corners):
            point = tuple(
                int(corners * corner[c, i]) + r - corners * int(place[c, i] < r)
                for c in range(corners)
            )
            assert sum(point) == 0 and len({x % corners for x in point}) == 1
            assert known.setdefault(int(keys[i, r]), (int(group[i]), point)) == (group[i], point)
    return known, strides, room


@pytest.mark.parametrize("d, spread, by_table", [
    (1, 3, True), (2, 2, True), (2, 30, False), (3, 1, False), (5, 1.5, False), (4, 3e3, False),
])
def test_neighbours_are_those_of_a_dictionary(d, spread, by_table):
    features, group = spread * randn(60, d), torch.arange(60) % 2
    known, strides, room = lattice_points(features, group)
    keys = sorted(known)
    assert len(set(known.values())) == len(keys) and 0 <= keys[0] and keys[-1] < room
    assert (room < points._TABLE * len(keys)) == by_table
    row, expected, m = {known[key]: i for i, key in enumerate(keys)}, [], len(keys)
    for j in range(d + 1):
        for key in keys:
            g, point = known[key]
            ahead, behind = (
                (g, tuple(x + sign * ((d + 1) * (i == j) - 1) for i, x in enumerate(point)))
                for sign in (1, -1)
            )
            expected.append([row[g, point], row.get(ahead, m), row.get(behind, m)])
        expected.append([m, m, m])
    dtype = torch.int32 if room < 2**31 else torch.int64
    found = neighbours(torch.tensor(keys, dtype=dtype), strides, room)
    assert found.dtype == torch.int32 and found.shape == (d + 1, m + 1, 3)
    assert found.flatten(0, 1).tolist() == expected


def test_ranks_at_once_are_those_by_pairs():
    rest = (3 * randn(6, 500)).round() / 6  # with many that are equal
    by_pairs = points._ranks_by_pairs(rest)
    assert torch.equal(points._ranks_at_once(rest), by_pairs)
    assert torch.equal(by_pairs.sort(dim=0).values, torch.arange(6).byte()[:, None].expand(6, 500))
    assert by_pairs[:, 0].dtype == torch.int8
    few = torch.tensor([[2.0], [1.0], [2.0]])
    assert points._ranks_at_once(few).tolist() == [[2], [0], [1]]
