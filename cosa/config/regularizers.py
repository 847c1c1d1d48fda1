"""The section ``regularizers`` of the configuration: losses of other papers, all off by default.

Each has a ``weight``, 0 of which means that it is not built at all, and a ``start``, the first
iteration at which it counts. Those that read pseudo-labels never start before
``method.cls_iterations``. Other defaults are the values of the papers or of their releases; where
these have none, the sentence beside the option says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cosa.config.limits import above, at_least, at_most, below, some_part, unit


@dataclass(frozen=True)
class ImportanceSamplingOptions:
    """ISL of "High-fidelity Pseudo-labels" (hfpl): classify sampled pixels, on M and M-dagger."""

    weight: float = 0.0
    """lambda: it replaces this part of loss.cls and loss.cls_aux; 0.2 in the paper, whose authors
    scale the term by 0.1 where they train with AdamW."""
    start: int = 0
    """The first iteration at which it counts; see above."""
    samples: int = 10
    """Pixels drawn per image and class."""

    def __post_init__(self) -> None:
        unit(self, "weight")
        at_least(self, 0, "start")
        at_least(self, 1, "samples")


@dataclass(frozen=True)
class FeatureSimilarityOptions:
    """FSL of hfpl: edges of the CAM follow edges of the image."""

    weight: float = 0.0
    """1 in the paper, 0.1 where its authors train with AdamW."""
    start: int = 0
    """The first iteration at which it counts; see above."""
    grid: int = 0
    """Side of the grid of pixels that are compared; 0: twice the token grid (56 at 448/16)."""
    mu: float = 2.5
    """Sets the colour difference above which two pixels count as different."""
    sigma: float = 5.0
    """Reach of the comparison: the standard deviation of its Gaussian, in pixels of the grid."""

    def __post_init__(self) -> None:
        at_least(self, 0, "weight", "start", "grid")
        at_least(self, 0.1, "sigma")


@dataclass(frozen=True)
class DomainAdaptationOptions:
    """PLDA: features of striking and of other parts of an object become alike."""

    weight: float = 0.0
    """Of the whole; 1 in the paper."""
    start: int = 0
    """The first iteration at which it counts; see above."""
    adversarial: float = 1.0
    """Of the domain classifier's loss within it."""
    supervision: float = 1.0
    """Of the confident pseudo-supervision within it."""
    threshold: float = 0.6
    """Share of a class's largest activation above which a pixel is source (or, with the source
    erased, target); the pseudo-supervision takes these pixels as foreground."""
    background: float = 0.7
    """Pseudo-supervision: one minus the activation must reach this for background."""
    floor: float = 0.2
    """Pseudo-supervision: activations below this count as none, even where the class shows once
    the source is erased."""
    width: int = 1024
    """Channels of the domain classifier's first layer."""
    hidden: int = 512
    """Channels of its second layer, which the heads of all classes share."""
    dropout: float = 0.5
    """Share of its channels that are dropped after both."""

    def __post_init__(self) -> None:
        at_least(self, 0, "weight", "start", "adversarial", "supervision")
        unit(self, "threshold", "background", "floor")
        at_least(self, 1, "width", "hidden")
        at_least(self, 0, "dropout")
        below(self, 1, "dropout")
        some_part(self, "adversarial", "supervision")


@dataclass(frozen=True)
class SemanticDecouplingOptions:
    """CSD: an object pasted among others is seen as it is alone."""

    weight: float = 0.0
    """Of the whole; 1 in the paper."""
    start: int = 0
    """The first iteration at which it counts; see above."""
    foreground: float = 0.01
    """lambda 1, of the pasted object's KL divergence."""
    background: float = 0.1
    """lambda 2, of the pasted background's."""
    background_score: float = 1.0
    """M', the constant score of the background; the paper does not state it."""
    scale_min: float = 0.5
    """Least random factor by which a pasted region is scaled; not stated in the paper."""
    scale_max: float = 1.0
    """Largest such factor; not stated in the paper."""
    edge: float = 0.01
    """Width of the soft edge of a pasted region, as a share of the crop's side; not stated in the
    paper."""

    def __post_init__(self) -> None:
        at_least(self, 0, "weight", "start", "foreground", "background", "edge")
        above(self, 0, "scale_min")
        at_least(self, self.scale_min, "scale_max")
        some_part(self, "foreground", "background")


@dataclass(frozen=True)
class CycleAssociationOptions:
    """PLCA: pixels of two images with a common class find each other."""

    weight: float = 0.0
    """Of the whole; 1 in the paper."""
    start: int = 0
    """The first iteration at which it counts; see above."""
    feature: float = 0.1
    """Of the association of features within it."""
    probability: float = 0.1
    """Of the association of class probabilities within it."""
    lsr: float = 0.01
    """Of the label smoothing within it."""
    aggregation: float = 0.5
    """Share of its surroundings in a target pixel's feature."""
    perplexity: float = 1.0
    """Source pixels are those whose pseudo-label has at most this perplexity; the paper's sources
    are labelled by hand."""

    def __post_init__(self) -> None:
        at_least(self, 0, "weight", "start", "feature", "probability", "lsr", "perplexity")
        unit(self, "aggregation")
        some_part(self, "feature", "probability", "lsr")


@dataclass(frozen=True)
class DenseEnergyOptions:
    """Dense energy of ToCo and of CoSA's release: like neighbours are segmented alike."""

    weight: float = 0.0
    """0.05 in the releases, for crops of 448: the energy grows with the fourth power of the crop's
    side, as long as sigma_xy is the same share of it."""
    start: int = 0
    """The first iteration at which it counts; see above."""
    sigma_xy: float = 100.0
    """Reach in pixels of the crop."""
    sigma_rgb: float = 15.0
    """Reach in grey levels, 0 to 255."""
    scale: float = 0.5
    """The energy is computed at this share of the crop's side."""

    def __post_init__(self) -> None:
        at_least(self, 0, "weight", "start")
        at_least(self, 0.1, "sigma_xy", "sigma_rgb")
        above(self, 0, "scale")
        at_most(self, 1, "scale")


@dataclass(frozen=True)
class RegularizersConfig:
    """All regularizers; any mix of them may be on."""

    isl: ImportanceSamplingOptions = field(default_factory=ImportanceSamplingOptions)
    fsl: FeatureSimilarityOptions = field(default_factory=FeatureSimilarityOptions)
    plda: DomainAdaptationOptions = field(default_factory=DomainAdaptationOptions)
    csd: SemanticDecouplingOptions = field(default_factory=SemanticDecouplingOptions)
    plca: CycleAssociationOptions = field(default_factory=CycleAssociationOptions)
    dense_energy: DenseEnergyOptions = field(default_factory=DenseEnergyOptions)
