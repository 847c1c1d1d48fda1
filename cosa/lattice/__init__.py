"""The permutohedral lattice: high-dimensional Gaussian filtering in linear time."""

from cosa.lattice.filter import Lattice, bilateral_features

__all__ = ["Lattice", "bilateral_features"]
