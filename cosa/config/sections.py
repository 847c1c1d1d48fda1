"""All options with their defaults, those of the CoSA paper on VOC, section by section.

The section ``regularizers`` is in ``cosa/config/regularizers.py``; ``Config``, at the end, is the
whole.
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
from cosa.config.regularizers import RegularizersConfig

DATASETS = ("scenes", "voc", "coco", "folder")


@dataclass(frozen=True)
class DataConfig:
    """Which images, and where they are."""

    name: str = "voc"
    """scenes, voc, coco or folder."""
    root: str = ""
    """Folder of the data set (voc, coco); relative paths below start here (folder)."""
    train_split: str = ""
    """Training images (voc, coco); empty: the data set's own, voc: train_aug, coco: train2014."""
    val_split: str = ""
    """Images to score on (voc, coco); empty: voc: val, coco: val2014."""
    hold_out: bool = False
    """Keep the second half of the validation images, by sorted name, for the final scores: choices
    are made on the first half (voc, coco, folder)."""
    workers: int = -1
    """Processes that load images; 0 loads in the training process, -1 takes one for each core that
    may be used but one, at most 8."""
    keep_decoded: bool = False
    """Keep the decoded training images in memory, 0.75 MB of a 500x375 one: each loading process
    decodes an image once and keeps it, so that with several workers each comes to keep them all;
    results are the same."""
    scenes_seed: int = 0
    """scenes: the images are a function of it; at least 0."""
    scenes_train: int = 1200
    """scenes: number of generated training images."""
    scenes_val: int = 150
    """scenes: number of generated validation images."""
    scenes_test: int = 300
    """scenes: number of generated test images, which the final scores are of."""
    scenes_size: int = 96
    """scenes: side of the generated images in pixels, at least 32."""
    images: str = ""
    """folder: training images, nested folders allowed."""
    labels: str = ""
    """folder: CSV with a header `image,labels`, labels joined by `;`, or a column of 0 and 1 for
    each class."""
    masks: str = ""
    """folder: masks (PNG of class indices) for evaluation, never read in training."""
    classes: str = ""
    """folder: text file with one class name per line; empty: the names in the CSV, sorted."""
    val_images: str = ""
    """folder: images to score on; empty: the training images, of which those that have a mask if
    masks is set."""
    val_labels: str = ""
    """folder: CSV of the images to score on, like labels; empty: that of the training images, or,
    with val_images, labels from the masks."""
    val_masks: str = ""
    """folder: masks of the images to score on; empty: masks, or, with val_images, none."""

    def __post_init__(self) -> None:
        one_of(self, "name", DATASETS)
        if self.hold_out and self.name == "scenes":
            raise ValueError("hold_out is for voc, coco and folder: scenes have test images of "
                             "their own, set it to false")
        at_least(self, 1, "scenes_train", "scenes_val", "scenes_test")
        at_least(self, 32, "scenes_size")
        at_least(self, -1, "workers")
        at_least(self, 0, "scenes_seed")


