"""A training step as CUDA graphs: recorded once for each size, replayed at every step.

A step of a ViT-B has two thousand operations, which a host launches in more time than an H200 needs
to compute them. A replayed graph is launched as one. There is one for each pass of a network
(``Graphed``), and one for each function between these passes (``Replays``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from cosa.core.errors import one_line
from cosa.core.tensors import move
from cosa.core.terminal import note
from cosa.cotrain import Calls
from cosa.network import NetworkOutput

DEVICE = "cuda"
"""The type of device that has graphs."""

WARM_UP = 2
"""Passes of a size before it is recorded: libraries allocate and choose their kernels in them."""
MOST = 8
"""Graphs of one function, for as many shapes of its arguments: they differ in the number of classes
that the fullest image of a batch holds."""


class Graphed:
    """Calls a network as it is for the first passes of each size of image, then by CUDA graphs.

    A graph writes the same memory each time: what is returned is good until the next call with
    images of that size. Weights may change between two calls, in place. A network that draws
    numbers draws others each time.

    With gradient, one pass may be on its way: forward, then backward, then the next, before which
    the loss is to be let go: nodes of autograd that live on would lead a recording to where they
    were made. The way back is recorded for those outputs that a loss has read. When others are
    read, it is computed anew for that step, and recorded anew with the next.

    Args:
        call: a ``CoSANetwork``, an ``AssignmentNetwork`` or a ``Compiled`` one.
    """

    def __init__(self, call: Callable[[Tensor], NetworkOutput]) -> None:
        self.stride: int = call.stride
        self._call = call
        network = call if isinstance(call, nn.Module) else call.network
        self._weights = [p for p in network.parameters() if p.requires_grad]
        self._passes: dict[torch.Size, _Pass] = {}
        self._failed = False

    def __call__(self, images: Tensor) -> NetworkOutput:
        """The network's output for images (B, 3, H, W)."""
        if self._failed or images.device.type != DEVICE:
            return self._call(images)
        known = self._passes.setdefault(images.shape, _Pass())
        with _autocast_of(images.device)():
            if known.made >= WARM_UP and known.recorded is None:
                self._record(known, images)
            if known.recorded is None:
                known.made += 1
                output = self._call(images)
                return known.watched(output) if torch.is_grad_enabled() else output
        if torch.is_grad_enabled():
            return self._replay_with_gradient(known, images)
        return _copied(known.recorded.replay(images))

    def _record(self, known: _Pass, images: Tensor) -> None:
        """Record the pass, and the way back if there is one; without it from now on if it fails."""
        read = known.read if torch.is_grad_enabled() else None
        with _failures_told() as failures:
            known.recorded = _Recorded(self._call, images, read, self._weights)
        if failures:
            self._failed = True
            self._passes.clear()

    def _replay_with_gradient(self, known: _Pass, images: Tensor) -> NetworkOutput:
        recorded = known.recorded
        outputs = _Replayed.apply(self, known, images, *self._weights)
        return replace(recorded.output, **dict(zip(recorded.outputs, outputs, strict=True)))

    def way_back(self, known: _Pass, images: Tensor, grads: dict[str, Tensor]) -> list[Tensor]:
        """Gradients of the weights for those of some outputs, which are not those recorded."""
        with torch.enable_grad():
            output = self._call(images)
        torch.cuda.synchronize(images.device)  # what was recorded may still run
        known.recorded, known.read = None, set(grads)
        return torch.autograd.grad(
            [getattr(output, name) for name in grads], self._weights, list(grads.values()),
            allow_unused=True,
        )


