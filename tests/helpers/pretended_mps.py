"""An Apple GPU made of main memory, as ``pretended_cuda`` makes a device of CUDA.

Beside the rules that both have (tensors of two devices do not meet, NumPy does not see them) it has
those that are its own: no tensor of float64, and a fused AdamW that does not look at ``found_inf``.
It does not show which operations PyTorch lacks there, nor what Metal computes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch

from tests.helpers.pretended_cuda import patched, patches
from tests.helpers.pretended_device import MPS, OnCuda, Pretended


@contextlib.contextmanager
def pretended_mps(macos: tuple[int, int] = (14, 0)) -> Iterator[Pretended]:
    """Let PyTorch find an Apple GPU, here and in threads started meanwhile."""
    backend = {"is_available": lambda: True, "is_built": lambda: True,
               "is_macos_or_newer": lambda *version: macos >= version}
    device = {"manual_seed": lambda seed: None, "synchronize": lambda: None,
              "get_rng_state": torch.get_rng_state, "set_rng_state": torch.set_rng_state}
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(OnCuda, "where", MPS))
        for patch in (*patched(torch.backends.mps, backend), *patched(torch.mps, device),
                      *patches()):
            stack.enter_context(patch)
        yield OnCuda.noted
