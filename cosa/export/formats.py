"""Exported files, ONNX and torch.export: their content, what they tell, and how to run them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

import cosa
from cosa.checkpoint import TrainedNetwork
from cosa.core.errors import UserError
from cosa.export.forward import INPUT, INPUT_RANGE, INPUTS, OUTPUTS, quiet

METADATA_FILE = "cosa.json"
"""Where a torch.export file keeps the metadata: torch.export.load(extra_files={this: ""})."""

Runner = Callable[[Tensor], Mapping[str, Tensor]]
"""Images (B, 3, H, W) in [0, 1] to the maps ``OUTPUTS``."""


def describe_export(network: TrainedNetwork, size: int | None) -> dict[str, Any]:
    """The metadata of an exported file, in plain types.

    Args:
        network: from ``cosa.load``.
        size: the image size that the file is bound to, None if it takes any.
    """
    evaluate, data = network.config.evaluate, network.config.data
    return {
        "program": f"CoSA {cosa.__version__}",
        "classes": list(network.classes),  # foreground: channel k of seg is classes[k - 1]
        "palette": [list(color) for color in network.palette],  # background first
        "thresholds": list(network.thresholds),  # of the normalised cam and aux_cam, or null
        "image_size": network.image_size,  # side of the square that it was evaluated at
        "scales": list(evaluate.scales),
        "flip": evaluate.flip,
        "stride": network.stride,
        "seg_stride": network.seg_stride,  # of seg's positions, stride or a part of it
        "fixed_size": None if size is None else [size, size],
        "inputs": INPUTS,
        "input_range": list(INPUT_RANGE),  # of black and full red, green or blue
        # The values in the image files that were these two, and the bands, from 1; null: by depth.
        "value_range": list(data.value_range) or None,
        "bands": list(data.bands) or None,
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
