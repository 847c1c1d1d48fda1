"""Memory and operations of a training step, counted without a GPU: tensors are shapes alone."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cosa.benchmark.timings.train import known_classes
from cosa.benchmark.timings.trainer import training_step
from cosa.config import Config, load_config, settled
from cosa.core.errors import UserError
from cosa.core.terminal import Parser, say
from cosa.cotrain import CoTraining
from cosa.training.build import build_cotraining, build_step, check_crop
from cosa.training.optimizer import build_optimizer

DEFAULT_CONFIG = "configs/voc.yaml"
GIB = 2**30
PRESENT = 3
"""Classes in the fullest image of the batch, of which the teacher's maps are."""


_FREE = (torch.ops.aten._unsafe_view.default, torch.ops.aten.detach.default)
"""Operations that compute nothing and are no views to PyTorch."""


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that live while it is active, and their highest sum.

    And the operations that compute something: on a GPU, about what the host has to launch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.highest = self.operations = 0
        self._known: set[int] = set()

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage from now on, until nobody holds it."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.highest = max(self.highest, self.now)
            weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += func.namespace == "aten" and not func.is_view and func not in _FREE
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result


def imagine(module: nn.Module, mode: FakeTensorMode) -> None:
    """Put tensors without content in the place of a module's parameters and buffers."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                fake = mode.from_tensor(value.detach())
                part._parameters[name] = nn.Parameter(fake, value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = mode.from_tensor(value)


def footprint(config: Config, classes: int, bf16: bool) -> dict[str, int]:
    """Bytes of networks, optimizer and batch, the highest sum during a step, and its operations.

    Args:
        config: its network, losses, batch and crop.
        classes: C.
        bf16: under autocast, as on a GPU; else float32.

    Returns:
        ``kept``, the bytes that live between two steps, ``peak``, and ``operations``. What PyTorch
        and CUDA need for themselves, kernels with a workspace and gaps between blocks come on top,
        on a GPU.

    Raises:
        UserError: a regularizer is on, or the crop is no whole number of patches.
    """
    device = torch.device("cpu")
    autocast = (lambda: torch.autocast("cpu", dtype=torch.bfloat16)) if bf16 else nullcontext
    cotraining = build_cotraining(config, classes, device, autocast, pretrained=False)
    check_crop(config, cotraining.online)
    if cotraining.regularizers:
        raise UserError("the memory of regularizers depends on what the images show and cannot be "
                        "counted: set their weights to 0")
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for module in (cotraining.online, cotraining.assignment):
        imagine(module, mode)
    live = LiveMemory()
    with mode, live:
        for module in (cotraining.online, cotraining.assignment):
            for tensor in (*module.parameters(), *module.buffers()):
                live.add(tensor)
        return _steps(cotraining, config, classes, live)


def _steps(
    cotraining: CoTraining, config: Config, classes: int, live: LiveMemory
) -> dict[str, int]:
    optimizer = build_optimizer(cotraining.online, config.optimizer)
    batch, step = imagined_batch(config, classes), build_step(cotraining)
    for _ in range(2):  # the optimizer's state comes with the first step
        live.operations = 0
        training_step(cotraining, config, step, optimizer, batch)
    optimizer.zero_grad()
    return {"kept": live.now, "peak": live.highest, "operations": live.operations}


def imagined_batch(config: Config, classes: int) -> dict[str, Tensor]:
    """A batch as ``CoTraining.step`` wants it; its images have up to three classes."""
    count, side = config.train.batch_size, config.augment.crop_size
    return {
        "weak": torch.zeros(count, 3, side, side), "strong": torch.zeros(count, 3, side, side),
        "image_labels": torch.zeros(count, classes),
        "valid": torch.ones(count, side, side, dtype=torch.bool),
        "present": torch.zeros(count, min(PRESENT, classes), dtype=torch.int64),
        "index": torch.zeros(count, dtype=torch.int64),
    }


def report(found: Mapping[str, int]) -> str:
    """The figures as a sentence."""
    return (f"a step needs {found['peak'] / GIB:.2f} GiB at its peak, "
            f"{found['kept'] / GIB:.2f} of them for networks, optimizer and batch, and makes "
            f"{found['operations']} operations")


def main(arguments: Sequence[str] | None = None) -> int:
    """Count the memory and the operations of a training step; nothing is computed.

    On a GPU, PyTorch and CUDA need memory of their own beside it, and the host has to launch each
    operation: it may be the slower of the two.
    """
    parser = Parser(
        prog="python -m cosa.benchmark footprint", description=main.__doc__
    )
    parser.add_argument("--config", default=DEFAULT_CONFIG, help=f"YAML file; {DEFAULT_CONFIG}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="over the YAML file")
    given = parser.parse_intermixed_args(arguments)
    # A threshold is fitted to confidences, of which there are none here.
    # Nor are there images to count, and a step is the same however long the training.
    config = settled(load_config(given.config, [
        "device=cpu", *given.overrides, "threshold.dynamic=false", "train.passes=0"]), images=0)
    bf16 = config.train.precision != "fp32"
    found = footprint(config, known_classes(config), bf16)
    say(f"{config.name}, {'bf16' if bf16 else 'fp32'}, batches of {config.train.batch_size}: "
        f"{report(found)}")
    return 0