@dataclass(frozen=True)
class AugmentConfig:
    """The two views of a training image."""

    crop_size: int = 448
    """Side of both views in pixels, a multiple of the encoder's stride; smaller images are
    padded, and padding is never supervised."""
    scale_min: float = 0.5
    """Least random factor by which an image is scaled before it is cropped."""
    scale_max: float = 2.0
    """Largest such factor."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    blur: float = 0.5
    """Probability of a Gaussian blur in both views."""
    blur_min: float = 0.1
    """Least standard deviation of the blur, in pixels of the crop."""
    blur_max: float = 2.0
    """Largest such deviation."""
    strong: bool = True
    """Give the strong view, which the online network sees, a random colour operation; off: both
    views are the weak one."""

    def __post_init__(self) -> None:
        at_least(self, 1, "crop_size")
        unit(self, "flip", "blur")
        ordered(self, "scale_min", "scale_max")
        ordered(self, "blur_min", "blur_max")


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    encoder: str = "vit_base_patch16_224"
    """Of timm: any plain ViT, or any network of stages that yields maps (ResNet, ConvNeXt,
    EfficientNet, MobileNet, Swin, ...)."""
    encoder_options: dict = field(default_factory=dict)
    """Passed to timm (img_size, patch_size, embed_dim, depth, num_heads, ...)."""
    output_stride: int = 0
    """Pixels of a position of the maps; 0 takes 16 where a network of stages can be dilated to it,
    else the encoder's own, such as a ViT's patch size."""
    freeze_batch_norm: bool = True
    """Keep the encoder's batch statistics as they were pretrained; off: they move with the batches,
    which should then be large."""
    pretrained: bool = True
    """Start from pretrained weights: a file in weights/, else an installed package that brings
    them, else timm's hub; see weights/README.md."""
    weights: str = ""
    """A file with encoder weights; empty: weights/<encoder>.*, if there is one."""
    normalization: str | tuple[tuple[float, ...], ...] = "encoder"
    """Of the input, as the encoder's weights were trained: encoder (what timm says of the weights
    of that name), imagenet, or mean and deviation of RGB in [0, 1]: [[r, g, b], [r, g, b]]."""
    aux_layer: int = -3
    """Of a plain ViT: block whose tokens feed the auxiliary classifier; negative: counted from the
    end."""
    aux_stage: int = -2
    """Of a network of stages: stage whose map feeds it; negative: counted from the end."""
    aux_norm: bool = False
    """Layer-normalise the auxiliary features."""
    pooling: str = "max"
    """How the final features are pooled before they are classified: max, as in the paper, or
    avg."""
    aux_pooling: str = "max"
    """The same of the auxiliary features."""
    class_offset: bool = False
    """Add a learnt number to each class's scores, which no CAM contains: without it a CAM must be
    negative nearly everywhere to say that a class is absent."""
    cam_steps: int = 0
    """Spread the CAMs of the assignment network, from which pseudo-labels are made, by so many
    steps over positions that look alike; no part of CoSA. 0: not at all."""
    seg_steps: int = 0
    """The same of its segmentation, and so of all results."""
    early_layer: int = -3
    """The block of a ViT, or stage, by whose features positions look alike; negative: counted from
    the end."""
    affinity_power: float = 4.0
    """Exponent of the cosines of these features; larger values keep to what is most alike."""
    decoder_width: int = 512
    """Hidden channels of the LargeFOV decoder."""
    decoder_dilation: int = 5
    """Dilation of its 3x3 convolutions, in tokens."""
    freeze_layers: int = 0
    """Keep so many of the encoder's first layers as they were pretrained: its stem, then whole
    stages, or a ViT's blocks."""
    freeze_position_embedding: bool = True
    """Keep the encoder's absolute position embedding as it was pretrained, as the release does."""

    def __post_init__(self) -> None:
        at_least(self, 1, "decoder_width", "decoder_dilation")
        at_least(self, 0, "output_stride", "freeze_layers", "cam_steps", "seg_steps")
        above(self, 0, "affinity_power")
        one_of(self, "pooling", ("max", "avg"))
        one_of(self, "aux_pooling", ("max", "avg"))
        normalization(self, "normalization", ("encoder", "imagenet"))


@dataclass(frozen=True)
class TeacherConfig:
    """The assignment network: an average of the online network over time."""

    momentum: float = 0.9994
    """Share of the average that an iteration keeps, in [0, 1]; 0 copies the online network."""
    momentum_ramp: bool = False
    """Use min(momentum, (1+t)/(10+t)) at iteration t: for short trainings."""
    scales: tuple[float, ...] = (1.0, 0.5, 1.5)
    """Factors of the crop's size at which it sees the weak view; its maps are fused."""
    flip: bool = True
    """See the mirrored view at each scale, too."""

    def __post_init__(self) -> None:
        unit(self, "momentum")
        positive_scales(self)


@dataclass(frozen=True)
class ThresholdConfig:
    """The confidence at which a CAM becomes foreground, Eq. (6) of CoSA."""

    dynamic: bool = True
    """Fit it to the confidences of the last batches; off: it stays at fixed."""
    fixed: float = 0.5
    """The threshold when dynamic is off, in [0, 1]."""
    queue_length: int = 100
    """Batches in the queue that the mixture is fitted to."""
    initial: float = 0.5
    """The threshold before the first fit, in [0, 1]."""
    smoothing: float = 0.99
    """Decay of the moving average over the fits, in [0, 1), the release's; 0 takes the newest
    fit."""
    min_confidence: float = 0.05
    """Confidences up to here are left out of the fit, as in the release; 0 or negative keeps
    all."""
    variance_floor: float = 1e-4
    """Least variance of either Gaussian of the mixture, above 0: no fit to a few equal values."""
    cell: int = 16
    """Confidences are averaged over squares of this side before the fit, in pixels of the crop;
    16 is the patch size of the paper's encoder."""

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
    """Classification by the final tokens against the image's labels."""
    cls_aux: float = 1.0
    """Classification by the auxiliary tokens."""
    c2s: float = 0.1
    """CAM2Seg, Eq. (5): the segmentation against pseudo-labels of the CAM."""
    c2s_aux: float = 0.1
    """CAM2Seg against pseudo-labels of the auxiliary CAM."""
    s2c: float = 0.05
    """Seg2CAM, Eq. (8): the CAM against pseudo-labels of the segmentation."""
    csc: float = 0.1
    """Contrastive separation, Eq. (9)-(11): CAMs of unlike positions part."""

    def __post_init__(self) -> None:
        at_least(self, 0, *(f.name for f in dataclasses.fields(self)))


