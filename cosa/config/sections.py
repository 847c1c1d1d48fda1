"""The sections of the configuration, with their defaults: those of the CoSA paper on VOC.

The section ``regularizers`` is in ``cosa/config/regularizers.py``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from cosa.config.limits import (
    above,
    at_least,
    at_most,
    below,
    normalization,
    one_of,
    ordered,
    positive_scales,
    unit,
)


@dataclass(frozen=True)
class DataConfig:
    """Which images, and where they are."""

    name: str = "voc"
    """scenes, voc, coco or folder."""
    root: str = ""
    """Folder of the data set (voc, coco); relative paths below start here (folder)."""
    train_split: str = ""
    """Empty: the data set's own (voc: train_aug, coco: train2014)."""
    val_split: str = ""
    workers: int = -1
    """Loader processes; -1 takes what the machine has."""
    scenes_seed: int = 0
    scenes_train: int = 1200
    scenes_val: int = 150
    scenes_test: int = 300
    scenes_size: int = 96
    """Side of the generated images in pixels."""
    images: str = ""
    """folder: training images, nested folders allowed."""
    labels: str = ""
    """folder: CSV with a header `image,labels`, labels joined by `;`."""
    masks: str = ""
    """folder: masks (PNG of class indices) for evaluation, never read in training."""
    classes: str = ""
    """folder: text file with one class name per line; empty: the names in the CSV, sorted."""
    val_images: str = ""
    val_labels: str = ""
    val_masks: str = ""

    def __post_init__(self) -> None:
        one_of(self, "name", ("scenes", "voc", "coco", "folder"))
        at_least(self, 1, "scenes_train", "scenes_val", "scenes_test")
        at_least(self, 32, "scenes_size")
        at_least(self, -1, "workers")
        at_least(self, 0, "scenes_seed")


@dataclass(frozen=True)
class AugmentConfig:
    """The two views of a training image."""

    crop_size: int = 448
    scale_min: float = 0.5
    scale_max: float = 2.0
    flip: float = 0.5
    """Probability of a horizontal flip."""
    blur: float = 0.5
    """Probability of a Gaussian blur in both views."""
    blur_min: float = 0.1
    blur_max: float = 2.0
    """Radius of the blur in pixels."""
    strong: bool = True
    """Off: both views are the weak one."""

    def __post_init__(self) -> None:
        at_least(self, 1, "crop_size")
        unit(self, "flip", "blur")
        ordered(self, "scale_min", "scale_max")
        ordered(self, "blur_min", "blur_max")


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    encoder: str = "vit_base_patch16_224"
    """Any plain ViT of timm."""
    encoder_options: dict = field(default_factory=dict)
    """Passed to timm (img_size, patch_size, embed_dim, depth, num_heads, ...)."""
    pretrained: bool = True
    """Start from ImageNet weights: a file in weights/, else timm's hub."""
    weights: str = ""
    """A file with encoder weights; empty: weights/<encoder>.*"""
    normalization: str | tuple[tuple[float, ...], ...] = "encoder"
    """Of the input, as the encoder's weights were trained: encoder (what timm says of the weights
    of that name), imagenet, or mean and deviation of RGB in [0, 1]: [[r, g, b], [r, g, b]]."""
    aux_layer: int = -3
    """Block whose tokens feed the auxiliary classifier; negative: counted from the end."""
    aux_norm: bool = False
    """Layer-normalise the auxiliary tokens."""
    decoder_width: int = 512
    decoder_dilation: int = 5
    freeze_position_embedding: bool = True

    def __post_init__(self) -> None:
        at_least(self, 1, "decoder_width", "decoder_dilation")
        normalization(self, "normalization", ("encoder", "imagenet"))


@dataclass(frozen=True)
class TeacherConfig:
    """The assignment network: an average of the online network over time."""

    momentum: float = 0.9994
    momentum_ramp: bool = False
    """Use min(momentum, (1+t)/(10+t)) at iteration t: for short trainings."""
    scales: tuple[float, ...] = (1.0, 0.5, 1.5)
    flip: bool = True

    def __post_init__(self) -> None:
        unit(self, "momentum")
        positive_scales(self)


