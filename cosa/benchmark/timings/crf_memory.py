"""What memory a dense CRF needs: its peak, in a process for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cosa.benchmark.tables import NOTHING
from cosa.benchmark.timings.crf_inputs import class_maps, read_photos
from cosa.benchmark.timings.memory import in_fresh_process, peak, start_peak
from cosa.crf import PRESETS, dense_crf, working_memory
from cosa.inference.pixels import Size
from cosa.inference.settings import BACKENDS

ITERATIONS = 2
"""More need no more."""
_CORNER = 32  # pixels that warm up


def crf_peak(folder: str | None, size: Size, classes: int, backend: str, device: str) -> int:
    """Bytes that the CRF of one photograph needs at its peak, beside image and probabilities.

    On CUDA those of the device, for the torch backend. No class is dropped.

    Args:
        folder, size: as for ``read_photos``.
        classes: number K.
    """
    photo = read_photos(folder, size, 1)[0][0]
    where = torch.device(device if backend == "torch" else "cpu")
    maps = class_maps(photo, classes, seed=0).to(where)
    options = {**PRESETS["release"], "iterations": ITERATIONS, "backend": backend}
    options["negligible"] = 0.0
    corner = maps[:, :_CORNER, :_CORNER].contiguous()
    dense_crf(photo[:_CORNER, :_CORNER].copy(), corner, **options)
    before = start_peak(where)
    dense_crf(photo, maps, **options)
    return peak(where) - before


def measure_memory(
    folder: str | None, sizes: Sequence[Size], classes: Sequence[int], device: str,
    pydensecrf: bool,
) -> list[dict[str, Any]]:
    """For each size and number of classes: ``bytes`` by backend, and as ``expected``."""
    results = []
    for size in sizes:
        for count in classes:
            found = {
                backend: in_fresh_process(crf_peak, folder, size, count, backend, device)
                for backend in BACKENDS if backend == "torch" or pydensecrf
            }
            expected = working_memory(size[0] * size[1], count)
            results.append({"size": list(size[::-1]), "classes": count, "bytes": found,
                            "expected": expected})
    return results


def memory_table(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Header and a list of cells for each result."""
    cells = [["pixels, classes", *BACKENDS, "expected"]]
    for result in results:
        width, height = result["size"]
        amounts = [result["bytes"].get(backend) for backend in BACKENDS]
        cells.append([
            f"{width}x{height}, {result['classes']}",
            *(NOTHING if amount is None else f"{amount / 2**20:.0f}"
              for amount in (*amounts, result["expected"])),
        ])
    return cells


def explain_memory() -> str:
    """How to read the table."""
    return (
        "MiB that one CRF needs at its peak beside the image and its probabilities, of the first "
        f"of these photographs, in a process of its own, {ITERATIONS} iterations, no class "
        "dropped. *Expected* is what infer.py counts with on the CPU: CRFs that would exceed a "
        "quarter of the main memory together wait for each other. The torch backend runs as many "
        "at a time as there are `--workers`. pydensecrf holds the interpreter's lock: it runs one "
        "at a time, and no other thread of Python meanwhile."
    )