@dataclass(frozen=True)
class MethodConfig:
    """What the terms are made of."""

    perplexity_alpha: float = 0.8
    """lambda alpha of the perplexity, Eq. (4), in (0, 1]; larger values lower the least one."""
    perplexity_beta: float = 1.0
    """lambda beta, the exponent of the perplexity, above 0; smaller values weigh doubtful
    positions more like certain ones."""
    raw: bool = True
    """Reliability based adaptive weighting of CAM2Seg, Eq. (5)."""
    temperature: float = 0.01
    """tau of the softmax that sharpens the segmentation pseudo-labels, Eq. (7); above 0."""
    csc_epsilon: float = 1.0
    """epsilon of Eq. (9)-(11): contrastive separation looks at positions of at most this
    perplexity; panels hatch those above it."""
    csc_temperature: float = 0.5
    """Of the cosines that contrastive separation compares, above 0; the paper gives none."""
    cls_iterations: int = 6000
    """Iterations at the start with the classification terms alone: the CAMs must mean something
    before they supervise."""
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
    """The encoder's learning rate at its peak, after the warm-up."""
    head_lr_factor: float = 10.0
    """Classifiers and decoder learn so much faster than the encoder."""
    weight_decay: float = 0.01
    """AdamW's; biases, norms, tokens and the position embedding have none."""
    beta1: float = 0.9
    """Decay of AdamW's mean of the gradients, in [0, 1)."""
    beta2: float = 0.999
    """Decay of AdamW's mean of their squares, in [0, 1)."""
    warmup_iterations: int = 1500
    """Iterations in which the learning rate rises linearly to its peak; 0 for none."""
    power: float = 0.9
    """Exponent of the decay (1 - t/T)^power afterwards; 0 keeps the peak."""
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
    """Steps of the whole training, over which the learning rate falls towards 0."""
    batch_size: int = 4
    """Images in a step, of all processes and parts together."""
    precision: str = "auto"
    """auto (bf16 on CUDA, float32 on CPU), bf16 or fp32."""
    tf32: bool = True
    """TensorFloat-32 for the float32 matrix products on CUDA."""
    compile: bool = False
    """torch.compile for both networks: a slow start, then perhaps faster steps."""
    activation_checkpointing: bool = False
    """For small cards: keep less for the way back, and compute it again there; not with moving
    batch statistics."""
    accumulate: int = 1
    """For small cards: make each step in so many parts of the batch. The result is the same, but
    for regularizers and moving batch statistics, which see each part as a batch of its own."""
    log_every: int = 50
    """Iterations between lines of metrics.jsonl, which hold the means since the last one."""
    evaluate_every: int = 2000
    """Iterations between evaluations on the validation images; 0 evaluates at the end only."""
    checkpoint_every: int = 1000
    """Iterations after which last.pth is written."""
    checkpoint_minutes: float = 10.0
    """It is also written when the last one is so old; 0: after iterations alone."""
    keep_checkpoints: int = 2
    """How many are kept: last.pth and those before it, in case that it cannot be read."""

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
    """Images are squashed to this side in pixels, their predictions resized back."""
    scales: tuple[float, ...] = (1.0, 0.5, 1.5, 0.75, 1.25)
    """Factors of image_size at which the network sees an image; its maps are fused."""
    flip: bool = True
    """See the mirrored image at each scale, too."""
    batch_size: int = 4
    """Images in a pass through the network, in each process."""
    coexistence_classes: tuple[str, ...] = ()
    """Names of the classes that C-mIoU averages."""
    panels: int = 8
    """Pictures written at each evaluation, of images evenly spread over the data set; 0: none."""
    min_class_score: float = 0.0
    """The label-free segmentation leaves out classes of which the network says a lower probability
    for the whole image, but for the likeliest one; 0 keeps all, as the paper does."""
    max_images: int = 0
    """Score so many images only, evenly spread; 0 scores all."""

    def __post_init__(self) -> None:
        at_least(self, 1, "image_size", "batch_size")
        at_least(self, 0, "panels", "max_images")
        unit(self, "min_class_score")
        positive_scales(self)


@dataclass(frozen=True)
class Config:
    """Everything a training run depends on."""

    name: str = "cosa"
    """The run folder is <output>/<name>."""
    output: str = "runs"
    """The folder of all run folders, made if it is missing."""
    seed: int = 0
    """Of all random numbers: weights, the order of the images, their augmentation; in
    0..2^63 - 1."""
    device: str = "auto"
    """auto (CUDA if there is one), cpu, cuda or cuda:N."""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    threshold: ThresholdConfig = field(default_factory=ThresholdConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    regularizers: RegularizersConfig = field(default_factory=RegularizersConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        at_least(self, 0, "seed")
        below(self, 2**63, "seed")
        if not self.name:
            raise ValueError("name is empty: it names the run folder")
        cell, crop = self.threshold.cell, self.augment.crop_size
        if cell > crop:
            raise ValueError(
                f"threshold.cell is {cell}: it must fit into augment.crop_size, which is {crop}"
            )
