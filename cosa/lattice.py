"""The permutohedral lattice: Gaussian filtering of scattered points in linear time.

"Fast High-Dimensional Filtering Using the Permutohedral Lattice" (Adams, Baek and Davis, 2010), as
"Efficient Inference in Fully Connected CRFs" (Kraehenbuehl and Koltun, 2011) uses it. Points with
d features are embedded in the hyperplane of R^(d+1) whose coordinates sum to 0. There the lattice
points are those whose d+1 integer coordinates leave the same remainder modulo d+1. A point lies in
a simplex of d+1 of them, one of each remainder. Filtering splats the values onto these with
barycentric weights, blurs along each of the d+1 axes with (1/2, 1, 1/2), and slices the result at
the points. Only the lattice points that some simplex uses exist; the blur takes others as 0.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cosa.cam import at_least_float32

_KEY_BITS = 62

# Keys that span no more than this many times their number are found in a table of all possible
# ones (as with position alone: 10 times as fast as a binary search on a CPU).
_TABLE = 8

# Larger blocks of memory are handed back to the system after each use and cleared before the next
# (glibc): with 81 channels a filter took twice the time.
_LARGEST_BLOCK = 2**25

# A position in the lattice must be resolved to this share of the distance of its points.
_RESOLUTION = 2**-7


class Lattice:
    """A Gaussian filter over a set of points, built once for any number of values.

    Filtering is deterministic, and linear in the number of points.

    Args:
        features: (N, d) float, N >= 1, each divided by its standard deviation. Positions and
            weights are computed in this dtype, at least float32.
        group: (N,) integer >= 0, for instance the image that a point belongs to; points of
            different groups do not see each other. None: all are of one group.

    Raises:
        ValueError: the shapes do not fit, a feature is not finite, or the points spread over
            more standard deviations than can be told apart.
    """

    def __init__(self, features: Tensor, group: Tensor | None = None) -> None:
        if features.dim() != 2 or 0 in features.shape:
            raise ValueError(f"features must have shape (N, d), got {tuple(features.shape)}")
        if group is not None and group.shape != features.shape[:1]:
            raise ValueError(
                f"group must have shape ({len(features)},), got {tuple(group.shape)}"
            )
        with torch.no_grad():
            corner, place, weights = _simplices(at_least_float32(features.detach()))
            keys, strides = _pack(corner, place, group)
            self._connect(keys, weights)
            self._blur_rows = _neighbours(self._points, strides)
        # An axis of the blur, for every lattice point: itself and its two neighbours.
        blur = weights.new_tensor([1.0, 0.5, 0.5])
        self._blur_weights = blur.repeat(self.num_points + 1, 1)

    @property
    def num_points(self) -> int:
        """Lattice points in use, at most N (d+1)."""
        return len(self._points)

    def filter(self, values: Tensor) -> Tensor:
        """Unnormalised filtering: about sum_j exp(-|f_i - f_j|^2 / 2) v_j for every point i.

        The scale is that of the released programs, in which a point that sits on a lattice point
        whose neighbours all exist gives itself the weight 1. Row sums then come out smaller than
        those of the Gaussian: where all lattice points exist by the factor
        ``2 / (sqrt(d+1) (1 + 2^-d) (pi/3)^(d/2))`` (0.88 for d = 2, 0.71 for d = 5), and in the
        sparse lattice of a photograph with d = 5 by 0.45 to 0.6. Divided by the filter of ones,
        as in a CRF, the result is off by 0.2 to 1.2% for d = 2 and 0.3 to 5% for d = 5 (L1
        distance to the normalised exact filter, relative; single pixels of rare colours by up
        to 0.3 for values in [0, 1]).

        Args:
            values: (N, K) floating point.

        Returns:
            (N, K) in the dtype of ``values``, at least float32. Differentiable with respect to
            ``values``, to any order: the adjoint is exact.

        Raises:
            ValueError: ``values`` are not (N, K).
        """
        if values.dim() != 2 or len(values) != len(self._slice_rows):
            raise ValueError(
                f"values must have shape ({len(self._slice_rows)}, K), got {tuple(values.shape)}"
            )
        wide = at_least_float32(values)
        return _Filter.apply(wide.to(self._slice_weights.dtype), self, False).to(wide.dtype)

    def scaled(self, factor: Tensor) -> Lattice:
        """The lattice whose filter is ``factor * filter(factor * values)``, at no cost a call.

        Args:
            factor: (N,).
        """
        factor = factor.detach().to(self._slice_weights)
        other = copy.copy(self)
        other._splat_weights = self._splat_weights * factor.index_select(0, self._splat_rows)
        other._slice_weights = self._slice_weights * factor[:, None]
        return other

    def normalized(self, weight: float = 1.0) -> Lattice:
        """With symmetric normalisation: ``weight * D W D`` with ``D = diag(W 1)^(-1/2)``."""
        ones = torch.ones_like(self._slice_weights[:, :1])
        return self.scaled((weight / self.filter(ones)[:, 0]).sqrt())

    def _connect(self, keys: Tensor, weights: Tensor) -> None:
        """Number the lattice points, and list who splats onto each and who slices each.

        keys: (N, d+1) packed lattice points of each simplex; weights: (N, d+1).
        """
        n, corners = keys.shape
        ordered, order = keys.flatten().sort(stable=True)
        self._points, number, count = torch.unique_consecutive(
            ordered, return_inverse=True, return_counts=True
        )
        rows = torch.empty(n * corners, dtype=torch.int32, device=keys.device)
        self._slice_rows = rows.scatter_(0, order, number.int()).view(n, corners)
        self._slice_weights = weights / (1 + 2.0 ** (1 - corners))
        self._splat_rows = order.div(corners, rounding_mode="floor").int()
        self._splat_weights = weights.flatten().index_select(0, order)
        # The last bag is empty: the row of zeros that stands for all missing lattice points.
        self._splat_offsets = F.pad(count.cumsum(0), (1, 0)).int()

    def _blocks(self, values: Tensor) -> int:
        """Into how many blocks of channels the values had better be cut."""
        if values.device.type != "cpu":
            return 1
        size = (self.num_points + 1) * values.shape[1] * values.element_size()
        return max(1, math.ceil(size / _LARGEST_BLOCK))

    def _apply(self, values: Tensor, reverse: bool) -> Tensor:
        # Sparse matrices with few entries a row times (N, K): an embedding bag sums weighted rows
        # without storing them. On one CPU core, with 21 channels and 500 x 375 pixels, splat,
        # slice and an axis of the blur take 5, 4 and 1.7 ms for d = 5; as products with CSR
        # matrices (MKL) 13, 11 and -, with index_add or index_select 133, - and 8.5 ms. Indices
        # of 32 bits save a fifth. A bag of fixed size and a row of zeros for the missing
        # neighbours is no slower than bags of those that exist.
        values = _weighted_rows(
            self._splat_rows, values, self._splat_weights, self._splat_offsets
        )
        for rows in reversed(self._blur_rows) if reverse else self._blur_rows:
            values = _weighted_rows(rows, values, self._blur_weights)
        return _weighted_rows(self._slice_rows, values, self._slice_weights)


class _Filter(torch.autograd.Function):
    """The filter, or with ``reverse`` its adjoint.

    Splat and slice are each other's transpose, up to the scale; an axis of the blur is its own,
    but the axes do not commute where lattice points are missing.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, lattice: Lattice, reverse: bool) -> Tensor:
        ctx.lattice, ctx.reverse = lattice, reverse
        blocks = values.chunk(lattice._blocks(values), dim=1)
        filtered = [lattice._apply(block.contiguous(), reverse) for block in blocks]
        return torch.cat(filtered, dim=1) if len(filtered) > 1 else filtered[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Filter.apply(grad, ctx.lattice, not ctx.reverse), None, None


def spatial_features(
    h: int, w: int, sigma: float, device: torch.device | str | None = None
) -> Tensor:
    """(h * w, 2) float32: x and y of every pixel, row by row, over ``sigma`` pixels."""
    y, x = torch.meshgrid(
        torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij"
    )
    return torch.stack([x, y], dim=-1).reshape(h * w, 2) / float(sigma)


def bilateral_features(image: Tensor, sigma_xy: float, sigma_rgb: float) -> Tensor:
    """Position and colour of every pixel over their standard deviations.

    Args:
        image: (..., H, W, 3) of any dtype, in 0..255, or one image (3, H, W).
        sigma_xy: in pixels.
        sigma_rgb: in grey levels.

    Returns:
        (..., H * W, 5), x, y, r, g, b, at least float32.

    Raises:
        ValueError: ``image`` has another shape.
    """
    if image.dim() == 3 and image.shape[-1] != 3:
        image = image.movedim(0, -1)
    if image.dim() < 3 or image.shape[-1] != 3:
        raise ValueError(
            f"image must have shape (..., H, W, 3) or (3, H, W), got {tuple(image.shape)}"
        )
    colour = at_least_float32(image.flatten(-3, -2)) / sigma_rgb
    place = spatial_features(*image.shape[-3:-1], sigma_xy, image.device).to(colour)
    return torch.cat([place.expand(*colour.shape[:-1], 2), colour], dim=-1)


def _weighted_rows(
    rows: Tensor, values: Tensor, weights: Tensor, offsets: Tensor | None = None
) -> Tensor:
    """(M, K): sums of rows of values (N, K), by (M, n) rows, or (T,) rows in bags at offsets."""
    return F.embedding_bag(rows, values, offsets, mode="sum", per_sample_weights=weights)


def _simplices(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The simplex around each of the (N, d) points; coordinates are in units of d+1.

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
    move = (place > d).to(torch.int8) - (place < 0).to(torch.int8)
    place = (place - (d + 1) * move).long()
    corner += move
    rest = torch.empty_like(rest).scatter_(0, place, position - corner)
    weights = torch.cat([1 + rest[:1] - rest[-1:], rest[1:] - rest[:-1]])
    return corner, place, weights.T.contiguous()


def _pack(
    corner: Tensor, place: Tensor, group: Tensor | None
) -> tuple[Tensor, list[int]]:
    """Number all conceivable lattice points: keys of those that :func:`_simplices` gives.

    From the most significant digit: group, coordinates d, ..., 1, remainder. Coordinate 0 follows
    from the others, since they sum to 0. Each digit has room for the neighbours of its ends, so
    different lattice points never share a key. With the last feature on top, the points of an
    image are in about the order of its rows, which keeps the memory accesses close together.

    Returns:
        (N, d+1) keys by remainder, int32 or int64, and the strides of coordinates 0..d, without
        the factor d+1 of the remainder's digit.
    """
    d = len(corner) - 1
    low, high = torch.stack(torch.aminmax(corner, dim=1)).tolist()
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
        first, last = torch.stack(torch.aminmax(group)).tolist()
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
    step = torch.tensor(strides, dtype=dtype, device=corner.device)[:, None].expand_as(place)
    step = torch.empty_like(place, dtype=dtype).scatter_(0, place, step)  # by place
    keys = torch.empty(corner.shape[1], d + 1, dtype=dtype, device=corner.device)
    for r in range(d + 1):
        keys[:, r] = key * (d + 1) + r
        key -= step[r]
    return keys, strides


def _neighbours(points: Tensor, strides: list[int]) -> list[Tensor]:
    """For each axis of the blur, the rows of every lattice point and its two neighbours.

    Args:
        points: (M,) ascending keys.
        strides: of the coordinates.

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
    first, last = points[[0, -1]].tolist()
    if last - first < _TABLE * m:
        table = torch.full((last - first + 3,), m, dtype=torch.int32, device=points.device)
        places = torch.arange(m, dtype=torch.int32, device=points.device)
        table.scatter_(0, (points - (first - 1)).long(), places)
        return lambda keys: table.index_select(0, keys.clamp(first - 1, last + 1) - (first - 1))

    def search(keys: Tensor) -> Tensor:
        found = torch.searchsorted(points, keys, out_int32=True).clamp_max_(m - 1)
        return found.masked_fill_(points.index_select(0, found) != keys, m)

    return search