class Replays(Calls):
    """Calls functions as they are for the first times, then by CUDA graphs: see ``Calls``.

    What is returned is good until the next call with the same key and shapes. Of each function, the
    graphs of one key are kept, at most ``MOST``.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple, dict[tuple, _Function]]] = {}
        self._recorder: _Recorder | None = None
        self._failed = False

    def call(self, key: tuple, function: Callable[..., Any], *given: Any) -> Any:
        """See :meth:`Calls.call`."""
        known = self._find(key, given)
        if known is None:
            return function(*given)
        if known.recorded is None:
            self._record(known, given, lambda: _RecordedCall(self._recorder, function, given))
        return function(*given) if known.recorded is None else known.recorded.replay(given)

    def losses(
        self, key: tuple, function: Callable[..., dict[str, Tensor]], read: dict[str, Tensor],
        *given: Any,
    ) -> dict[str, Tensor]:
        """See :meth:`Calls.losses`."""
        known = self._find(key, (read, given))
        if known is None:
            return function(read, *given)
        moved = _on_device(given, next(iter(read.values())).device)
        if known.recorded is None:
            self._record(known, moved, lambda: _RecordedLosses(
                self._recorder, function, read, moved))
        if known.recorded is None:
            return function(read, *given)
        known.recorded.take(moved)
        loss, values = _ReplayedLosses.apply(known.recorded, *read.values())
        names = known.recorded.names
        return dict(zip(names, (loss, *values[1:].unbind()), strict=True))

    def _find(self, key: tuple, given: Any) -> _Function | None:
        """What is known of this call, if it is to be replayed."""
        leaves = tree_leaves(given)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if self._failed or any(tensor.device.type != DEVICE for tensor in tensors):
            return None
        kept, functions = self._known.get(key[0], (None, {}))
        if kept != key:
            if functions:
                torch.cuda.synchronize(tensors[0].device)  # what was recorded may still run
            functions = {}
            self._known[key[0]] = key, functions
        shapes = tuple(leaf.shape if isinstance(leaf, Tensor) else None for leaf in leaves)
        if shapes not in functions and len(functions) == MOST:
            return None
        known = functions.setdefault(shapes, _Function())
        known.made += 1
        return known if known.made > WARM_UP else None

    def _record(self, known: _Function, given: Any, make: Callable[[], Any]) -> None:
        with _failures_told() as failures:
            self._recorder = self._recorder or _Recorder(tree_leaves(given)[0].device)
            known.recorded = make()
        if failures:
            self._failed = True
            self._known.clear()


@dataclass
class _Function:
    """What is known of the calls of a function with arguments of some shapes."""

    made: int = 0
    recorded: Any = None


class _Recorder:
    """Makes graphs that share their memory, and are replayed one after the other."""

    def __init__(self, device: torch.device) -> None:
        self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        # PyTorch gives a pool up for good when the last graph is gone that has memory of it.
        with self.recording() as self._keeper:
            torch.zeros(1, device=device)

    @contextmanager
    def recording(self) -> Iterator[torch.cuda.CUDAGraph]:
        """Record what is computed within the context."""
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as the loader's, may go on calling CUDA.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            yield graph


@contextmanager
def _failures_told() -> Iterator[list[Exception]]:
    """A note about what fails in the context; the list then holds it."""
    failures: list[Exception] = []
    try:
        yield failures
    except Exception as error:  # drivers and libraries refuse in many ways, none of them ours
        failures.append(error)
        note(f"CUDA graphs failed, going on without them ({one_line(error)}); "
             "train.cuda_graphs=false avoids the attempt")
        if torch.cuda.is_available():
            # A recording that was broken off leaves the generator waiting for its end.
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())


class _RecordedCall:
    """A function of tensors."""

    def __init__(self, recorder: _Recorder, function: Callable[..., Any], given: Any) -> None:
        self._given = tree_map(torch.clone, given)
        with recorder.recording() as self._graph:
            self._result = function(*self._given)

    def replay(self, given: Any) -> Any:
        _copy(self._given, given)
        self._graph.replay()
        return self._result


class _RecordedLosses:
    """A function from what is read of a network's output to losses, with its gradient."""

    def __init__(
        self, recorder: _Recorder, function: Callable[..., dict[str, Tensor]],
        read: dict[str, Tensor], given: Any,
    ) -> None:
        self._read = {name: tensor.detach().clone().requires_grad_(tensor.requires_grad)
                      for name, tensor in read.items()}
        self._given = tree_map(torch.clone, given)
        with recorder.recording() as self._graph:
            values = function(self._read, *self._given)
            self.names = list(values)
            loss = values[self.names[0]]
            self.grads = torch.autograd.grad(loss, list(self._read.values()), allow_unused=True)
            self.values = torch.stack(list(values.values())).detach()

    def take(self, given: Any) -> None:
        """The arguments of the next replay, but for what is read."""
        _copy(self._given, given)

    def replay(self, read: tuple[Tensor, ...]) -> Tensor:
        """The losses, (n,)."""
        _copy(list(self._read.values()), list(read))
        self._graph.replay()
        return self.values.clone()


class _ReplayedLosses(torch.autograd.Function):
    """A recorded loss as a step of autograd: to the first value, and to all without gradient."""

    @staticmethod
    def forward(ctx, recorded: _RecordedLosses, *read: Tensor):
        ctx.recorded = recorded
        values = recorded.replay(read)
        ctx.mark_non_differentiable(values)
        return values[0].clone(), values

    @staticmethod
    def backward(ctx, grad: Tensor, _: Tensor | None):
        return None, *(None if own is None else own * grad for own in ctx.recorded.grads)


@torch.no_grad()
def _copy(into: Any, given: Any) -> None:
    """Write tensors into others, which are in the same places of two trees."""
    torch._foreach_copy_(tree_leaves(into), tree_leaves(given), non_blocking=True)


