"""Export a trained network for inference elsewhere: python -m cosa.export --weights FILE ...

The file holds one forward pass: normalised images (B, 3, H, W) float32 in, the maps ``OUTPUTS``
out. What else inference needs (class names, palette, thresholds, image size, normalisation) is
in the file's metadata, see :func:`describe_export`. The exported program is run, and no file is
left unless it gives the network's own outputs. Only an ONNX file where there is no onnxruntime to
run it is written all the same; the command says then that it is not verified.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import io
import json
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import cosa
from cosa.checkpoint import check_finite, one_line
from cosa.data.images import IMAGENET_MEAN, IMAGENET_STD
from cosa.errors import UserError, run_program
from cosa.files import check_target, replacing
from cosa.network import PREFIX_TOKENS, CoSANetwork
from cosa.predict import scaled_size

INPUT = "images"
OUTPUTS = {
    "seg": "segmentation logits (batch, classes + 1, rows, columns), channel 0: background",
    "cam": "class activation map (batch, classes, rows, columns), unbounded",
    "aux_cam": "auxiliary class activation map, like cam",
    "logits": "class scores (batch, classes), before the sigmoid",
    "aux_logits": "auxiliary class scores, like logits",
}
"""Fields of ``NetworkOutput`` that are exported, in this order; rows and columns: patches."""

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
METADATA_FILE = "cosa.json"
"""Where a torch.export file keeps the metadata: torch.export.load(extra_files={this: ""})."""

TOLERANCE = 1e-4
"""Largest difference allowed, relative to the largest magnitude of the output in question."""

MIN_PATCHES, MAX_PATCHES = 2, 2048
"""Per side. Exporters treat sides of length 1 as a case of its own."""

MAX_BATCH = 65535
"""Some versions of PyTorch want a bound, whichever."""

MIN_OPSET = 18
"""The oldest that PyTorch's exporter writes; what its converter makes of older ones is broken."""

MAX_ONNX_BYTES = 2_000_000_000
"""A protocol buffer, so an ONNX file without satellites, ends at 2 GiB."""

# What tracing or converting a network that the exporter does not master raises.
EXPORT_ERRORS = (
    RuntimeError, ValueError, TypeError, AssertionError, LookupError, AttributeError, ImportError,
)

UPGRADE = "pip install --upgrade torch onnx onnxscript"

Runner = Callable[[Tensor], Mapping[str, Tensor]]
Case = tuple[int, int, int]  # batch, height, width


class PositionedPatches(nn.Module):
    """A patch embedding that adds the position embedding, resized whatever the grid.

    ``cosa.network.embed`` resizes unless the grid is the embedding's own, which an exporter would
    turn into a condition on the image size. Resizing to the same grid changes no value.

    Args:
        patch_embed: gives (B, h, w, D).
        position: (1, h0*w0, D), without entries for prefix tokens.
    """

    def __init__(self, patch_embed: nn.Module, position: Tensor):
        super().__init__()
        self.patch_embed = patch_embed
        grid = position.unflatten(1, patch_embed.grid_size).permute(0, 3, 1, 2)
        self.register_buffer("position", grid.float().contiguous())

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images)
        grid = (patches.shape[1], patches.shape[2])
        position = F.interpolate(self.position, grid, mode="bicubic", align_corners=False)
        return patches + position.permute(0, 2, 3, 1).to(patches.dtype)


class ExportedForward(nn.Module):
    """The forward pass of a copy of ``network`` with the maps ``OUTPUTS`` as a dictionary."""

    def __init__(self, network: CoSANetwork):
        super().__init__()
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        encoder = self.network.encoder
        if encoder.pos_embed is None:
            return
        position = encoder.pos_embed
        height, width = encoder.patch_embed.grid_size
        prefix, patches = position.split([position.shape[1] - height * width, height * width], 1)
        start = 0
        for name in PREFIX_TOKENS if prefix.shape[1] else ():
            token = getattr(encoder, name, None)
            if token is not None:
                part = prefix[:, start : start + token.shape[1]]
                setattr(encoder, name, nn.Parameter(token + part, requires_grad=False))
                start += token.shape[1]
        encoder.patch_embed = PositionedPatches(encoder.patch_embed, patches)
        encoder.pos_embed = None

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        output = self.network(images)
        return {name: getattr(output, name) for name in OUTPUTS}


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings and notes of the exporters, which are meant for their developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def brief(error: Exception) -> str:
    """The first sentence of an exporter's message, without colours: the rest fills pages."""
    text = re.sub(r"\x1b\[\d+m", "", one_line(error))
    return text.split(". ")[0]


def trace(network: CoSANetwork, size: int | None) -> ExportedProgram:
    """The network as a program of any batch size, of one image size or of all (``size`` None)."""
    patch = network.patch_size
    shape: dict[int, Any] = {0: Dim("batch", min=1, max=MAX_BATCH)}
    height = width = size
    if size is None:
        # All different, and no number that occurs elsewhere, so that no two are taken for one.
        height, width = 5 * patch, 7 * patch
        shape[2] = patch * Dim("rows", min=MIN_PATCHES, max=MAX_PATCHES)
        shape[3] = patch * Dim("columns", min=MIN_PATCHES, max=MAX_PATCHES)
    images = torch.zeros(2, 3, height, width)
    with quiet():
        return torch.export.export(
            ExportedForward(network), (images,), dynamic_shapes={INPUT: shape}, strict=False
        )


