"""Export a trained network for inference elsewhere: python -m cosa.export --weights FILE ...

The file holds one forward pass: RGB images (B, 3, H, W) float32 in [0, 1] in, which it normalises
itself; the maps ``OUTPUTS`` out. What else inference needs (class names, palette, thresholds,
image size) is in the file's metadata, see :func:`describe_export`. The exported program is run, and
no file is left unless it gives the network's own outputs. Only an ONNX file where there is no
onnxruntime to run it is written all the same; the command says then that it is not verified.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

import torch

import cosa
from cosa.checkpoint import TrainedNetwork, check_finite
from cosa.core.errors import UserError, one_line
from cosa.core.files import check_target, replacing
from cosa.core.hub import is_model, parse_model
from cosa.core.ranges import SIDE, whole
from cosa.core.terminal import Parser, note, say
from cosa.export.check import TOLERANCE, check_cases, compare, verify, within_tolerance
from cosa.export.formats import (
    METADATA_FILE,
    describe_export,
    onnx_bytes,
    onnx_runner,
    torch_export_bytes,
    torch_export_runner,
)
from cosa.export.forward import INPUT, MIN_PATCHES, OUTPUTS, ExportedForward, trace
from cosa.network import CoSANetwork
from cosa.predict import scaled_size

__all__ = [
    "INPUT", "METADATA_FILE", "OUTPUTS", "SUFFIXES", "TOLERANCE", "ExportedForward", "compare",
    "convert", "describe_export", "export", "main", "onnx_runner", "torch_export_runner", "trace",
]

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
MIN_OPSET = 18
"""The oldest that PyTorch's exporter writes; what its converter makes of older ones is broken."""

MAX_ONNX_BYTES = 2_000_000_000
"""A protocol buffer, so an ONNX file without satellites, ends at 2 GiB."""

# What tracing or converting a network that the exporter does not master raises.
EXPORT_ERRORS = (
    RuntimeError, ValueError, TypeError, AssertionError, LookupError, AttributeError, ImportError,
)

UPGRADE = "pip install --upgrade torch onnx onnxscript"


def brief(error: Exception) -> str:
    """The first sentence of an exporter's message, without colours: the rest fills pages."""
    text = re.sub(r"\x1b\[\d+m", "", one_line(error))
    return text.split(". ")[0]


def convert(network: TrainedNetwork, size: int | None, opset: int | None) -> bytes:
    """The content of the file: of one image size or of all, ONNX of this opset or torch.export.

    Raises:
        UserError: the converter writes another opset.
        One of ``EXPORT_ERRORS``: the exporter does not master the network at free sizes, or at all.
    """
    program = trace(network, size)
    if size is None:
        # Some encoders are traced without complaint, and yet bound to the size of the example.
        patch = network.stride
        if not within_tolerance(compare(program.module(), network, [(1, 2 * patch, 3 * patch)])):
            raise ValueError("other sizes give other values")
    metadata = describe_export(network, size)
    if opset is None:
        return torch_export_bytes(program, metadata)
    return onnx_bytes(program, metadata, opset)


def convert_as_free_as_possible(
    network: TrainedNetwork, size: int, fixed: bool, opset: int | None
) -> tuple[bytes, bool]:
    """The content of the file, and whether it takes any image size; if not, it says why.

    Raises:
        UserError: not even a fixed size can be exported.
    """
    if not fixed:
        try:
            return convert(network, None, opset), True
        except EXPORT_ERRORS as error:
            note("this network cannot be exported for all image sizes with PyTorch "
                 f"{torch.__version__} ({brief(error)}), so the size is fixed")
    try:
        return convert(network, size, opset), False
    except EXPORT_ERRORS as error:
        raise UserError(f"PyTorch {torch.__version__} cannot export this network: "
                        f"{brief(error)}; try newer packages: {UPGRADE}") from error


def require_onnx(network: CoSANetwork) -> None:
    """Raise UserError unless an ONNX file of this network can be written here."""
    missing = [name for name in ("onnx", "onnxscript") if not installed(name)]
    if missing:
        raise UserError(f"--format onnx needs {' and '.join(missing)}, not installed here: "
                        "pip install onnx onnxscript onnxruntime")
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    if size > MAX_ONNX_BYTES:
        raise UserError(f"the weights take {size / 1e9:.1f} GB and a single ONNX file holds "
                        "2 GB: use --format torch-export")


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def choose_size(network: TrainedNetwork, wanted: int | None) -> int:
    """The side that images have in verification and in a file of fixed size."""
    patch = network.stride
    nearest = max(scaled_size((wanted or network.image_size,) * 2, 1.0, patch)[0],
                  MIN_PATCHES * patch)
    if wanted is not None and wanted != nearest:
        raise UserError(f"--size {wanted} must be a multiple of the stride {patch}, from "
                        f"{MIN_PATCHES * patch} on: choose {nearest}")
    return nearest