@dataclass(frozen=True)
class ThresholdConfig:
    """The confidence at which a CAM becomes foreground, Eq. (6) of CoSA."""

    dynamic: bool = True
    fixed: float = 0.5
    """Used when dynamic is off."""
    queue_length: int = 100
    """Batches in the queue that the mixture is fitted to."""
    initial: float = 0.5
    smoothing: float = 0.99
    """Decay of the moving average over the fits; 0 takes the newest fit."""
    min_confidence: float = 0.05
    """Confidences up to here are left out of the fit; 0 or negative keeps all."""
    variance_floor: float = 1e-4
    cell: int = 16
    """Confidences are averaged over squares of this side (pixels) before the fit."""

    def __post_init__(self) -> None:
        unit(self, "fixed", "initial")
        at_least(self, 0, "smoothing")
        below(self, 1, "smoothing", "min_confidence")
        above(self, 0, "variance_floor")
        at_least(self, 1, "queue_length", "cell")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms of Eq. (12) of CoSA; 0 switches a term off."""

    cls: float = 1.0
    cls_aux: float = 1.0
    c2s: float = 0.1
    c2s_aux: float = 0.1
    s2c: float = 0.05
    csc: float = 0.1

    def __post_init__(self) -> None:
        at_least(self, 0, *(f.name for f in dataclasses.fields(self)))


@dataclass(frozen=True)
class MethodConfig:
    """What the terms are made of."""

    perplexity_alpha: float = 0.8
    perplexity_beta: float = 1.0
    raw: bool = True
    """Reliability based adaptive weighting of CAM2Seg, Eq. (5)."""
    temperature: float = 0.01
    """Of the softmax that sharpens the segmentation pseudo-labels, Eq. (7)."""
    csc_epsilon: float = 1.0
    """Contrastive separation looks at positions of at most this perplexity."""
    csc_temperature: float = 0.5
    cls_iterations: int = 6000
    """Train with the classification terms alone for so long."""
    s2c_start: int = 6000
    """Iteration at which Seg2CAM joins: the decoder must have learned something."""

    def __post_init__(self) -> None:
        at_least(self, 0, "cls_iterations", "s2c_start", "csc_epsilon")
        above(self, 0, "perplexity_alpha", "perplexity_beta", "temperature", "csc_temperature")
        # A larger alpha would make the logarithm of Eq. (4) positive: a negative perplexity.
        at_most(self, 1, "perplexity_alpha")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, linear warm-up, polynomial decay."""

    lr: float = 6e-5
    head_lr_factor: float = 10.0
    """Classifiers and decoder learn so much faster than the encoder."""
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    warmup_iterations: int = 1500
    power: float = 0.9
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0 does not clip."""

    def __post_init__(self) -> None:
        above(self, 0, "lr", "head_lr_factor")
        at_least(self, 0, "weight_decay", "warmup_iterations", "power", "clip_norm")
        at_least(self, 0, "beta1", "beta2")
        below(self, 1, "beta1", "beta2")


@dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    iterations: int = 32000
    batch_size: int = 4
    precision: str = "auto"
    """auto (bf16 on CUDA, float32 on CPU), bf16 or fp32."""
    tf32: bool = True
    """TensorFloat-32 for the float32 matrix products on CUDA."""
    compile: bool = False
    """torch.compile for both networks: a minute or more at the start, then perhaps faster steps."""
    activation_checkpointing: bool = False
    """For small cards: keep less for the way back, and compute it again there."""
    accumulate: int = 1
    """For small cards: make each step in so many parts of the batch. The result is the same, but
    for regularizers, which see each part as a batch of its own."""
    log_every: int = 50
    evaluate_every: int = 2000
    """0 evaluates at the end only."""
    checkpoint_every: int = 1000
    """Iterations after which last.pth is written."""
    checkpoint_minutes: float = 10.0
    """It is also written when the last one is so old; 0: after iterations alone."""
    keep_checkpoints: int = 2
    """last.pth and those before it, in case that it cannot be read."""

    def __post_init__(self) -> None:
        at_least(self, 1, "iterations", "batch_size", "log_every", "checkpoint_every",
                 "keep_checkpoints", "accumulate")
        at_least(self, 0, "evaluate_every", "checkpoint_minutes")
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate is {self.accumulate}: it must be at most batch_size, "
                             f"{self.batch_size}")
        one_of(self, "precision", ("auto", "bf16", "fp32"))


@dataclass(frozen=True)
class EvaluateConfig:
    """How a network is scored."""

    image_size: int = 448
    """Images are squashed to this side, their predictions resized back."""
    scales: tuple[float, ...] = (1.0, 0.5, 1.5, 0.75, 1.25)
    flip: bool = True
    batch_size: int = 4
    coexistence_classes: tuple[str, ...] = ()
    """Names of the classes that C-mIoU averages."""
    panels: int = 8
    """Pictures written at each evaluation."""
    max_images: int = 0
    """Score so many images only; 0 scores all."""

    def __post_init__(self) -> None:
        at_least(self, 1, "image_size", "batch_size")
        at_least(self, 0, "panels", "max_images")
        positive_scales(self)
