"""Which points of the permutohedral lattice some given points need: see ``cosa.lattice``."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cosa.core.tensors import move

_KEY_BITS = 62

# Where no more keys than this many times those in use are conceivable, as with position alone, they
# are found in a table of them all; else by a binary search.
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
    position = _elevate(features)
    corner = position.round()
    place = _ranks(position - corner)
    # Rounded coordinates need not sum to 0: those farthest from their corner make up for it.
    place -= corner.sum(dim=0).to(place.dtype)
    shift = (place > d).to(torch.int8) - (place < 0).to(torch.int8)
    # Positions beyond the precision, which `pack` reports, must not index elsewhere meanwhile.
    place = place.sub_(shift, alpha=d + 1).clamp_(0, d).long()
    corner += shift
    rest = torch.empty_like(position).scatter_(0, place, position - corner)
    weights = position.new_empty(n, d + 1)
    torch.sub(1 + rest[0], rest[-1], out=weights[:, 0])
    torch.sub(rest[1:].T, rest[:-1].T, out=weights[:, 1:])
    return corner, place, weights


def _elevate(features: Tensor) -> Tensor:
    """(d+1, N): the points (N, d) in the hyperplane, in units of d+1."""
    n, d = features.shape
    # The blur has variance 2/3 in units of the lattice, where the Gaussian has 1.
    scale = [math.sqrt(2 / 3 / (i * (i + 1))) for i in range(1, d + 1)]
    scale = move(torch.tensor(scale, dtype=features.dtype), features.device)
    # Rows of N: every operation here runs over contiguous memory.
    scaled = torch.mul(features.T, scale[:, None], out=features.new_empty(d, n))
    position = features.new_empty(d + 1, n)
    tail = position[0].zero_()
    for i in range(d, 0, -1):
        torch.add(tail, scaled[i - 1], alpha=-i, out=position[i])
        tail += scaled[i - 1]
    return position


def _ranks(rest: Tensor) -> Tensor:
    """(d+1, N) int8: how many others of its column a number exceeds; equal ones, by last first."""
    return _ranks_at_once(rest) if rest.is_cuda else _ranks_by_pairs(rest)


def _ranks_at_once(rest: Tensor) -> Tensor:
    """For CUDA, where few large operations are faster."""
    axis = torch.arange(len(rest), device=rest.device)
    earlier = (axis[:, None] < axis)[..., None]
    less = torch.where(earlier, rest[:, None] < rest, rest[:, None] <= rest)
    return less.sum(dim=0, dtype=torch.int8) - 1  # but itself


def _ranks_by_pairs(rest: Tensor) -> Tensor:
    """For the CPU, where it matters to stay in the cache and to compare each pair once."""
    corners, n = rest.shape
    place = torch.arange(corners - 1, -1, -1, dtype=torch.int8, device=rest.device)
    place = place[:, None].repeat(1, n)
    for i in range(corners - 1):
        for j in range(i + 1, corners):
            below = (rest[i] < rest[j]).to(torch.int8)
            place[j].add_(below)  # place[j] += below would copy the sum onto itself
            place[i].sub_(below)
    return place


def pack(
    corner: Tensor, place: Tensor, group: Tensor | None
) -> tuple[Tensor, list[int], int]:
    """Number all conceivable lattice points: keys of those that :func:`simplices` gives.

    From the most significant digit: group, coordinates d, ..., 1, remainder. Coordinate 0 follows
    from the others, since they sum to 0. Each digit has room for the neighbours of its ends, so
    different lattice points never share a key. With the last feature on top, the points of an
    image are in about the order of its rows, which keeps the memory accesses close together.

    Args:
        corner, place: of :func:`simplices`.
        group: (N,) integer >= 0; points of different groups get different keys. None: one group.

    Returns:
        (N, d+1) keys by remainder, int32 or int64; the strides of coordinates 0..d, without
        the factor d+1 of the remainder's digit; and how many keys there are: they and those of
        their neighbours are below.

    Raises:
        ValueError: a coordinate is not finite, or they spread too far for the precision of
            ``corner`` or for 64-bit keys, or a group is negative.
    """
    d = len(corner) - 1
    ends = torch.aminmax(corner, dim=1)
    low, high, first, last = _ranges(*ends, group)
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

    room = size * (d + 1)
    dtype = torch.int32 if room < 2**31 else torch.int64  # the sort likes them short
    steps = move(torch.tensor(strides, dtype=dtype), corner.device)[:, None]
    digits = (corner - (ends[0] - 2)[:, None]).to(dtype)
    # From the corner, one step to the key of each further remainder.
    walk = torch.empty(d + 2, corner.shape[1], dtype=dtype, device=corner.device)
    key = torch.sum(digits.mul_(steps), dim=0, dtype=dtype, out=walk[0])
    if group is not None:
        key.add_(group, alpha=size_of_group)
    walk[1:].scatter_(0, place, (-steps).expand_as(place))
    walk = walk[:-1].cumsum(dim=0, dtype=dtype)
    remainder = torch.arange(d + 1, dtype=dtype, device=corner.device)
    keys = torch.empty(corner.shape[1], d + 1, dtype=dtype, device=corner.device)
    torch.add(remainder, walk.T, alpha=d + 1, out=keys)
    return keys, strides, room


def _ranges(
    low: Tensor, high: Tensor, group: Tensor | None
) -> tuple[list[float], list[float], int, int]:
    """Lowest and highest of each coordinate, and of the groups (0 without), in one transfer."""
    if group is None:
        numbers = torch.cat([low, high]).tolist()
    else:
        first, last = torch.aminmax(group)
        numbers = torch.cat([low.double(), high, first[None], last[None]]).tolist()
    first, last = map(int, numbers[2 * len(low) :] or (0, 0))
    return numbers[: len(low)], numbers[len(low) : 2 * len(low)], first, last


def neighbours(points: Tensor, strides: list[int], room: int) -> Tensor:
    """For each axis of the blur, the rows of every lattice point and its two neighbours.

    Args:
        points: (M,) ascending keys of :func:`pack`.
        strides, room: likewise.

    Returns:
        (d+1, M+1, 3) int32; M stands for points that do not exist.
    """
    m, corners = len(points), len(strides)
    # A step along axis j adds d to its coordinate and takes 1 from all others. Of remainder 0 it
    # leads to remainder d, one lower in units of d+1.
    wrap = (points % corners == 0).to(points.dtype) * (corners * (1 - sum(strides)))
    steps = torch.tensor([corners * stride - 1 for stride in strides], dtype=points.dtype)
    steps, start, find = move(steps, points.device), points + wrap, _finder(points, room)
    itself = torch.arange(m + 1, dtype=torch.int32, device=points.device)
    rows = itself.new_full((corners, m + 1, 3), m)
    rows[..., 0] = itself
    # A GPU likes all axes at once; the CPU needs less memory for one after the other.
    for step, found in zip(*(x.split(corners if x.is_cuda else 1) for x in (steps, rows)),
                           strict=True):
        ahead = find(start + step[:, None])
        found[:, :m, 1] = ahead
        # All that lead nowhere write to the last row, which is then put right.
        found[..., 2].scatter_(1, ahead.long(), itself[:m].expand_as(ahead))
    rows[:, m, 2] = m
    return rows


def _finder(points: Tensor, room: int) -> Callable[[Tensor], Tensor]:
    """A function from keys below ``room`` to their index among ``points``, of the keys' shape.

    For what is not among the (M,) ascending keys, the index, int32, is M.
    """
    m = len(points)
    if room < _TABLE * m:
        table = torch.full((room,), m, dtype=torch.int32, device=points.device)
        places = torch.arange(m, dtype=torch.int32, device=points.device)
        table.scatter_(0, points.long(), places)
        return lambda keys: table.index_select(0, keys.flatten()).view_as(keys)

    def search(keys: Tensor) -> Tensor:
        found = torch.searchsorted(points, keys, out_int32=True).clamp_max_(m - 1)
        at = points.index_select(0, found.flatten()).view_as(keys)
        return found.masked_fill_(at != keys, m)

    return search
