"""Dense CRF: refines a segmentation by the colours of its image.

"Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials" (Kraehenbuehl and
Koltun, 2011): mean-field inference with a Potts model and two kernels, one of position, one of
position and colour. The computation is that of the authors' program as pydensecrf wraps it, which
can be used instead.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cosa.core.errors import UserError
from cosa.core.tensors import move
from cosa.lattice import Lattice, bilateral_features
from cosa.lattice.filter import spatial_features

Array = TypeVar("Array", np.ndarray, Tensor)

PRESETS = {
    "release": {"iterations": 1, "gaussian": (1, 1), "bilateral": (4, 121, 5)},
    "toco": {"iterations": 10, "gaussian": (1, 1), "bilateral": (4, 121, 5)},
    "deeplab": {"iterations": 10, "gaussian": (3, 3), "bilateral": (10, 80, 13)},
}
"""Arguments of :func:`dense_crf`, as CoSA's release, ToCo and DeepLab have them."""

DEFAULT_PRESET = "release"
"""What ``infer.py --crf`` takes."""

# Probabilities below this count as this: pydensecrf's own floor.
_FLOOR = 1e-5

NEGLIGIBLE = 0.1
"""A class is left out of the messages if they could change its log-probabilities by no more than
this anywhere: with p <= q everywhere, its message is at most q times the sum of the kernels'
weights (normalised rows sum to about 1)."""

# With fewer, PyTorch's softmax over the last dimension is not vectorised on CPUs with AVX-512.
_MIN_CHANNELS = 16

# Kernels of position are kept for as many sizes of images, of up to so many pixels.
_KEPT_SIZES = 4
_KEPT_PIXELS = 2**20


def working_memory(pixels: int, classes: int) -> int:
    """About the bytes that :func:`dense_crf` needs at its peak on the CPU, beside its arguments.

    Measured with both backends on photographs of 500x375 to 4000x3000 pixels (`python -m
    cosa.benchmark crf --memory`): the lattice and ten to fourteen copies of the probabilities of
    the classes that are heard, here all. With few classes pydensecrf needs less. Not in it: what
    the torch backend keeps between CRFs, which all share, the kernels of position of the last
    ``_KEPT_SIZES`` sizes up to ``_KEPT_PIXELS`` pixels, 120 bytes a pixel where the standard
    deviation is 1 (220 at the most). That is half a GiB at the worst, 85 MiB for 500x375.
    """
    return pixels * (400 + 45 * max(classes, _MIN_CHANNELS))


@torch.no_grad()
def dense_crf(
    image: np.ndarray | Tensor,
    probabilities: Array,
    iterations: int = 10,
    gaussian: tuple[float, float] = (1, 1),
    bilateral: tuple[float, float, float] = (4, 121, 5),
    backend: str = "torch",
    device: torch.device | str | None = None,
    negligible: float = NEGLIGIBLE,
) -> Array:
    """Mean-field inference with symmetrically normalised kernels.

    Args:
        image: (H, W, 3) uint8, RGB.
        probabilities: (C, H, W) floating point, in [0, 1], with sum 1 at each pixel.
        iterations: 0 returns the probabilities, clipped and normalised.
        gaussian: weight and standard deviation, in pixels, of the kernel of position.
        bilateral: weight and standard deviations, in pixels and in grey levels, of the kernel of
            position and colour. A weight of 0 leaves a kernel out.
        backend: "torch", or "pydensecrf" for the package pydensecrf2, which runs on one core of
            the CPU and holds the interpreter's lock (GIL) meanwhile: no other thread of Python
            goes on, a second CRF least of all. The torch backend releases it.
        device: where the torch backend computes; None: where the probabilities are.
        negligible: the torch backend drops classes whose messages are at most this, see
            ``NEGLIGIBLE``; 0 drops none.

    Returns:
        (C, H, W) refined probabilities, with sum 1 at each pixel: an array for an array, a tensor
        on the same device for a tensor; float32, or float64 for float64 probabilities.

    Raises:
        ValueError: the shapes or types do not fit, or a parameter has no meaning.
        UserError: pydensecrf2 is asked for and is not installed.
    """
    image, given = _tensor(image), _tensor(probabilities)
    if image.dim() != 3 or image.shape[-1] != 3 or image.dtype != torch.uint8:
        raise ValueError(
            f"image must be (H, W, 3) uint8, got {tuple(image.shape)} {image.dtype}"
        )
    if given.dim() != 3 or given.shape[1:] != image.shape[:2] or not given.is_floating_point():
        raise ValueError(
            f"probabilities must be (C, {image.shape[0]}, {image.shape[1]}) floating point, "
            f"got {tuple(given.shape)} {given.dtype}"
        )
    if iterations < 0 or min(gaussian[0], bilateral[0]) < 0:
        raise ValueError("iterations and the weights of the kernels must not be negative")
    if min(*gaussian[1:], *bilateral[1:]) <= 0:
        raise ValueError("standard deviations must be positive")
    if backend == "torch":
        where = given.device if device is None else torch.device(device)
        refined = _mean_field(
            image.to(where), given.to(where, torch.float32), iterations, gaussian, bilateral,
            negligible,
        )
    elif backend == "pydensecrf":
        refined = _pydensecrf(image.cpu(), given.cpu().float(), iterations, gaussian, bilateral)
    else:
        raise ValueError(f"backend is {backend!r}: use torch or pydensecrf")
    double = given.dtype == torch.float64
    refined = refined.to(given.device, torch.float64 if double else torch.float32)
    return refined.numpy() if isinstance(probabilities, np.ndarray) else refined


