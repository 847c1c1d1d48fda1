"""From samples to a batch, and from a batch to what the networks read."""

from __future__ import annotations

import torch
from torch.utils.data import default_collate

from cosa.core.errors import UserError
from cosa.core.tensors import present_index
from cosa.data.images import to_planes

# The views of a batch, and what says where they are not padding.
_VALID = {"weak": "valid", "strong": "valid", "partner": "partner_valid"}


def collate(batch: list[dict] | UserError) -> dict[str, torch.Tensor] | UserError:
    """Samples as one batch, with ``present``; a user's mistake as it is."""
    if isinstance(batch, UserError):
        return batch
    whole = default_collate(batch)
    # Here, as the host would have to wait for the device to learn its shape there.
    return {**whole, "present": present_index(whole["image_labels"])}


def to_device(
    batch: dict[str, torch.Tensor], device: torch.device | str, padding: torch.Tensor
) -> dict[str, torch.Tensor]:
    """A batch of ``training_loader`` as the networks read it, without waiting for the copy.

    Args:
        padding: (3, 1, 1) float32 on the device, the colour of the padding. That of the network
            is its ``mean``: padding is exactly 0 once it is normalised.

    Returns weak, strong and, where there is one, partner as (B, 3, S, S) float32 in [0, 1]; the
    others as they are. partner_class stays on the CPU, and for a CUDA device so does a second
    image_labels, named host_labels: the host decides by them, and would have to wait for the
    device.
    """
    device = torch.device(device)
    cuda = device.type == "cuda"
    moved = {
        key: value if key == "partner_class" else value.to(device, non_blocking=cuda)
        for key, value in batch.items()
    }
    if cuda:
        moved["host_labels"] = batch["image_labels"]
    for key in _VALID.keys() & moved.keys():
        valid = moved[_VALID[key]][:, None]
        moved[key] = torch.where(valid, to_planes(moved[key]), padding)
    return moved
