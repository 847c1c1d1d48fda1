"""Networks of stages (CNNs, hierarchical transformers), read through timm's own interface."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from cosa.core.errors import UserError, one_line
from cosa.encoders.reader import Features, Reader, check_layers

PROBE = (128, 192)
"""Height and width of the image by which a model shows its maps: multiples of any stride of timm's
models, and no multiple of their windows, so that those for one size alone are found."""

LONGEST = 120
"""Characters of what timm says, within a sentence."""


@dataclass(frozen=True)
class StageReader(Reader):
    """Reads what follows the last stage, before any pooling, and an earlier stage.

    Of a ConvNeXt or Swin the former is what the last norm yields, wherever timm has it. Maps of
    earlier stages, which may be finer, are averaged over the positions of the final one.
    """

    aux_stage: int
    """Index of the auxiliary stage, from 0, as timm's ``forward_intermediates`` counts them."""
    aux_stride: int
    """Side in pixels of a position of that stage's map; divides ``stride``."""
    early_stride: int
    """The same of the early stage."""
    channels_last: bool
    """Whether the model gives its final map as (B, h, w, width)."""
    fine_stage: int | None = None
    """Index of the stage of the finer map."""

    @classmethod
    def of(
        cls, encoder: nn.Module, name: str, aux_stage: int, early_stage: int, fine_stride: int = 0
    ) -> StageReader:
        """The reader of a timm model, found by a look at its maps.

        Args:
            name: of the model, for errors.
            aux_stage, early_stage: -1 is the last stage, 0 the first.
            fine_stride: read the last stage of this stride, too; 0: no other one.

        Raises:
            UserError: it has no such stage, or yields no maps of any size.
        """
        final, stages = _probe(encoder, name)
        if not isinstance(final, Tensor):
            raise UserError(f"model.encoder={name} yields several maps in the place of a final "
                            "one: choose another encoder")
        count = len(stages)
        check_layers(name, count, "stages", aux_stage=aux_stage, early_layer=early_stage)
        aux, early = stages[aux_stage], stages[early_stage]
        width = encoder.num_features
        channels_last = final.ndim == 4 and final.shape[1] != width == final.shape[3]
        final = final.permute(0, 3, 1, 2) if channels_last else final
        if final.ndim != 4 or final.shape[1] != width:
            raise UserError(f"model.encoder={name} yields {tuple(final.shape[1:])} instead of a "
                            f"map of {width} channels: choose another encoder")
        stride, *others = (_stride(found) for found in (final, aux, early))
        if not stride or any(not other or stride % other for other in others):
            sizes = " and ".join(str(tuple(found.shape[2:])) for found in (final, aux, early))
            raise UserError(f"model.encoder={name} yields maps of {sizes} positions for an image "
                            f"of {PROBE}: they must divide it, choose another encoder")
        fine = _finer(name, [_stride(found) for found in stages], stride, fine_stride)
        return cls(
            stride, width, aux.shape[1], early_stage % count,
            0 if fine is None else stages[fine].shape[1], fine_stride or stride,
            aux_stage % count, *others, channels_last, fine,
        )

    def read(self, encoder: nn.Module, images: Tensor, early: bool = False) -> Features:
        """See :meth:`cosa.encoders.reader.Reader.read`."""
        # The layout in which convolutions are fastest, on GPUs and CPUs; values are the same.
        images = images.contiguous(memory_format=torch.channels_last)
        wanted = {self.aux_stage, self.early_layer} if early else {self.aux_stage}
        wanted = sorted(wanted if self.fine_stage is None else wanted | {self.fine_stage})
        final, stages = encoder.forward_intermediates(images, indices=wanted, output_fmt="NCHW")
        if self.channels_last:
            final = final.permute(0, 3, 1, 2)
        norm = getattr(getattr(encoder, "head", None), "norm", None)
        if isinstance(norm, LayerNorm2d):  # behind the pooling in a ConvNeXt
            final = norm(final)
        maps = dict(zip(wanted, stages, strict=True))
        return Features(
            final,
            self._averaged(maps[self.aux_stage], self.aux_stride),
            self._averaged(maps[self.early_layer], self.early_stride) if early else None,
            None if self.fine_stage is None else maps[self.fine_stage],
        )

    def _averaged(self, found: Tensor, stride: int) -> Tensor:
        finer = self.stride // stride
        return F.avg_pool2d(found, finer) if finer > 1 else found


def _finer(name: str, strides: list[int], stride: int, wanted: int) -> int | None:
    """The last stage of the stride that the segmentation is to have; None for that of all maps.

    Raises:
        UserError: there is none, or it is none that the decoder can be enlarged to.
    """
    if not wanted:
        return None
    possible = [other for other in (stride // 2, stride // 4) if other in strides]
    if wanted not in possible:
        others = " or ".join(map(str, possible))
        raise UserError(f"model.decoder_stride={wanted} cannot be had of {name}, whose maps have a "
                        f"stride of {stride}: " + (f"choose {others}, of which it has a stage, or 0"
                                                   if possible else "set it to 0"))
    return max(index for index, found in enumerate(strides) if found == wanted)


@torch.no_grad()
def _probe(encoder: nn.Module, name: str) -> tuple[Tensor, list[Tensor]]:
    """The final map of an empty image and those of all stages."""
    training = encoder.training
    try:
        final, stages = encoder.eval().forward_intermediates(
            torch.zeros(1, 3, *PROBE), output_fmt="NCHW"
        )
    except AttributeError as error:
        raise UserError(f"model.encoder={name} yields no maps of its stages in this version of "
                        f"timm ({one_line(error, LONGEST)}): choose another encoder"
                        ) from error
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"model.encoder={name} takes images of one size only, and training and "
                        f"inference need several ({one_line(error, LONGEST)}): choose another "
                        "encoder, such as convnext_tiny, resnet50 or swin_tiny_patch4_window7_224"
                        ) from error
    encoder.train(training)
    return final, stages


def _stride(found: Tensor) -> int:
    """Pixels of a position of a map of ``PROBE``; 0 if these are no whole squares."""
    high, wide = (side // positions for side, positions in zip(PROBE, found.shape[2:], strict=True))
    whole = (high * found.shape[2], wide * found.shape[3]) == PROBE
    return high if high == wide and whole else 0