def export(
    network: TrainedNetwork,
    output: Path,
    file_format: str,
    size: int | None = None,
    fixed: bool = False,
    opset: int = MIN_OPSET,
) -> list[str]:
    """Write the network to ``output`` and verify the file, if it can be run here.

    Without onnxruntime an ONNX file is written unverified.

    Args:
        network: from ``cosa.load``, on the CPU.
        output: the file; it appears when all is well, until then an older one stays.
        file_format: "onnx" or "torch-export".
        size: side of the images that the file is verified at, a multiple of the stride; by
            default the one that the network was evaluated at.
        fixed: bind the file to ``size``.
        opset: of ONNX.

    Returns:
        Sentences that say what was written and how it was verified, or that it was not.

    Raises:
        UserError: packages are missing, the weights are not finite, the network cannot be
            exported, the outputs differ by more than ``TOLERANCE``, or the file cannot be
            written; no file is left then.
    """
    # Converting takes long: what cannot succeed is told before.
    check_target(output)
    check_finite(network, "the network")
    onnx = file_format == "onnx"
    if onnx:
        require_onnx(network)
    size = choose_size(network, size)
    content, any_size = convert_as_free_as_possible(
        network, size, fixed, opset if onnx else None
    )
    cases = check_cases(size, network.stride, any_size)
    with replacing(output) as temporary:
        Path(temporary).write_bytes(content)
        if onnx and not installed("onnxruntime"):
            verdict = ("not verified, for want of onnxruntime: pip install onnxruntime and export "
                       "again to have the outputs compared")
        else:
            largest = verify(temporary, onnx_runner if onnx else torch_export_runner, network,
                             cases)
            shapes = " and ".join("x".join(map(str, (b, 3, h, w))) for b, h, w in cases)
            verdict = (f"verified on random images of {shapes}: the outputs differ by at most "
                       f"{largest:.1e} of their range (tolerance {TOLERANCE:.0e})")
    patch = network.stride
    sizes = (
        f"any image size in multiples of {patch} pixels, from {MIN_PATCHES * patch} on"
        if any_size else f"images of {size}x{size} alone"
    )
    return [f"{output}: {INPUT} to {', '.join(OUTPUTS)}; any batch size, {sizes}", verdict]


def default_output(weights: str, suffix: str) -> Path:
    """Beside the file of the weights; of a model on the hub, in the working directory."""
    if is_model(weights):
        return Path(parse_model(weights).repository.partition("/")[2] + suffix)
    return Path(weights).with_suffix(suffix)


def main(arguments: Sequence[str] | None = None) -> int:
    """Export a trained network for inference, with its metadata, and verify the file.

    ONNX files are verified where onnxruntime is installed.
    """
    parser = Parser(prog="python -m cosa.export", description=main.__doc__)
    add = parser.add_argument
    add("--weights", required=True, metavar="FILE", help="a checkpoint of CoSA")
    add("--format", required=True, choices=list(SUFFIXES))
    add("--output", metavar="FILE", help="default: beside the weights, as .onnx or .pt2")
    add("--size", type=whole(1, SIDE.high), metavar="N",
        help="side of the images that it is verified at, and of all images with --fixed-size; "
        "default: as evaluated")
    add("--fixed-size", action="store_true", help="take images of this size alone")
    add("--opset", type=whole(1, 1000), metavar="N",
        help=f"of ONNX, {MIN_OPSET} (default) or above")
    args = parser.parse_args(arguments)
    if args.opset is not None and (args.format != "onnx" or args.opset < MIN_OPSET):
        raise UserError(f"--opset {args.opset}: it is for --format onnx and at least {MIN_OPSET}")
    output = Path(args.output or default_output(args.weights, SUFFIXES[args.format]))
    if output.resolve() == Path(args.weights).resolve():
        raise UserError(f"--output {output} is the file of the weights: name another")
    network = cosa.load(args.weights)
    lines = export(network, output, args.format, args.size, args.fixed_size,
                   args.opset or MIN_OPSET)
    say(*lines)
    return 0