def _tensor(values: np.ndarray | Tensor) -> Tensor:
    if isinstance(values, np.ndarray):  # possibly read-only, or turned by slices
        return torch.from_numpy(np.require(values, requirements=["C", "W"]))
    return values


def _mean_field(
    image: Tensor,
    probabilities: Tensor,
    iterations: int,
    gaussian: tuple[float, float],
    bilateral: tuple[float, float, float],
    negligible: float,
) -> Tensor:
    """The torch backend; (C, H, W) float32 on the device of both tensors.

    Classes whose messages are negligible get none and send none, which saves their share of the
    time; at each pixel they keep their probabilities relative to each other and, all together,
    take part in the normalisation.
    """
    result = probabilities.flatten(1).clamp(_FLOOR, 1)
    quiet = ((gaussian[0] + bilateral[0]) * result.amax(dim=1) <= negligible).tolist()
    order = sorted(range(len(quiet)), key=quiet.__getitem__)  # those that are heard first
    number = len(quiet) - sum(quiet)
    order = move(torch.tensor(order, dtype=torch.int64), result.device)
    heard, rest = order[:number], order[number:]
    own = [result.index_select(0, heard)]
    if len(rest):
        rest_mass = result.index_select(0, rest).sum(dim=0)
        own.append(rest_mass[None])  # one channel for all of them
    own = torch.cat(own).log_().T.contiguous()
    if own.device.type == "cpu":  # padded with impossible classes
        own = F.pad(own, (0, max(0, _MIN_CHANNELS - own.shape[1])), value=float("-inf"))
    refined = own.softmax(dim=1)
    kernels = _kernels(image, gaussian, bilateral) if iterations else []
    for _ in range(iterations):
        logits = own
        for kernel in kernels:
            logits = kernel.filter(refined).add_(logits)
        logits[:, number:] = own[:, number:]
        refined = logits.softmax(dim=1)
    if len(rest):
        result *= refined[:, number] / rest_mass
    result.index_copy_(0, heard, refined[:, :number].T)
    return result.view_as(probabilities)


def _kernels(
    image: Tensor, gaussian: tuple[float, float], bilateral: tuple[float, float, float]
) -> list[Lattice]:
    """The weighted, normalised kernels, but for those of weight 0."""
    # For the kernel of position, an exact separable Gaussian would do as well. But with the
    # lattice, as in pydensecrf, both programs agree to rounding.
    kernels = []
    if gaussian[0]:
        h, w = image.shape[:2]
        build = _kept_kernel if h * w <= _KEPT_PIXELS else _kernel_of_position
        kernels.append(build(h, w, gaussian[0], gaussian[1], image.device))
    if bilateral[0]:
        features = bilateral_features(image, *bilateral[1:])
        kernels.append(Lattice(features).normalized(bilateral[0]))
    return kernels


def _kernel_of_position(
    h: int, w: int, weight: float, sigma: float, device: torch.device
) -> Lattice:
    """The same for all images of a size."""
    return Lattice(spatial_features(h, w, sigma, device)).normalized(weight)


# Several threads may filter with one lattice, which is not written to.
_kept_kernel = lru_cache(maxsize=_KEPT_SIZES)(_kernel_of_position)


def _pydensecrf(
    image: Tensor,
    probabilities: Tensor,
    iterations: int,
    gaussian: tuple[float, float],
    bilateral: tuple[float, float, float],
) -> Tensor:
    """The pydensecrf backend; (C, H, W) float32."""
    try:
        from pydensecrf.densecrf import DenseCRF2D
    except ImportError as error:
        raise UserError("the backend pydensecrf needs the package pydensecrf2: "
                        "pip install pydensecrf2, or take the backend torch") from error
    classes, h, w = probabilities.shape
    crf = DenseCRF2D(w, h, classes)
    unary = -probabilities.clamp(_FLOOR, 1).log().flatten(1)
    crf.setUnaryEnergy(np.ascontiguousarray(unary.numpy()))
    if gaussian[0]:
        crf.addPairwiseGaussian(sxy=gaussian[1], compat=gaussian[0])
    if bilateral[0]:
        crf.addPairwiseBilateral(
            sxy=bilateral[1],
            srgb=bilateral[2],
            rgbim=np.ascontiguousarray(image.numpy()),
            compat=bilateral[0],
        )
    return torch.from_numpy(np.array(crf.inference(iterations))).reshape(classes, h, w)
