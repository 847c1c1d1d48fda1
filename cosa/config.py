"""Typed configuration: defaults here, YAML over them, ``key=value`` over both.

The defaults are those of the CoSA paper on VOC. Unknown keys and wrong types fail at start-up,
naming the key and the nearest known one. This module imports nothing else of the project except
its error type.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cosa.errors import UserError


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
        _one_of(self, "name", ("scenes", "voc", "coco", "folder"))
        _at_least(self, 1, "scenes_train", "scenes_val", "scenes_test")
        _at_least(self, 32, "scenes_size")
        _at_least(self, -1, "workers")
        _at_least(self, 0, "scenes_seed")


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
        _at_least(self, 1, "crop_size")
        _unit(self, "flip", "blur")
        _ordered(self, "scale_min", "scale_max")
        _ordered(self, "blur_min", "blur_max")


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
    aux_layer: int = -3
    """Block whose tokens feed the auxiliary classifier; negative: counted from the end."""
    aux_norm: bool = False
    """Layer-normalise the auxiliary tokens."""
    decoder_width: int = 512
    decoder_dilation: int = 5
    freeze_position_embedding: bool = True

    def __post_init__(self) -> None:
        _at_least(self, 1, "decoder_width", "decoder_dilation")


@dataclass(frozen=True)
class TeacherConfig:
    """The assignment network: an average of the online network over time."""

    momentum: float = 0.9994
    momentum_ramp: bool = False
    """Use min(momentum, (1+t)/(10+t)) at iteration t: for short trainings."""
    scales: tuple[float, ...] = (1.0, 0.5, 1.5)
    flip: bool = True

    def __post_init__(self) -> None:
        _unit(self, "momentum")
        _scales(self)


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
        _unit(self, "fixed", "initial")
        _at_least(self, 0, "smoothing")
        _below(self, 1, "smoothing", "min_confidence")
        _above(self, 0, "variance_floor")
        _at_least(self, 1, "queue_length", "cell")


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
        _at_least(self, 0, *(f.name for f in dataclasses.fields(self)))


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
        _at_least(self, 0, "cls_iterations", "s2c_start", "csc_epsilon")
        _above(self, 0, "perplexity_alpha", "perplexity_beta", "temperature", "csc_temperature")
        # A larger alpha would make the logarithm of Eq. (4) positive: a negative perplexity.
        _at_most(self, 1, "perplexity_alpha")


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
        _above(self, 0, "lr", "head_lr_factor")
        _at_least(self, 0, "weight_decay", "warmup_iterations", "power", "clip_norm")
        _at_least(self, 0, "beta1", "beta2")
        _below(self, 1, "beta1", "beta2")


@dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    iterations: int = 32000
    batch_size: int = 4
    precision: str = "auto"
    """auto (bf16 on CUDA, float32 on CPU), bf16 or fp32."""
    tf32: bool = True
    """TensorFloat-32 for the float32 matrix products on CUDA."""
    log_every: int = 50
    evaluate_every: int = 2000
    """0 evaluates at the end only."""
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        _at_least(self, 1, "iterations", "batch_size", "log_every", "checkpoint_every")
        _at_least(self, 0, "evaluate_every")
        _one_of(self, "precision", ("auto", "bf16", "fp32"))


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
        _at_least(self, 1, "image_size", "batch_size")
        _at_least(self, 0, "panels", "max_images")
        _scales(self)


@dataclass(frozen=True)
class Config:
    """Everything a training run depends on."""

    name: str = "cosa"
    """The run folder is <output>/<name>."""
    output: str = "runs"
    seed: int = 0
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    threshold: ThresholdConfig = field(default_factory=ThresholdConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        _at_least(self, 0, "seed")
        _below(self, 2**63, "seed")
        if not self.name:
            raise ValueError("name is empty: it names the run folder")
        cell, crop = self.threshold.cell, self.augment.crop_size
        if cell > crop:
            raise ValueError(
                f"threshold.cell is {cell}: it must fit into augment.crop_size, which is {crop}"
            )


def load_config(path: str | Path | None = None, overrides: typing.Sequence[str] = ()) -> Config:
    """Read a YAML file over the defaults, and ``section.key=value`` overrides over both.

    Args:
        path: YAML file; None gives the defaults.
        overrides: such as ``"optimizer.lr=1e-4"``; values are read as YAML.

    Raises:
        UserError: no such file, not YAML, unknown key, wrong type, impossible value.
    """
    tree: dict[str, Any] = {}
    source = str(path) if path else "the configuration"
    if path is not None:
        tree = _read_yaml(Path(path))
    for item in overrides:
        key, sign, text = item.partition("=")
        if not sign or not key:
            raise UserError(f"'{item}' is not an override: write it as section.key=value")
        _set(tree, key, _parse(text, item), source)
    return from_dict(tree, source)


def from_dict(tree: dict[str, Any], source: str = "the configuration") -> Config:
    """Build a Config from nested dictionaries; the inverse of :func:`to_dict`.

    Raises:
        UserError: unknown key, wrong type, impossible value.
    """
    return _build(Config, tree, "", source)


def to_dict(config: Any) -> dict[str, Any]:
    """Nested dictionaries of plain YAML types; the inverse of :func:`from_dict`."""
    out: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        elif isinstance(value, tuple):
            value = list(value)
        out[item.name] = value
    return out


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML text."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the configuration {path}: {error}") from error
    except yaml.YAMLError as error:
        message = " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML: {message}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold `key: value` lines, not a {type(tree).__name__}")
    return tree


def _parse(text: str, item: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"the value in '{item}' is not valid YAML: quote it") from error


def _set(tree: dict[str, Any], key: str, value: Any, source: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UserError(f"'{section}' in {source} is no section: cannot set '{key}'")
    tree[last] = value


def _build(cls: type, tree: Any, prefix: str, source: str) -> Any:
    if not isinstance(tree, dict):
        where = prefix.rstrip(".") or source
        raise UserError(f"'{where}' in {source} must be a section of `key: value` lines")
    kinds = typing.get_type_hints(cls)
    values = {}
    for key, value in tree.items():
        if key not in kinds:
            raise UserError(_unknown(f"{prefix}{key}", source))
        kind = kinds[key]
        if dataclasses.is_dataclass(kind):
            values[key] = _build(kind, value, f"{prefix}{key}.", source)
        else:
            values[key] = _convert(kind, value, f"{prefix}{key}", source)
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"{prefix}{error} (in {source})") from error


def _unknown(key: str, source: str) -> str:
    known = list(_all_keys(Config))
    # The right word in the wrong section is meant more often than the nearest spelling.
    moved = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]]
    near = difflib.get_close_matches(key, moved or known, n=1, cutoff=0.0)
    return f"unknown key '{key}' in {source}: did you mean '{near[0]}'?"


def _all_keys(cls: type, prefix: str = "") -> typing.Iterator[str]:
    for name, kind in typing.get_type_hints(cls).items():
        yield f"{prefix}{name}"
        if dataclasses.is_dataclass(kind):
            yield from _all_keys(kind, f"{prefix}{name}.")


def _convert(kind: Any, value: Any, key: str, source: str) -> Any:
    if typing.get_origin(kind) is tuple:
        element = typing.get_args(kind)[0]
        if not isinstance(value, list | tuple):
            raise UserError(f"'{key}' in {source} must be a list, not {value!r}")
        return tuple(_convert(element, v, key, source) for v in value)
    if kind is float and isinstance(value, str):
        # YAML 1.1 reads 1e-4 as a string: it wants 1.0e-4.
        try:
            value = float(value)
        except ValueError:
            pass
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise UserError(f"'{key}' in {source} must be of type {kind.__name__}, not {value!r}")
    if kind is float and not math.isfinite(value):
        raise UserError(f"'{key}' in {source} must be a finite number, not {value}")
    return value


def _one_of(config: Any, key: str, allowed: tuple[str, ...]) -> None:
    value = getattr(config, key)
    if value not in allowed:
        raise ValueError(f"{key} is {value!r}: use one of {', '.join(allowed)}")


def _at_least(config: Any, low: float, *keys: str) -> None:
    for key in keys:
        if not getattr(config, key) >= low:
            raise ValueError(f"{key} is {getattr(config, key)}: it must be at least {low}")


def _above(config: Any, low: float, *keys: str) -> None:
    for key in keys:
        if not getattr(config, key) > low:
            raise ValueError(f"{key} is {getattr(config, key)}: it must be above {low}")


def _at_most(config: Any, high: float, *keys: str) -> None:
    for key in keys:
        if not getattr(config, key) <= high:
            raise ValueError(f"{key} is {getattr(config, key)}: it must be at most {high}")


def _below(config: Any, high: float, *keys: str) -> None:
    for key in keys:
        if not getattr(config, key) < high:
            raise ValueError(f"{key} is {getattr(config, key)}: it must be below {high}")


def _unit(config: Any, *keys: str) -> None:
    for key in keys:
        if not 0 <= getattr(config, key) <= 1:
            raise ValueError(f"{key} is {getattr(config, key)}: it must lie in 0..1")


def _ordered(config: Any, low: str, high: str) -> None:
    a, b = getattr(config, low), getattr(config, high)
    if not 0 < a <= b:
        raise ValueError(f"{low} is {a} and {high} is {b}: both must be positive, in that order")


def _scales(config: Any) -> None:
    if not config.scales or any(not s > 0 for s in config.scales):
        raise ValueError(f"scales is {list(config.scales)}: give at least one, all positive")