def convert(network: CoSANetwork, size: int | None, opset: int | None) -> bytes:
    """The content of the file: of one image size or of all, ONNX of this opset or torch.export.

    Raises:
        UserError: the converter writes another opset.
        One of ``EXPORT_ERRORS``: the exporter does not master the network at free sizes, or at all.
    """
    program = trace(network, size)
    if size is None:
        # Some encoders are traced without complaint, and yet bound to the size of the example.
        patch = network.patch_size
        if not within_tolerance(compare(program.module(), network, [(1, 2 * patch, 3 * patch)])):
            raise ValueError("other sizes give other values")
    metadata = describe_export(network, size)
    if opset is None:
        return torch_export_bytes(program, metadata)
    return onnx_bytes(program, metadata, opset)


def convert_as_free_as_possible(
    network: CoSANetwork, size: int, fixed: bool, opset: int | None
) -> tuple[bytes, bool]:
    """The content of the file, and whether it takes any image size; if not, it says why.

    Raises:
        UserError: not even a fixed size can be exported.
    """
    if not fixed:
        try:
            return convert(network, None, opset), True
        except EXPORT_ERRORS as error:
            print("note: this network cannot be exported for all image sizes with PyTorch "
                  f"{torch.__version__} ({brief(error)}), so the size is fixed", file=sys.stderr)
    try:
        return convert(network, size, opset), False
    except EXPORT_ERRORS as error:
        raise UserError(f"PyTorch {torch.__version__} cannot export this network: "
                        f"{brief(error)}; try newer packages: {UPGRADE}") from error


@torch.no_grad()
def compare(run: Runner, network: CoSANetwork, cases: Iterable[Case]) -> list[float]:
    """Differences of an exported program from the network on random images.

    Args:
        run: takes images and returns the maps ``OUTPUTS``.
        network: the original, in eval mode on the CPU.
        cases: batch size, height and width of each input.

    Returns:
        For each case and output the largest absolute difference over the output's largest
        magnitude; infinite where the shapes differ.

    Raises:
        UserError: the network itself yields values that are not finite.
    """
    generator = torch.Generator().manual_seed(0)
    differences = []
    for batch, height, width in cases:
        images = torch.randn(batch, 3, height, width, generator=generator)
        expected, found = network(images), run(images)
        for name in OUTPUTS:
            wanted, given = getattr(expected, name), found[name]
            if not wanted.isfinite().all():
                raise UserError(f"the network's own {name} is not finite, its training has "
                                "diverged: give another checkpoint")
            if wanted.shape != given.shape:
                differences.append(float("inf"))
                continue
            scale = wanted.abs().max().clamp(min=torch.finfo(wanted.dtype).tiny)
            differences.append(float((wanted - given).abs().max() / scale))
    return differences


def within_tolerance(differences: Iterable[float]) -> bool:
    return all(difference <= TOLERANCE for difference in differences)  # not so for NaN


def check_cases(size: int, patch: int, any_size: bool) -> list[Case]:
    """What a file is verified on: two batch sizes and, where free, two image sizes."""
    other = (size, size)
    if any_size:
        smaller = (scaled_size((size, size), scale, patch)[0] for scale in (0.5, 0.75))
        other = tuple(max(side, MIN_PATCHES * patch) for side in smaller)
    return [(1, size, size), (3, *other)]


def describe_export(network: CoSANetwork, size: int | None) -> dict[str, Any]:
    """The metadata of an exported file, in plain types.

    Args:
        network: from ``cosa.load``.
        size: the image size that the file is bound to, None if it takes any.
    """
    evaluate = network.config["evaluate"]
    return {
        "program": f"CoSA {cosa.__version__}",
        "classes": list(network.classes),  # foreground: channel k of seg is classes[k - 1]
        "palette": [list(color) for color in network.palette],  # background first
        "thresholds": list(network.thresholds),  # of the normalised cam and aux_cam, or null
        "image_size": network.image_size,  # side of the square that it was evaluated at
        "scales": list(evaluate["scales"]),
        "flip": evaluate["flip"],
        "patch_size": network.patch_size,
        "fixed_size": None if size is None else [size, size],
        "mean": list(IMAGENET_MEAN),  # of RGB in [0, 1]: images = (rgb - mean) / std
        "std": list(IMAGENET_STD),
        "outputs": OUTPUTS,
    }


def torch_export_bytes(program: ExportedProgram, metadata: Mapping[str, Any]) -> bytes:
    """The content of a .pt2 file, metadata in ``METADATA_FILE``."""
    content = io.BytesIO()
    with quiet():
        torch.export.save(program, content, extra_files={METADATA_FILE: json.dumps(metadata)})
    return content.getvalue()


