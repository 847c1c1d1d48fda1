"""CUDA graphs made of main memory: what is recorded is computed again, into the same tensors.

As with a GPU's graphs, a replay sees new values in the tensors that were read, not new tensors, and
overwrites what it wrote before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cosa.training import graphs


class PretendedGraph(TorchDispatchMode):
    """A tape of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = []
        self.replays = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, written in self.operations:
            again = func(*args, **kwargs)
            if func.is_view:  # of memory that is written anew
                continue
            for new, old in zip(tree_leaves(again), tree_leaves(written), strict=True):
                if isinstance(old, torch.Tensor) and new is not old:
                    old.detach().copy_(new)


@contextlib.contextmanager
def _recording(graph: PretendedGraph, pool, stream, capture_error_mode) -> Iterator[None]:
    with graph:
        yield


@contextlib.contextmanager
def pretended_graphs() -> Iterator[list[PretendedGraph]]:
    """``cosa.training.graphs`` records and replays on the CPU; yields the graphs that it makes."""
    made = []

    def make() -> PretendedGraph:
        made.append(PretendedGraph())
        return made[-1]

    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(graphs, "DEVICE", "cpu"))
        for name, value in {
            "CUDAGraph": make, "graph": _recording, "Stream": lambda: None,
            "graph_pool_handle": lambda: None, "synchronize": lambda device: None,
        }.items():
            patches.enter_context(mock.patch.object(torch.cuda, name, value))
        yield made
