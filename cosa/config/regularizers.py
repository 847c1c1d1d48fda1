"""The section ``regularizers`` of the configuration: losses of other papers, all off by default.

Each has a ``weight``, 0 of which means that it is not built at all, and a ``start``, the first
iteration at which it counts, or, below 1, the share of the training after which it does. Those that
read pseudo-labels never start before ``method.cls_iterations``. Other defaults are the values of
the papers or of their releases; where these have none, the sentence beside the option says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cosa.config.limits import Section, ordered, some_part
from cosa.core.ranges import BELOW_ONE, CHANNELS, MOMENT, SCALE, SHARE, WEIGHT, Range, option

SIGMA = Range(0.1, 1e5)


@dataclass(frozen=True)
class ImportanceSamplingOptions(Section):
    """ISL of "High-fidelity Pseudo-labels" (hfpl): classify sampled pixels, on M and M-dagger."""

    weight: float = option(0.0, SHARE)
    """lambda: it replaces this part of loss.cls and loss.cls_aux; 0.2 in the paper, whose authors
    scale the term by 0.1 where they train with AdamW."""
    start: int | float = option(0, MOMENT)
    """The first iteration at which it counts; see above."""
    samples: int = option(10, Range(1, 10_000))
    """Pixels drawn per image and class."""


@dataclass(frozen=True)
class FeatureSimilarityOptions(Section):
    """FSL of hfpl: edges of the CAM follow edges of the image."""

    weight: float = option(0.0, WEIGHT)
    """1 in the paper, 0.1 where its authors train with AdamW."""
    start: int | float = option(0, MOMENT)
    """The first iteration at which it counts; see above."""
    grid: int = option(0, Range(0, 2048))
    """Side of the grid of pixels that are compared; 0: twice the token grid (56 at 448/16)."""
    mu: float = option(2.5, Range(-1000, 1000))
    """Sets the colour difference above which two pixels count as different."""
    sigma: float = option(5.0, SIGMA)
    """Reach of the comparison: the standard deviation of its Gaussian, in pixels of the grid."""


@dataclass(frozen=True)
class DomainAdaptationOptions(Section):
    """PLDA: features of striking and of other parts of an object become alike."""

    weight: float = option(0.0, WEIGHT)
    """Of the whole; 1 in the paper."""
    start: int | float = option(0, MOMENT)
    """The first iteration at which it counts; see above."""
    adversarial: float = option(1.0, WEIGHT)
    """Of the domain classifier's loss within it."""
    supervision: float = option(1.0, WEIGHT)
    """Of the confident pseudo-supervision within it."""
    threshold: float = option(0.6, SHARE)
    """Share of a class's largest activation above which a pixel is source (or, with the source
    erased, target); the pseudo-supervision takes these pixels as foreground."""
    background: float = option(0.7, SHARE)
    """Pseudo-supervision: one minus the activation must reach this for background."""
    floor: float = option(0.2, SHARE)
    """Pseudo-supervision: activations below this count as none, even where the class shows once
    the source is erased."""
    width: int = option(1024, CHANNELS)
    """Channels of the domain classifier's first layer."""
    hidden: int = option(512, CHANNELS)
    """Channels of its second layer, which the heads of all classes share."""
    dropout: float = option(0.5, BELOW_ONE)
    """Share of its channels that are dropped after both."""

    def __post_init__(self) -> None:
        super().__post_init__()
        some_part(self, "adversarial", "supervision")


@dataclass(frozen=True)
class SemanticDecouplingOptions(Section):
    """CSD: an object pasted among others is seen as it is alone."""

    weight: float = option(0.0, WEIGHT)
    """Of the whole; 1 in the paper."""
    start: int | float = option(0, MOMENT)
    """The first iteration at which it counts; see above."""
    foreground: float = option(0.01, WEIGHT)
    """lambda 1, of the pasted object's KL divergence."""
    background: float = option(0.1, WEIGHT)
    """lambda 2, of the pasted background's."""
    background_score: float = option(1.0, Range(-1e6, 1e6))
    """M', the constant score of the background; the paper does not state it."""
    scale_min: float = option(0.5, SCALE)
    """Least random factor by which a pasted region is scaled; not stated in the paper."""
    scale_max: float = option(1.0, SCALE)
    """Largest such factor; not stated in the paper."""
    edge: float = option(0.01, Range(0, 10))
    """Width of the soft edge of a pasted region, as a share of the crop's side; not stated in the
    paper."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ordered(self, "scale_min", "scale_max")
        some_part(self, "foreground", "background")


@dataclass(frozen=True)
class CycleAssociationOptions(Section):
    """PLCA: pixels of two images with a common class find each other."""

    weight: float = option(0.0, WEIGHT)
    """Of the whole; 1 in the paper."""
    start: int | float = option(0, MOMENT)
    """The first iteration at which it counts; see above."""
    feature: float = option(0.1, WEIGHT)
    """Of the association of features within it."""
    probability: float = option(0.1, WEIGHT)
    """Of the association of class probabilities within it."""
    lsr: float = option(0.01, WEIGHT)
    """Of the label smoothing within it."""
    aggregation: float = option(0.5, SHARE)
    """Share of its surroundings in a target pixel's feature."""
    perplexity: float = option(1.0, Range(0, 1e9))
    """Source pixels are those whose pseudo-label has at most this perplexity; the paper's sources
    are labelled by hand."""

    def __post_init__(self) -> None:
        super().__post_init__()
        some_part(self, "feature", "probability", "lsr")


@dataclass(frozen=True)
class DenseEnergyOptions(Section):
    """Dense energy of ToCo and of CoSA's release: like neighbours are segmented alike."""

    weight: float = option(0.0, WEIGHT)
    """0.05 in the releases, for crops of 448: the energy grows with the fourth power of the crop's
    side, as long as sigma_xy is the same share of it."""
    start: int | float = option(0, MOMENT)
    """The first iteration at which it counts; see above."""
    sigma_xy: float = option(100.0, SIGMA)
    """Reach in pixels of the crop."""
    sigma_rgb: float = option(15.0, SIGMA)
    """Reach in grey levels, 0 to 255."""
    scale: float = option(0.5, Range(0.001, 1))
    """The energy is computed at this share of the crop's side."""


@dataclass(frozen=True)
class RegularizersConfig(Section):
    """All regularizers; any mix of them may be on."""

    isl: ImportanceSamplingOptions = field(default_factory=ImportanceSamplingOptions)
    fsl: FeatureSimilarityOptions = field(default_factory=FeatureSimilarityOptions)
    plda: DomainAdaptationOptions = field(default_factory=DomainAdaptationOptions)
    csd: SemanticDecouplingOptions = field(default_factory=SemanticDecouplingOptions)
    plca: CycleAssociationOptions = field(default_factory=CycleAssociationOptions)
    dense_energy: DenseEnergyOptions = field(default_factory=DenseEnergyOptions)
