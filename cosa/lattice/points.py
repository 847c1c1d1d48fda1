"""Which points of the permutohedral lattice some given points need: see ``cosa.lattice``."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cosa.core.tensors import in_float64, move

_KEY_BITS = 62

# Keys that span no more than this many times their number are found in a table of all possible
# ones, as with position alone; others by a binary search.
_TABLE = 8

# A position in the lattice must be resolved to this share of the distance of its points.
_RESOLUTION = 2**-7


def simplices(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The simplex around each point; coordinates are in units of d+1.

    Args:
        features: (N, d) float32 or float64, positions over the standard deviation of each.

    Returns:
        ``corner`` (d+1, N), whole numbers in floating point: its lattice point of remainder 0.
        ``place`` (d+1, N) int64, a permutation of 0..d for each point: where the coordinate
        stands among the others, by its distance to that of the corner, ascending. The lattice
        point of remainder r has ``corner + r / (d+1)``, less 1 where ``place < r``.
        ``weights`` (N, d+1), the barycentric coordinates by remainder, >= 0 with sum 1.
    """
    n, d = features.shape
    # Rows of N: every operation here runs over contiguous memory.
    columns = features.T.contiguous()
    position = columns.new_empty(d + 1, n)
    tail = columns.new_zeros(n)
    for i in range(d, 0, -1):
        # The blur has variance 2/3 in units of the lattice, where the Gaussian has 1.
        scaled = columns[i - 1] * math.sqrt(2 / 3 / (i * (i + 1)))
        torch.add(tail, scaled, alpha=-i, out=position[i])
        tail = tail + scaled
    position[0] = tail

    corner = position.round()
    rest = position - corner
    place = torch.arange(d, -1, -1, dtype=torch.int8, device=features.device)
    place = place[:, None].repeat(1, n)
    for i in range(d):
        for j in range(i + 1, d + 1):
            below = (rest[i] < rest[j]).to(torch.int8)
            place[j] += below
            place[i] -= below
    # Rounded coordinates need not sum to 0: those farthest from their corner make up for it.
    place -= corner.sum(dim=0).to(torch.int8)
    shift = (place > d).to(torch.int8) - (place < 0).to(torch.int8)
    place = (place - (d + 1) * shift).long()
    corner += shift
    rest = torch.empty_like(rest).scatter_(0, place, position - corner)
    weights = torch.cat([1 + rest[:1] - rest[-1:], rest[1:] - rest[:-1]])
    return corner, place, weights.T.contiguous()


def pack(
    corner: Tensor, place: Tensor, group: Tensor | None
) -> tuple[Tensor, list[int]]:
    """Number all conceivable lattice points: keys of those that :func:`simplices` gives.

    From the most significant digit: group, coordinates d, ..., 1, remainder. Coordinate 0 follows
    from the others, since they sum to 0. Each digit has room for the neighbours of its ends, so
    different lattice points never share a key. With the last feature on top, the points of an
    image are in about the order of its rows, which keeps the memory accesses close together.

    Args:
        corner, place: of :func:`simplices`.
        group: (N,) integer >= 0; points of different groups get different keys. None: one group.

    Returns:
        (N, d+1) keys by remainder, int32 or int64, and the strides of coordinates 0..d, without
        the factor d+1 of the remainder's digit.

    Raises:
        ValueError: a coordinate is not finite, or they spread too far for the precision of
            ``corner`` or for 64-bit keys, or a group is negative.
    """
    d = len(corner) - 1
    low, high, first, last = _ranges(corner, group)
    furthest = _RESOLUTION / torch.finfo(corner.dtype).eps
    if not all(abs(end) < furthest for end in low + high):  # nor if it is NaN
        raise ValueError("features must be finite and within a number of standard deviations "
                         f"that {corner.dtype} can resolve")
    strides, size = [0] * (d + 1), 1
    for i in range(1, d + 1):
        strides[i] = size
        size *= int(high[i] - low[i]) + 4  # vertices reach 1 below the corners, neighbours 2
    size_of_group = size
    if group is not None:
        if first < 0:
            raise ValueError("group must not be negative")
        size *= last + 1
    if size * (d + 1) >= 2**_KEY_BITS:
        raise ValueError("features spread over too many standard deviations for 64-bit keys")

    dtype = torch.int32 if size * (d + 1) < 2**31 else torch.int64  # the sort likes them short
    key = torch.zeros_like(place[0], dtype=dtype)
    for i in range(1, d + 1):
        key.add_((corner[i] - (low[i] - 2)).to(dtype), alpha=strides[i])
    if group is not None:
        key.add_(group, alpha=size_of_group)
    step = move(torch.tensor(strides, dtype=dtype), corner.device)[:, None].expand_as(place)
    step = torch.empty_like(place, dtype=dtype).scatter_(0, place, step)  # by place
    keys = torch.empty(corner.shape[1], d + 1, dtype=dtype, device=corner.device)
    for r in range(d + 1):
        keys[:, r] = key * (d + 1) + r
        key -= step[r]
    return keys, strides


def _ranges(
    corner: Tensor, group: Tensor | None
) -> tuple[list[float], list[float], int, int]:
    """Lowest and highest of each coordinate, and of the groups (0 without), in one transfer."""
    ends = [*torch.aminmax(corner, dim=1), *([] if group is None else torch.aminmax(group))]
    numbers = torch.cat([in_float64(end).flatten() for end in ends]).tolist()
    first, last = map(int, numbers[2 * len(corner) :] or (0, 0))
    return numbers[: len(corner)], numbers[len(corner) : 2 * len(corner)], first, last


def neighbours(points: Tensor, strides: list[int]) -> list[Tensor]:
    """For each axis of the blur, the rows of every lattice point and its two neighbours.

    Args:
        points: (M,) ascending keys of :func:`pack`.
        strides: of the coordinates, likewise.

    Returns:
        A list of d+1 tensors (M+1, 3) int32; M stands for points that do not exist.
    """
    m, corners = len(points), len(strides)
    itself = torch.arange(m + 1, dtype=torch.int32, device=points.device)
    # A step along axis j adds d to its coordinate and takes 1 from all others. Of remainder 0 it
    # leads to remainder d, one lower in units of d+1.
    wrap = (points % corners == 0).to(points) * (corners * (1 - sum(strides)))
    find, rows = _finder(points), []
    for stride in strides:
        ahead = find(points + (wrap + (corners * stride - 1)))
        # All that lead nowhere write to the last row, which is then put right.
        behind = torch.full_like(itself, m).scatter_(0, ahead.long(), itself[:m])
        behind[m] = m
        rows.append(torch.stack([itself, F.pad(ahead, (0, 1), value=m), behind], dim=1))
    return rows


def _finder(points: Tensor) -> Callable[[Tensor], Tensor]:
    """A function from keys, no larger than fit, to their index among ``points``, (M,) int32.

    For what is not among the (M,) ascending keys, the index is M.
    """
    m = len(points)
    first, last = torch.stack([points[0], points[-1]]).tolist()
    if last - first < _TABLE * m:
        table = torch.full((last - first + 3,), m, dtype=torch.int32, device=points.device)
        places = torch.arange(m, dtype=torch.int32, device=points.device)
        table.scatter_(0, (points - (first - 1)).long(), places)
        return lambda keys: table.index_select(0, keys.clamp(first - 1, last + 1) - (first - 1))

    def search(keys: Tensor) -> Tensor:
        found = torch.searchsorted(points, keys, out_int32=True).clamp_max_(m - 1)
        return found.masked_fill_(points.index_select(0, found) != keys, m)

    return search
