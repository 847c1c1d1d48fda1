"""The one place that knows the regularizers by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from cosa.regularizers.base import Regularizer
from cosa.regularizers.cycle_association import CycleAssociation
from cosa.regularizers.dense_energy import DenseEnergy
from cosa.regularizers.domain_adaptation import DomainAdaptation
from cosa.regularizers.feature_similarity import FeatureSimilarity
from cosa.regularizers.importance_sampling import ImportanceSampling
from cosa.regularizers.semantic_decoupling import SemanticDecoupling

REGULARIZERS: dict[str, type[Regularizer]] = {
    "isl": ImportanceSampling,
    "fsl": FeatureSimilarity,
    "plda": DomainAdaptation,
    "csd": SemanticDecoupling,
    "plca": CycleAssociation,
    "dense_energy": DenseEnergy,
}
"""Name of the section in ``regularizers`` -> class."""


def build_regularizers(
    options: Any,
    num_features: int,
    num_classes: int,
    loss_weights: Mapping[str, float],
    warm_up: int = 0,
) -> nn.ModuleDict:
    """The regularizers whose weight is above 0, in the order of the configuration.

    Args:
        options: the section ``regularizers`` of the configuration, an attribute for each.
        num_features: D, channels of ``NetworkOutput.features``.
        num_classes: C, without the background.
        loss_weights: name -> weight of the terms of the section ``loss``.
        warm_up: iterations without pseudo-labels.
    """
    return nn.ModuleDict({
        name: kind(getattr(options, name), num_features, num_classes, loss_weights, warm_up)
        for name, kind in REGULARIZERS.items()
        if getattr(options, name).weight > 0
    })
