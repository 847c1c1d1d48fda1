"""The one place that knows the regularizers by name."""

from __future__ import annotations

import importlib

from torch import nn

from cosa.regularizer_options import RegularizersConfig

REGULARIZERS = {
    "isl": ("importance_sampling", "ImportanceSampling"),
    "fsl": ("feature_similarity", "FeatureSimilarity"),
    "plda": ("domain_adaptation", "DomainAdaptation"),
    "csd": ("semantic_decoupling", "SemanticDecoupling"),
    "plca": ("cycle_association", "CycleAssociation"),
    "dense_energy": ("dense_energy", "DenseEnergy"),
}


def build_regularizers(
    config: RegularizersConfig, num_features: int, num_classes: int
) -> nn.ModuleDict:
    built = {}
    for name, (module, kind) in REGULARIZERS.items():
        if getattr(config, name).weight > 0:
            module = importlib.import_module(f"cosa.regularizers.{module}")
            built[name] = getattr(module, kind)(getattr(config, name), num_features, num_classes)
    return nn.ModuleDict(built)