def onnx_bytes(program: ExportedProgram, metadata: Mapping[str, Any], opset: int) -> bytes:
    """The content of an .onnx file; in metadata_props each key of ``metadata``, value in JSON.

    Raises:
        UserError: the converter writes another opset.
        One of ``EXPORT_ERRORS``: it does not master the program.
    """
    import onnx

    with quiet():
        model = torch.onnx.export(
            program, (), dynamo=True, opset_version=opset, verbose=False, optimize=True,
            input_names=[INPUT], output_names=list(OUTPUTS),
        ).model_proto
    written = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if written != opset:
        raise UserError(f"the converter wrote ONNX opset {written}, not --opset {opset}: choose "
                        f"{written}")
    name_dimensions(model.graph)
    onnx.helper.set_model_props(model, {k: json.dumps(value) for k, value in metadata.items()})
    return model.SerializeToString()


def name_dimensions(graph: Any) -> None:
    """Give the free dimensions of an ONNX graph's input and outputs readable names."""
    del graph.value_info[:]  # shapes of inner values, in the exporter's own symbols
    for value in (*graph.input, *graph.output):
        sides = ("height", "width") if value.name == INPUT else ("rows", "columns")
        for dim, name in zip(value.type.tensor_type.shape.dim, ("batch", "", *sides), strict=False):
            if dim.dim_param:
                dim.dim_param = name


def torch_export_runner(path: str) -> Runner:
    """Runs a .pt2 file."""
    with open(path, "rb") as file:
        return torch.export.load(file).module()


def onnx_runner(path: str) -> Runner:
    """Runs an .onnx file with onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> dict[str, Tensor]:
        arrays = session.run(list(OUTPUTS), {INPUT: images.numpy()})
        return {name: torch.from_numpy(a) for name, a in zip(OUTPUTS, arrays, strict=True)}

    return run


def verify(
    path: str, runner: Callable[[str], Runner], network: CoSANetwork, cases: Iterable[Case]
) -> float:
    """The largest difference of a file's outputs from the network's; see :func:`compare`.

    Raises:
        UserError: the file cannot be run, or differs by more than ``TOLERANCE``.
    """
    try:
        differences = compare(runner(path), network, cases)
    except UserError:
        raise
    except Exception as error:  # onnxruntime's errors have no base of their own.
        raise UserError(f"the exported program cannot be run, so no file is written: "
                        f"{one_line(error)}") from error
    if not within_tolerance(differences):
        worst = next((d for d in differences if d != d), max(differences))
        raise UserError(f"the exported program's outputs differ from the network's by {worst:.1e} "
                        f"of their range, more than the tolerance {TOLERANCE:.0e}: no file is "
                        "written; try another --opset or version of PyTorch")
    return max(differences)


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


def choose_size(network: CoSANetwork, wanted: int | None) -> int:
    """The side that images have in verification and in a file of fixed size."""
    patch = network.patch_size
    nearest = max(scaled_size((wanted or network.image_size,) * 2, 1.0, patch)[0],
                  MIN_PATCHES * patch)
    if wanted is not None and wanted != nearest:
        raise UserError(f"--size {wanted} must be a multiple of the patch size {patch}, from "
                        f"{MIN_PATCHES * patch} on: choose {nearest}")
    return nearest


def export(
    network: CoSANetwork,
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
        size: side of the images that the file is verified at, a multiple of the patch size; by
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
    cases = check_cases(size, network.patch_size, any_size)
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
    patch = network.patch_size
    sizes = (
        f"any image size in multiples of {patch} pixels, from {MIN_PATCHES * patch} on"
        if any_size else f"images of {size}x{size} alone"
    )
    return [f"{output}: {INPUT} to {', '.join(OUTPUTS)}; any batch size, {sizes}", verdict]


def main(arguments: Sequence[str] | None = None) -> int:
    """Export a trained network for inference, with its metadata, and verify the file.

    ONNX files are verified where onnxruntime is installed.
    """
    parser = argparse.ArgumentParser(prog="python -m cosa.export", description=main.__doc__)
    add = parser.add_argument
    add("--weights", required=True, metavar="FILE", help="a checkpoint of CoSA")
    add("--format", required=True, choices=list(SUFFIXES))
    add("--output", metavar="FILE", help="default: beside the weights, as .onnx or .pt2")
    add("--size", type=int, metavar="N", help="side of the images that it is verified at, and of "
        "all images with --fixed-size; default: as evaluated")
    add("--fixed-size", action="store_true", help="take images of this size alone")
    add("--opset", type=int, metavar="N", help=f"of ONNX, {MIN_OPSET} (default) or above")
    args = parser.parse_args(arguments)
    if args.opset is not None and (args.format != "onnx" or args.opset < MIN_OPSET):
        raise UserError(f"--opset {args.opset}: it is for --format onnx and at least {MIN_OPSET}")
    output = Path(args.output or Path(args.weights).with_suffix(SUFFIXES[args.format]))
    if output.resolve() == Path(args.weights).resolve():
        raise UserError(f"--output {output} is the file of the weights: name another")
    network = cosa.load(args.weights)
    lines = export(network, output, args.format, args.size, args.fixed_size,
                   args.opset or MIN_OPSET)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    run_program(main)
