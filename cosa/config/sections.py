"""All options with their defaults, those of the CoSA paper on VOC, section by section.

The section ``regularizers`` is in ``cosa/config/regularizers.py``; ``Config``, at the end, is the
whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cosa.config.limits import Bands, Normalization, Section, ValueRange, ordered
from cosa.config.regularizers import RegularizersConfig
from cosa.core.ranges import (
    BATCH,
    BELOW_ONE,
    CHANNELS,
    MOMENT,
    SCALE,
    SEED,
    SHARE,
    SIDE,
    WEIGHT,
    WORKERS,
    Choice,
    Filled,
    Moment,
    Range,
    Several,
    option,
)

DATASETS = ("scenes", "voc", "coco", "folder")

SCENES = Range(1, 100_000)
BLUR = Range(0.001, 100)
LAYER = Range(-10_000, 10_000)
POOLING = Choice(("max", "avg"))
EVERY = Moment(low=1)


@dataclass(frozen=True)
class DataConfig(Section):
    """Which images, and where they are."""

    name: str = option("voc", Choice(DATASETS))
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
    negatives: bool = False
    """Train on images without a label, too, as on images that show none of the classes; off: they
    take no part."""
    balance: float = option(0.0, SHARE)
    """Train more often on images of rare classes: how often is in proportion to (images that hold
    the image's rarest class) to the power of minus this. 0: on all alike; 1: inverse frequency."""
    workers: int = option(-1, WORKERS)
    """Processes that load images; 0 loads in the training process, -1 takes one for each core that
    may be used but one, at most 8."""
    keep_decoded: bool = False
    """Keep the decoded training images in memory, 0.75 MB of a 500x375 one: each loading process
    decodes an image once and keeps it, so that with several workers each comes to keep them all;
    results are the same."""
    scenes_seed: int = option(0, SEED)
    """scenes: the images are a function of it; at least 0."""
    scenes_train: int = option(1200, SCENES)
    """scenes: number of generated training images."""
    scenes_val: int = option(150, SCENES)
    """scenes: number of generated validation images."""
    scenes_test: int = option(300, SCENES)
    """scenes: number of generated test images, which the final scores are of."""
    scenes_size: int = option(96, Range(32, 1024))
    """scenes: side of the generated images in pixels, at least 32."""
    images: str = ""
    """folder: training images, nested folders allowed."""
    labels: str = ""
    """folder: a CSV file, COCO's, LabelMe's or Label Studio's JSON, VOC's or CVAT's XML, YOLO's
    text files or data.yaml (docs/data.md); empty: images lie in a subfolder for each class."""
    label_separator: str = option("", Choice(("", "none", ";", "|", ",", "/", "+", "space")))
    """folder: what is between the labels in a field of a CSV file; none: a field is one label;
    empty: found, where that is possible."""
    masks: str = ""
    """folder: masks for evaluation, never read in training: a folder of PNG files of class indices
    or colours, or a COCO JSON file."""
    colors: str = ""
    """folder: which colour of a mask means which class, a file of lines such as cat,128,0,0 or of
    JSON; empty: a labelmap.txt beside the masks or one folder up, if there is one."""
    classes: str = ""
    """folder: text file with one class name per line; empty: those of COCO's categories, of CVAT's
    labels or of data.yaml in their order, of other labels sorted."""
    val_images: str = ""
    """folder: images to score on; empty: the training images, of which those that have a mask if
    masks is set."""
    val_labels: str = ""
    """folder: labels of the images to score on, of any format as well; empty: those of the training
    images, or, with val_images, labels from the masks, or else, as for labels, subfolders."""
    val_masks: str = ""
    """folder: masks of the images to score on, like masks; empty: those, or, with val_images,
    none."""
    value_range: str | tuple[float, ...] = option("", ValueRange(("", "auto")))
    """[low, high], the values in the image files that become black and white; auto: percentiles 0.5
    and 99.5 of the training images, found once and kept with the weights; empty: the depth of each
    file decides (voc, coco, folder)."""
    bands: tuple[int, ...] = option((), Bands())
    """Numbers, from 1, of the bands of the image files that are red, green and blue, such as
    [4, 3, 2]; nothing is taken for opacity then; empty: those that the files say (voc, coco,
    folder)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name == "scenes" and (self.value_range or self.bands):
            key = "value_range" if self.value_range else "bands"
            raise ValueError(f"{key} is for voc, coco and folder: scenes are 8-bit RGB, leave it "
                             "empty")
        if self.hold_out and self.name == "scenes":
            raise ValueError("hold_out is for voc, coco and folder: scenes have test images of "
                             "their own, set it to false")


@dataclass(frozen=True)
class AugmentConfig(Section):
    """The two views of a training image."""

    crop_size: int = option(448, SIDE)
    """Side of both views in pixels, a multiple of the encoder's stride; smaller images are
    padded, and padding is never supervised."""
    scale_min: float = option(0.5, SCALE)
    """Least random factor by which an image is scaled before it is cropped."""
    scale_max: float = option(2.0, SCALE)
    """Largest such factor."""
    flip: float = option(0.5, SHARE)
    """Probability of a horizontal flip."""
    blur: float = option(0.5, SHARE)
    """Probability of a Gaussian blur in both views."""
    blur_min: float = option(0.1, BLUR)
    """Least standard deviation of the blur, in pixels of the crop."""
    blur_max: float = option(2.0, BLUR)
    """Largest such deviation."""
    strong: bool = True
    """Give the strong view, which the online network sees, a random colour operation; off: both
    views are the weak one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ordered(self, "scale_min", "scale_max")
        ordered(self, "blur_min", "blur_max")


@dataclass(frozen=True)
class ModelConfig(Section):
    """The network."""

    encoder: str = "vit_base_patch16_224"
    """Of timm: any plain ViT, or any network of stages that yields maps (ResNet, ConvNeXt,
    EfficientNet, MobileNet, Swin, ...)."""
    encoder_options: dict = option(dict, Range(-4096, 4096))
    """Passed to timm (img_size, patch_size, embed_dim, depth, num_heads, ...)."""
    output_stride: int = option(0, Range(0, 1024))
    """Pixels of a position of the maps; 0 takes 16 where a network of stages can be dilated to it,
    else the encoder's own, such as a ViT's patch size."""
    freeze_batch_norm: bool = True
    """Keep the encoder's batch statistics as they were pretrained; off: they move with the batches,
    which should then be large."""
    pretrained: bool = True
    """Start from pretrained weights: a file in weights/, else an installed package that brings
    them, else timm's hub; see weights/README.md."""
    weights: str = ""
    """A file with encoder weights, or a model on the hub, hf-hub:user/name; empty:
    weights/<encoder>.*, if there is one."""
    normalization: str | tuple[tuple[float, ...], ...] = option(
        "encoder", Normalization(("encoder", "imagenet"))
    )
    """Of the input, as the encoder's weights were trained: encoder (what timm says of the weights
    of that name), imagenet, or mean and deviation of RGB in [0, 1]: [[r, g, b], [r, g, b]]."""
    aux_layer: int = option(-3, LAYER)
    """Of a plain ViT: block whose tokens feed the auxiliary classifier; negative: counted from the
    end."""
    aux_stage: int = option(-2, LAYER)
    """Of a network of stages: stage whose map feeds it; negative: counted from the end."""
    aux_norm: bool = False
    """Layer-normalise the auxiliary features."""
    pooling: str = option("max", POOLING)
    """How the final features are pooled before they are classified: max, as in the paper, or
    avg."""
    aux_pooling: str = option("max", POOLING)
    """The same of the auxiliary features."""
    class_offset: bool = False
    """Add a learnt number to each class's scores, which no CAM contains: without it a CAM must be
    negative nearly everywhere to say that a class is absent."""
    cam_steps: int = option(0, Range(0, 1000))
    """Spread the CAMs of the assignment network, from which pseudo-labels are made, by so many
    steps over positions that look alike; no part of CoSA. 0: not at all."""
    seg_steps: int = option(0, Range(0, 1000))
    """The same of its segmentation, and so of all results."""
    early_layer: int = option(-3, LAYER)
    """The block of a ViT, or stage, by whose features positions look alike; negative: counted from
    the end."""
    affinity_power: float = option(4.0, Range(0.001, 1000))
    """Exponent of the cosines of these features; larger values keep to what is most alike."""
    aux_affinity_power: float = option(0.0, Range(0, 1000))
    """The same of the auxiliary features' cosines, by which those are multiplied; 0: they are
    not."""
    decoder_width: int = option(512, CHANNELS)
    """Hidden channels of the LargeFOV decoder."""
    decoder_dilation: int = option(5, Range(1, 128))
    """Dilation of its 3x3 convolutions, in tokens."""
    decoder_aux: bool = False
    """The decoder sees the auxiliary features beside the final ones; no part of CoSA."""
    decoder_stride: int = option(0, Range(0, 1024))
    """Pixels of a position of the segmentation, a half or a quarter of the other maps': the decoder
    is enlarged and sees the encoder's last stage of this stride, too; no part of CoSA. 0: as the
    other maps."""
    freeze_layers: int = option(0, Range(0, 10000))
    """Keep so many of the encoder's first layers as they were pretrained: its stem, then whole
    stages, or a ViT's blocks."""
    freeze_position_embedding: bool = True
    """Keep the encoder's absolute position embedding as it was pretrained, as the release does."""


@dataclass(frozen=True)
class TeacherConfig(Section):
    """The assignment network: an average of the online network over time."""

    momentum: float = option(0.9994, SHARE)
    """Share of the average that an iteration keeps, in [0, 1]; 0 copies the online network."""
    momentum_ramp: bool = False
    """Use min(momentum, (1+t)/(10+t)) at iteration t: for short trainings."""
    scales: tuple[float, ...] = option((1.0, 0.5, 1.5), Several(SCALE))
    """Factors of the crop's size at which it sees the weak view; its maps are fused."""
    flip: bool = True
    """See the mirrored view at each scale, too."""


@dataclass(frozen=True)
class ThresholdConfig(Section):
    """The confidence at which a CAM becomes foreground, Eq. (6) of CoSA."""

    dynamic: bool = True
    """Fit it to the confidences of the last batches; off: it stays at fixed."""
    fixed: float = option(0.5, SHARE)
    """The threshold when dynamic is off, in [0, 1]."""
    queue_length: int = option(100, Range(1, 100_000))
    """Batches in the queue that the mixture is fitted to."""
    initial: float = option(0.5, SHARE)
    """The threshold before the first fit, in [0, 1]."""
    smoothing: float = option(0.99, BELOW_ONE)
    """Decay of the moving average over the fits, in [0, 1), the release's; 0 takes the newest
    fit."""
    min_confidence: float = option(0.05, Range(-1e6, 0.9999999))
    """Confidences up to here are left out of the fit, as in the release; 0 or negative keeps
    all."""
    variance_floor: float = option(1e-4, Range(1e-12, 1e6))
    """Least variance of either Gaussian of the mixture, above 0: no fit to a few equal values."""
    cell: int = option(16, SIDE)
    """Confidences are averaged over squares of this side before the fit, in pixels of the crop;
    16 is the patch size of the paper's encoder."""


@dataclass(frozen=True)
class LossConfig(Section):
    """Weights of the terms of Eq. (12) of CoSA; 0 switches a term off."""

    cls: float = option(1.0, WEIGHT)
    """Classification by the final tokens against the image's labels."""
    cls_aux: float = option(1.0, WEIGHT)
    """Classification by the auxiliary tokens."""
    c2s: float = option(0.1, WEIGHT)
    """CAM2Seg, Eq. (5): the segmentation against pseudo-labels of the CAM."""
    c2s_aux: float = option(0.1, WEIGHT)
    """CAM2Seg against pseudo-labels of the auxiliary CAM."""
    s2c: float = option(0.05, WEIGHT)
    """Seg2CAM, Eq. (8): the CAM against pseudo-labels of the segmentation."""
    csc: float = option(0.1, WEIGHT)
    """Contrastive separation, Eq. (9)-(11): CAMs of unlike positions part."""


@dataclass(frozen=True)
class MethodConfig(Section):
    """What the terms are made of."""

    perplexity_alpha: float = option(0.8, Range(1e-6, 1))
    """lambda alpha of the perplexity, Eq. (4), in (0, 1]; larger values lower the least one."""
    perplexity_beta: float = option(1.0, Range(1e-6, 1000))
    """lambda beta, the exponent of the perplexity, above 0; smaller values weigh doubtful
    positions more like certain ones."""
    raw: bool = True
    """Reliability based adaptive weighting of CAM2Seg, Eq. (5)."""
    temperature: float = option(0.01, Range(1e-6, 1e6))
    """tau of the softmax that sharpens the segmentation pseudo-labels, Eq. (7); above 0."""
    csc_epsilon: float = option(1.0, Range(0, 1e9))
    """epsilon of Eq. (9)-(11): contrastive separation looks at positions of at most this
    perplexity; panels hatch those above it."""
    csc_temperature: float = option(0.5, Range(1e-6, 1e6))
    """Of the cosines that contrastive separation compares, above 0; the paper gives none."""
    cls_iterations: int | float = option(6000, MOMENT)
    """Iterations at the start with the classification terms alone: the CAMs must mean something
    before they supervise. Below 1: a share of the training."""
    s2c_start: int | float = option(6000, MOMENT)
    """Iteration at which Seg2CAM joins: the decoder must have learned something. Below 1: a share
    of the training."""


@dataclass(frozen=True)
class OptimizerConfig(Section):
    """AdamW, linear warm-up, polynomial decay."""

    lr: float = option(6e-5, Range(1e-12, 1e9))
    """The encoder's learning rate at its peak, after the warm-up."""
    head_lr_factor: float = option(10.0, Range(1e-9, 1e9))
    """Classifiers and decoder learn so much faster than the encoder."""
    weight_decay: float = option(0.01, WEIGHT)
    """AdamW's; biases, norms, tokens and the position embedding have none."""
    beta1: float = option(0.9, BELOW_ONE)
    """Decay of AdamW's mean of the gradients, in [0, 1)."""
    beta2: float = option(0.999, BELOW_ONE)
    """Decay of AdamW's mean of their squares, in [0, 1)."""
    warmup_iterations: int | float = option(1500, MOMENT)
    """Iterations in which the learning rate rises linearly to its peak; 0 for none. Below 1: a
    share of the training."""
    power: float = option(0.9, Range(0, 1000))
    """Exponent of the decay (1 - t/T)^power afterwards; 0 keeps the peak."""
    clip_norm: float = option(0.0, Range(0, 1e12))
    """Largest norm of the gradient; 0 does not clip."""


@dataclass(frozen=True)
class TrainConfig(Section):
    """The loop."""

    iterations: int = option(32000, Range(1, 10**8))
    """Steps of the whole training, over which the learning rate falls towards 0."""
    passes: float = option(0.0, Range(0, 1e6))
    """How often to go through the training images, which sets the iterations whatever their number;
    0: as many iterations as iterations says. Of both keys, the one that is given last counts."""
    batch_size: int = option(4, BATCH)
    """Images in a step, of all processes and parts together."""
    precision: str = option("auto", Choice(("auto", "bf16", "fp32")))
    """auto (bf16 on CUDA, float32 on CPU), bf16 or fp32."""
    tf32: bool = True
    """TensorFloat-32 for the float32 matrix products on CUDA."""
    compile: bool | None = None
    """torch.compile for both networks: a minute at the start, then faster steps; null: on CUDA, for
    trainings of at least 10,000 iterations."""
    cuda_graphs: bool = True
    """Replay the passes of both networks on CUDA as graphs, for which the host need not launch each
    operation; not with several processes, accumulate or activation_checkpointing."""
    activation_checkpointing: bool = False
    """For small cards: keep less for the way back, and compute it again there; not with moving
    batch statistics."""
    accumulate: int = option(1, BATCH)
    """For small cards: make each step in so many parts of the batch. The result is the same, but
    for regularizers and moving batch statistics, which see each part as a batch of its own."""
    log_every: int | float = option(50, EVERY)
    """Iterations between lines of metrics.jsonl, which hold the means since the last one. Below 1:
    a share of the training."""
    evaluate_every: int | float = option(2000, MOMENT)
    """Iterations between evaluations on the validation images; 0 evaluates at the end only. Below
    1: a share of the training."""
    checkpoint_every: int | float = option(1000, EVERY)
    """Iterations after which last.pth is written. Below 1: a share of the training."""
    checkpoint_minutes: float = option(10.0, Range(0, 1e6))
    """It is also written when the last one is so old; 0: after iterations alone."""
    keep_checkpoints: int = option(2, Range(1, 1000))
    """How many are kept: last.pth and those before it, in case that it cannot be read."""

    tensorboard: bool = False
    """Write losses, scores and panels for TensorBoard, too; needs the package tensorboard."""
    report: bool = True
    """Write report.html into the run folder at each evaluation and at the end, where the package
    matplotlib is installed, with pictures of the best, median and worst images and of each class if
    evaluate.panels is not 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate is {self.accumulate}: it must be at most batch_size, "
                             f"{self.batch_size}")


@dataclass(frozen=True)
class EvaluateConfig(Section):
    """How a network is scored."""

    image_size: int = option(448, SIDE)
    """Images are squashed to this side in pixels, their predictions resized back."""
    scales: tuple[float, ...] = option((1.0, 0.5, 1.5, 0.75, 1.25), Several(SCALE))
    """Factors of image_size at which the network sees an image; its maps are fused."""
    flip: bool = True
    """See the mirrored image at each scale, too."""
    batch_size: int = option(4, BATCH)
    """Images in a pass through the network, in each process."""
    coexistence_classes: tuple[str, ...] = ()
    """Names of the classes that C-mIoU averages."""
    panels: int = option(8, Range(0, 10_000))
    """Pictures written at each evaluation, of images evenly spread over the data set; 0: none."""
    min_class_score: float = option(0.0, SHARE)
    """The label-free segmentation leaves out classes of which the network says a lower probability
    for the whole image, but for the likeliest one; 0 keeps all, as the paper does."""
    max_images: int = option(0, Range(0, 10**9))
    """Score so many images only, evenly spread; 0 scores all."""


@dataclass(frozen=True)
class Config(Section):
    """Everything a training run depends on."""

    name: str = option("cosa", Filled("the name of the run folder"))
    """The run folder is <output>/<name>."""
    output: str = option("runs", Filled("the folder of all run folders"))
    """The folder of all run folders, made if it is missing."""
    seed: int = option(0, SEED)
    """Of all random numbers: weights, the order of the images, their augmentation; in
    0..2^63 - 1."""
    device: str = "auto"
    """auto (CUDA if there is one), cpu, cuda, cuda:N or mps."""
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
        super().__post_init__()
        cell, crop = self.threshold.cell, self.augment.crop_size
        if cell > crop:
            raise ValueError(
                f"threshold.cell is {cell}: it must fit into augment.crop_size, which is {crop}"
            )
