"""The CoSA network: an encoder from timm, two CAM classifiers and a LargeFOV decoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosa.affinity import affinity, spread
from cosa.cam import resize
from cosa.core.errors import UserError
from cosa.core.tensors import in_full_precision
from cosa.decoder import FinerDecoder, LargeFOV
from cosa.encoders.build import build_encoder, choose_reader, first_layers
from cosa.encoders.normalization import IMAGENET, per_channel, resolve
from cosa.encoders.reader import Features

LEAST_PROBABILITY = 1e-6
"""In the logarithm of spread probabilities."""

BATCH_NORM = nn.modules.batchnorm._BatchNorm
"""The base of all layers that keep statistics of batches, timm's too."""

UNDECAYED = ("_token", "pos_embed", "relative_position_bias_table")
"""Ends of the names of weights without decay, beside biases and the like."""


@dataclass
class NetworkOutput:
    """What one forward pass yields; (h, w) is the grid of positions, image size over stride.

    The segmentation has a grid of its own, (h', w'), image size over ``seg_stride``: the same, or
    two or four times as fine. All but the features is float32 under autocast, too.
    """

    logits: Tensor  # (B, C) class scores of the final features, before the sigmoid
    aux_logits: Tensor  # (B, C) class scores of the auxiliary features
    cam: Tensor  # (B, C, h, w) class activation map M, unbounded
    aux_cam: Tensor  # (B, C, h, w) auxiliary class activation map, unbounded
    seg: Tensor  # (B, C+1, h', w') segmentation logits, channel 0 is the background
    features: Tensor  # (B, D, h, w) final features, of a ViT after its last LayerNorm
    offset: Tensor | None = None  # (C, 1, 1) what class scores have beside the CAM, if anything
    aux_offset: Tensor | None = None  # (C, 1, 1) the same of the auxiliary ones

    @property
    def position_logits(self) -> Tensor:
        """(B, C, h, w) class scores of single positions: the CAM with the offset."""
        return self.cam if self.offset is None else self.cam + self.offset

    @property
    def aux_position_logits(self) -> Tensor:
        """The same of the auxiliary CAM."""
        if self.aux_offset is None:
            return self.aux_cam
        return self.aux_cam + self.aux_offset


class CamClassifier(nn.Conv2d):
    """A bias-free 1x1 convolution: as a map the CAM, and of pooled features the class scores.

    The weights start from a truncated normal with standard deviation 0.01 (scores near 0).

    Args:
        width: channels D of the features.
        num_classes: C.
        pooling: "max" or "avg", over all positions.
        offset: add a learnt number to each class's scores, which no CAM contains: classes are
            absent from most images, and without it the CAM itself must be negative nearly
            everywhere to say so. It starts at the log-odds of 1 in C.
    """

    def __init__(self, width: int, num_classes: int, pooling: str, offset: bool):
        super().__init__(width, num_classes, 1, bias=False)
        nn.init.trunc_normal_(self.weight, std=0.01)
        self.pooling = pooling
        start = torch.full((num_classes,), -math.log(max(1, num_classes - 1)))
        self.offset = nn.Parameter(start) if offset else None

    def scores(self, features: Tensor) -> Tensor:
        """(B, C) float32 class scores of features (B, D, h, w), before the sigmoid."""
        if self.pooling == "max":
            pooled = features.amax(dim=(2, 3), keepdim=True)
        else:
            pooled = features.mean(dim=(2, 3), keepdim=True)
        scores = in_full_precision(self, pooled).flatten(1)
        return scores if self.offset is None else scores + self.offset

    def offset_of_maps(self) -> Tensor | None:
        """(C, 1, 1) what the scores have beside the CAM; None without an offset."""
        return None if self.offset is None else self.offset[:, None, None]


