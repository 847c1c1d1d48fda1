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
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cosa.core.tensors import at_least_float32
from cosa.lattice.points import neighbours, pack, simplices

# Said by PyTorch at the first of them; what is used here is a constructor and a product. Some
# versions miss a choice about checks, though it is made.
for _said in ("Sparse CSR tensor support is in beta", "Sparse invariant checks are implicitly"):
    warnings.filterwarnings("ignore", _said, UserWarning)

# Larger blocks of memory are handed back to the system after each use and cleared before the next
# (glibc), which takes long where there are many channels.
_LARGEST_BLOCK = 2**25


class Lattice:
    """A Gaussian filter over a set of points, built once for any number of values.

    Filtering is linear in the number of points, and deterministic on the CPU; on CUDA the sparse
    product does not promise the order of its sums. It does not write to the lattice, which
    threads may share. ``num_points`` is the number of lattice points in use, at most N (d+1).

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
            corner, place, weights = simplices(at_least_float32(features.detach()))
            keys, strides, room = pack(corner, place, group)
            points = self._connect(keys, weights)
            self._blur_rows = neighbours(points, strides, room).flatten(1)
        self.num_points = len(points)
        # An axis of the blur, for every lattice point: itself and its two neighbours.
        blur = weights.new_full((len(points) + 1, 3), 0.5)
        blur[:, 0] = 1
        self._blur_weights = blur.flatten()
        self._blur_bags = _bags(self._blur_rows[0], 3)

    def filter(self, values: Tensor) -> Tensor:
        """Unnormalised filtering: about sum_j exp(-|f_i - f_j|^2 / 2) v_j for every point i.

        The scale is that of the released programs, in which a point that sits on a lattice point
        whose neighbours all exist gives itself the weight 1. Row sums then come out smaller than
        those of the Gaussian: where all lattice points exist by the factor
        ``2 / (sqrt(d+1) (1 + 2^-d) (pi/3)^(d/2))`` (0.88 for d = 2, 0.71 for d = 5), and in the
        sparse lattice of a photograph by a smaller one. Divided by the filter of ones, as in a
        CRF, the result is close to the normalised exact filter but for single pixels of rare
        colours (``python -m pytest tests/lattice -k gaussian`` bounds the distance).

        Args:
            values: (N, K) floating point.

        Returns:
            (N, K) in the dtype of ``values``, at least float32. Differentiable with respect to
            ``values``, to any order: the adjoint is exact.

        Raises:
            ValueError: ``values`` are not (N, K).
        """
        if values.dim() != 2 or len(values) != len(self._slice_weights):
            raise ValueError(
                f"values must have shape ({len(self._slice_weights)}, K), got {tuple(values.shape)}"
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
        other._splat = other._matrix()
        return other

    def normalized(self, weight: float = 1.0) -> Lattice:
        """With symmetric normalisation: ``weight * D W D`` with ``D = diag(W 1)^(-1/2)``."""
        ones = torch.ones_like(self._slice_weights[:, :1])
        return self.scaled((weight / self.filter(ones)[:, 0]).sqrt())

    def _connect(self, keys: Tensor, weights: Tensor) -> Tensor:
        """Number the lattice points, and list who splats onto each and who slices each.

        keys: (N, d+1) packed lattice points of each simplex; weights: (N, d+1). Returns the keys
        of the lattice points, ascending.
        """
        n, corners = keys.shape
        ordered, order = keys.flatten().sort(stable=True)
        points, number, count = torch.unique_consecutive(
            ordered, return_inverse=True, return_counts=True
        )
        rows = torch.empty(n * corners, dtype=torch.int32, device=keys.device)
        rows.scatter_(0, order, number.int())
        self._slice_rows, self._slice_bags = rows, _bags(rows, corners)
        self._slice_weights = weights / (1 + 2.0 ** (1 - corners))
        self._splat_rows = order.div(corners, rounding_mode="floor").int()
        self._splat_weights = weights.flatten().index_select(0, order)
        # The last bag is empty: the row of zeros that stands for all missing lattice points.
        ends = rows.new_full((len(count) + 2,), n * corners)
        ends[:1] = 0
        torch.cumsum(count, dim=0, dtype=torch.int32, out=ends[1:-1])
        self._splat_ends = ends
        self._splat = self._matrix()
        return points

    def _matrix(self) -> Tensor | None:
        """The splat as a sparse matrix, on CUDA."""
        if not self._splat_weights.is_cuda:
            return None
        size = (len(self._splat_ends) - 1, len(self._slice_weights))
        return splat_matrix(self._splat_ends, self._splat_rows, self._splat_weights, size)

    def _blocks(self, values: Tensor) -> int:
        """Into how many blocks of channels the values had better be cut."""
        if values.device.type != "cpu":
            return 1
        size = (self.num_points + 1) * values.shape[1] * values.element_size()
        return max(1, math.ceil(size / _LARGEST_BLOCK))

    def _apply(self, values: Tensor, reverse: bool) -> Tensor:
        # Sparse matrices with few entries a row times (N, K): an embedding bag sums weighted rows
        # without storing them, as index_select would. Missing neighbours are a row of zeros, so
        # that all bags are of one size.
        values = self._onto_lattice(values)
        for rows in self._blur_rows.flip(0) if reverse else self._blur_rows:
            values = _weighted_rows(rows, values, self._blur_weights, self._blur_bags)
        return _weighted_rows(
            self._slice_rows, values, self._slice_weights.flatten(), self._slice_bags
        )

    def _onto_lattice(self, values: Tensor) -> Tensor:
        if self._splat is None:
            return _weighted_rows(
                self._splat_rows, values, self._splat_weights, self._splat_ends[:-1]
            )
        # The splat has rows of thousands of entries, at which CUDA's embedding bags are slow.
        with torch.autocast("cuda", enabled=False):
            return self._splat @ values


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


def splat_matrix(ends: Tensor, columns: Tensor, weights: Tensor, size: tuple[int, int]) -> Tensor:
    """A sparse CSR matrix of ``size`` whose row i has the entries from ends[i] to ends[i + 1].

    Args:
        ends: (rows + 1,) int32, ascending from 0.
        columns: (T,) int32.
        weights: (T,) floating point.
        size: given, so that the host need not wait for the largest column.
    """
    return torch.sparse_csr_tensor(ends, columns, weights, size, check_invariants=False)


def _bags(rows: Tensor, size: int) -> Tensor:
    """Where each bag of ``size`` rows begins."""
    return torch.arange(0, rows.numel(), size, dtype=rows.dtype, device=rows.device)


def _weighted_rows(rows: Tensor, values: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    """(M, K): weighted sums of rows of values (N, K), by rows (T,) in M bags at offsets (M,)."""
    return F.embedding_bag(rows, values, offsets, mode="sum", per_sample_weights=weights)
