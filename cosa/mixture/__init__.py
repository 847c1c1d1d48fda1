"""The mixture of two Gaussians that the dynamic threshold is read from, fitted on host or GPU."""

from cosa.mixture.host import LEVELS, fit_threshold

__all__ = ["LEVELS", "fit_threshold"]