class CoSANetwork(nn.Module):
    """The network of CoSA, online or assignment (Sec. 3 of the paper).

    Args:
        num_classes: number C of foreground classes.
        encoder: timm name of a plain ViT: ViT, DeiT, DINOv2 (``VisionTransformer``) or
            EVA-02, DINOv3 (``Eva``); or of a network of stages: ResNet, ConvNeXt, EfficientNet,
            MobileNet, Swin and many others. It starts with random weights.
        encoder_options: further arguments of the timm model, such as ``patch_size``,
            ``embed_dim``, ``depth``, ``num_heads``, ``img_size`` (of the position embedding).
        aux_layer: of a plain ViT, the block whose raw output the auxiliary CAM reads; -3 is the
            third block from the end, 0 the first.
        aux_stage: of a network of stages, the stage that the auxiliary CAM reads; -2 is the last
            but one, 0 the first.
        early_layer: the block or stage by whose features maps are spread, counted likewise.
        output_stride: pixels of a position of the maps; 0 takes 16 where a network of stages can
            be dilated to it, else the encoder's own.
        freeze_batch_norm: keep the encoder's batch statistics as they were pretrained: small
            batches have none worth the name. Scales and shifts are trained.
        aux_norm: apply a LayerNorm of its own to the auxiliary features.
        pooling, aux_pooling, class_offset: of the two classifiers, see ``CamClassifier``.
        cam_steps, seg_steps, affinity_power: in evaluation mode alone, where targets and results
            are made, CAMs and segmentation are spread by so many steps over positions that look
            alike (``cosa.affinity``); 0: not at all.
        aux_affinity_power: that of the auxiliary features, whose cosines count, too; 0: they do
            not.
        decoder_width: hidden channels of the LargeFOV decoder.
        decoder_dilation: dilation of its 3x3 convolutions.
        decoder_aux: the decoder sees the auxiliary features, too, behind the final ones in one map.
        decoder_stride: pixels of a position of the segmentation, a half or a quarter of the maps'
            stride: the decoder is a ``FinerDecoder``, which reads the last stage of this stride,
            too. 0: that of the other maps.
        normalization: mean and standard deviation of RGB in [0, 1] that the encoder's weights
            were trained with: "encoder" for what timm says of its name, "imagenet", or both as
            three numbers each. They are kept in the buffers ``mean`` and ``std``, (3, 1, 1)
            float32, and saved with the weights.

    The decoder's hidden layers start from Kaiming's normal initialisation.

    Raises:
        UserError: the encoder, one of its options or the normalisation is unknown or does not
            fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        num_classes: int,
        encoder: str = "vit_base_patch16_224",
        encoder_options: Mapping[str, Any] | None = None,
        aux_layer: int = -3,
        aux_stage: int = -2,
        early_layer: int = -3,
        output_stride: int = 0,
        freeze_batch_norm: bool = True,
        aux_norm: bool = False,
        pooling: str = "max",
        aux_pooling: str = "max",
        class_offset: bool = False,
        cam_steps: int = 0,
        seg_steps: int = 0,
        affinity_power: float = 4.0,
        aux_affinity_power: float = 0.0,
        decoder_width: int = 512,
        decoder_dilation: int = 5,
        decoder_aux: bool = False,
        decoder_stride: int = 0,
        normalization: str | Sequence[Sequence[float]] = "encoder",
    ):
        super().__init__()
        if num_classes < 1:
            raise UserError(f"a network needs at least one class, not {num_classes}")
        self.num_classes = num_classes
        self.encoder = build_encoder(encoder, encoder_options or {}, output_stride)
        self.cam_steps, self.seg_steps = cam_steps, seg_steps
        self.reader = choose_reader(
            self.encoder, encoder, aux_layer, aux_stage, output_stride,
            early_layer if cam_steps or seg_steps else None, decoder_stride,
        )
        self.affinity_power, self.aux_affinity_power = affinity_power, aux_affinity_power
        for name, colour in zip(("mean", "std"), resolve(normalization, encoder), strict=True):
            self.register_buffer(name, per_channel(colour))
        self.freeze_batch_norm = freeze_batch_norm
        # Kept, not derived: of the average, which moves with the statistics, no weight is trained.
        self._frozen_norms: list[nn.Module] = []
        width, aux_width = self.reader.width, self.reader.aux_width
        self.aux_norm = nn.LayerNorm(aux_width, eps=1e-6) if aux_norm else nn.Identity()
        self.classifier = CamClassifier(width, num_classes, pooling, class_offset)
        self.aux_classifier = CamClassifier(aux_width, num_classes, aux_pooling, class_offset)
        self.decoder_aux = decoder_aux
        seen = width + aux_width * decoder_aux
        shape = num_classes + 1, decoder_width, decoder_dilation
        self.decoder = (FinerDecoder(seen, self.reader.fine_width, *shape) if decoder_stride
                        else LargeFOV(seen, *shape))
        self.train()  # freezes what is to be frozen

    def forward(self, images: Tensor) -> NetworkOutput:
        """Class scores, CAMs and segmentation of a batch.

        Args:
            images: (B, 3, H, W) float, RGB in [0, 1]; H and W are multiples of ``stride``.

        Raises:
            ValueError: the size is not a multiple of the stride.
        """
        features, aux_features, early_features, fine = self.encode(images)
        seen = torch.cat([features, aux_features], dim=1) if self.decoder_aux else features
        output = NetworkOutput(
            logits=self.classifier.scores(features),
            aux_logits=self.aux_classifier.scores(aux_features),
            cam=in_full_precision(self.classifier, features),
            aux_cam=in_full_precision(self.aux_classifier, aux_features),
            seg=self.decoder(seen, fine),
            features=features,
            offset=self.classifier.offset_of_maps(),
            aux_offset=self.aux_classifier.offset_of_maps(),
        )
        if early_features is not None:
            alike = [(early_features, self.affinity_power)]
            if self.aux_affinity_power:
                alike.append((aux_features, self.aux_affinity_power))
            self._spread(output, affinity(*alike))
        return output

    def _spread(self, output: NetworkOutput, weights: Tensor) -> None:
        """Spread the maps of an output over what is alike; CAMs without what is negative.

        Of a finer segmentation the means over the CAMs' positions are spread: what it knows within
        them is kept, and affinities of all its positions would need up to 256 times the memory.
        """
        if self.cam_steps:
            output.cam = spread(F.relu(output.cam), weights, self.cam_steps)
            output.aux_cam = spread(F.relu(output.aux_cam), weights, self.cam_steps)
        if self.seg_steps:
            likely, finer = output.seg.softmax(dim=1), self.stride // self.seg_stride
            means = F.avg_pool2d(likely, finer) if finer > 1 else likely
            found = spread(means, weights, self.seg_steps).clamp_min(LEAST_PROBABILITY).log()
            if finer > 1:
                change = found - means.clamp_min(LEAST_PROBABILITY).log()
                found = output.seg.log_softmax(dim=1) + resize(change, output.seg.shape[-2:])
            output.seg = found

    @property
    def seg_stride(self) -> int:
        """Side in pixels of a position of the segmentation, ``stride`` or a part of it."""
        return self.reader.fine_stride

    @property
    def stride(self) -> int:
        """Side in pixels of a position of the maps; image sizes are multiples of it."""
        return self.reader.stride

    def encode(self, images: Tensor) -> Features:
        """The features of images (B, 3, H, W) in [0, 1]; early ones where maps are spread."""
        height, width = images.shape[-2:]
        stride = self.stride
        if height < 1 or width < 1 or height % stride or width % stride:
            raise ValueError(
                f"an image size of {height}x{width} is no multiple of the encoder's stride, "
                f"{stride}: resize the images, or use cosa.predict.multi_scale for any size"
            )
        # In place: a second tensor of the images' size costs more than the arithmetic.
        normalized = (images - self.mean).div_(self.std)
        spreads = not self.training and (self.cam_steps or self.seg_steps)
        read = self.reader.read(self.encoder, normalized, early=bool(spreads))
        return read._replace(aux=self.aux_norm(read.aux.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    def train(self, mode: bool = True) -> CoSANetwork:
        """Training or evaluation mode; frozen batch statistics are those of evaluation in both."""
        super().train(mode)
        for norm in self._batch_norms() if self.freeze_batch_norm else self._frozen_norms:
            norm.eval()
        return self

    def moving_statistics(self) -> list[Tensor]:
        """Means and variances that training moves with its batches, float; none if frozen."""
        norms = [] if self.freeze_batch_norm else self._batch_norms()
        norms = [norm for norm in norms if norm not in self._frozen_norms]
        statistics = ((norm.running_mean, norm.running_var) for norm in norms)
        return [tensor for pair in statistics for tensor in pair if tensor is not None]

    def _batch_norms(self) -> list[nn.Module]:
        return [module for module in self.encoder.modules() if isinstance(module, BATCH_NORM)]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Weights of earlier versions, which knew only ImageNet's normalisation, keep that."""
        if any(key.startswith(f"{prefix}encoder.") for key in state_dict):
            for name, colour in zip(("mean", "std"), IMAGENET, strict=True):
                state_dict.setdefault(prefix + name, per_channel(colour))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def freeze_position_embedding(self) -> None:
        """Exclude the absolute position embedding from training, if the encoder has one."""
        position = getattr(self.encoder, "pos_embed", None)
        if isinstance(position, nn.Parameter):
            position.requires_grad_(False)

    def freeze_first_layers(self, count: int) -> None:
        """Exclude the encoder's stem and first stages or blocks from training.

        Their batch statistics stay, too, whatever those of the others do.

        Raises:
            UserError: there are not so many, or timm does not say which they are.
        """
        frozen = first_layers(self.encoder, count) if count else []
        for parameter in frozen:
            parameter.requires_grad_(False)
        ids = set(map(id, frozen))
        self._frozen_norms = [norm for norm in self._batch_norms() if id(norm.weight) in ids]
        self.train(self.training)

    def parameter_groups(
        self, lr: float, head_lr_factor: float = 10.0, weight_decay: float = 0.01
    ) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer.

        The encoder learns at ``lr``; classifiers, auxiliary norm and decoder at
        ``lr * head_lr_factor``. Biases, norms, layer scales, prefix tokens and position
        embeddings have no weight decay; frozen parameters are left out.

        Returns:
            Groups with ``name``, ``params``, ``lr`` (the peak value), ``lr_scale`` (1 or
            ``head_lr_factor``, for schedules) and ``weight_decay``; empty groups are left out.
        """
        groups: dict[str, dict[str, Any]] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            scale = 1.0 if name.startswith("encoder.") else head_lr_factor
            plain = parameter.ndim <= 1 or name.endswith(UNDECAYED)
            part = "encoder" if name.startswith("encoder.") else "heads"
            group = groups.setdefault(
                f"{part}_no_decay" if plain else part,
                {
                    "params": [],
                    "lr": lr * scale,
                    "lr_scale": scale,
                    "weight_decay": 0.0 if plain else weight_decay,
                },
            )
            group["params"].append(parameter)
        return [{"name": name, **group} for name, group in groups.items()]