def _on_device(given: Any, device: torch.device) -> Any:
    """The same tree with its numbers as scalar tensors on a device, for which nobody waits."""
    numbers = [leaf for leaf in tree_leaves(given) if not isinstance(leaf, Tensor)]
    if not numbers:
        return given
    moved = iter(move(torch.tensor(numbers, dtype=torch.float32), device).unbind())
    return tree_map(lambda leaf: leaf if isinstance(leaf, Tensor) else next(moved), given)


class _Pass:
    """What is known of the passes of one size."""

    def __init__(self) -> None:
        self.made = 0
        self.read: set[str] = set()
        """The outputs that had a gradient."""
        self.recorded: _Recorded | None = None

    def watched(self, output: NetworkOutput) -> NetworkOutput:
        """The same output, of which is noticed what a loss reads."""
        # Views of it: within the network, the features have a gradient without being read.
        views = {name: tensor.view_as(tensor) for name, tensor in _with_gradient(output).items()}
        for name, view in views.items():
            view.register_hook(lambda grad, name=name: self.read.add(name))
        return replace(output, **views)


class _Recorded:
    """A pass, and the way back from the outputs that were ``read``, None for no way back.

    What the graphs read and write lives as long as this object.
    """

    def __init__(
        self, call: Callable[[Tensor], NetworkOutput], images: Tensor, read: set[str] | None,
        weights: list[Tensor],
    ) -> None:
        self.images = images.clone()
        recorder = _Recorder(images.device)
        with recorder.recording() as self._forward:
            self.output = call(self.images)
        self.outputs = list(_with_gradient(self.output))
        self.read = read
        if not read:
            return
        self._grads = {name: torch.zeros_like(getattr(self.output, name))
                       for name in self.outputs if name in read}
        with recorder.recording() as self._backward:
            self._weight_grads = torch.autograd.grad(
                [getattr(self.output, name) for name in self._grads], weights,
                list(self._grads.values()), allow_unused=True,
            )
        # Nothing is to lead into the recorded pass.
        self.output = _detached(self.output)

    def replay(self, images: Tensor) -> NetworkOutput:
        """The output for images of the size of those that were recorded."""
        self.images.copy_(images)
        self._forward.replay()
        return self.output

    def replay_back(self, grads: dict[str, Tensor]) -> list[Tensor | None]:
        """Gradients of the weights for those of the outputs ``read``."""
        torch._foreach_copy_([self._grads[name] for name in grads], list(grads.values()))
        self._backward.replay()
        # Others than these objects, or autograd would copy them.
        return [None if grad is None else grad.detach() for grad in self._weight_grads]


class _Replayed(torch.autograd.Function):
    """A recorded pass as a step of autograd: from images and weights to the outputs."""

    @staticmethod
    def forward(ctx, graphed: Graphed, known: _Pass, images: Tensor, *weights: Tensor):
        ctx.set_materialize_grads(False)
        ctx.graphed, ctx.known, ctx.images = graphed, known, images
        ctx.autocast = _autocast_of(images.device)
        output = known.recorded.replay(images)
        return tuple(getattr(output, name).detach() for name in known.recorded.outputs)

    @staticmethod
    def backward(ctx, *grads: Tensor | None):
        recorded = ctx.known.recorded
        given = {name: grad for name, grad in zip(recorded.outputs, grads, strict=True)
                 if grad is not None}
        if given.keys() == recorded.read:
            found = recorded.replay_back(given)
        else:
            with ctx.autocast():
                found = ctx.graphed.way_back(ctx.known, ctx.images, given)
        return None, None, None, *found


def _with_gradient(output: NetworkOutput) -> dict[str, Tensor]:
    """The parts of an output through which gradients can flow, by name."""
    parts = ((part.name, getattr(output, part.name)) for part in fields(output))
    return {name: tensor for name, tensor in parts if tensor is not None and tensor.requires_grad}


def _changed(output: NetworkOutput, change: Callable[[Tensor], Tensor]) -> NetworkOutput:
    parts = ((part.name, getattr(output, part.name)) for part in fields(output))
    return replace(output, **{name: change(part) for name, part in parts if part is not None})


def _detached(output: NetworkOutput) -> NetworkOutput:
    return _changed(output, Tensor.detach)


def _copied(output: NetworkOutput) -> NetworkOutput:
    """Copies of all but the features, which are large: two scales may be of one size."""
    return replace(_changed(output, Tensor.clone), features=output.features)


def _autocast_of(device: torch.device) -> Callable[[], torch.autocast]:
    """What makes the autocast context in force anew, without its memory of weights.

    The graph of one pass must not read what another, or none, has cast.
    """
    kind, enabled = device.type, torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(kind)
    return lambda: torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)

