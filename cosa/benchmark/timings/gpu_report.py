"""The report of `benchmark gpu`, from the figures that its parts have left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cosa.benchmark import stamp
from cosa.benchmark.tables import NOTHING, code, markdown
from cosa.benchmark.timings import crf, precision
from cosa.benchmark.timings.kernels import kernel_table

MINUTES = 60
WAYS = {"train": "by default", "train-graphs": "without torch.compile",
        "train-plain": "operation by operation"}
"""Part -> row of the table of trainings."""
CAPS = {"memory-12": "12 GiB", "memory-8": "8 GiB"}


def make_section(
    folder: Path, facts: Mapping[str, str], results: Mapping[str, Mapping[str, Any]]
) -> str:
    """The Markdown of all parts that have figures.

    Args:
        folder: of the figures.
        facts: of the stamp.
        results: part -> ``exit`` and ``seconds``.
    """
    figures = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
               for name in results if (folder / f"{name}.json").is_file()
               and results[name]["exit"] == 0}
    parts = ["## All parts on a GPU", stamp.heading(facts)]
    failed = [f"{name} ({'too long' if result['exit'] is None else result['exit']})"
              for name, result in results.items() if result["exit"] != 0]
    if failed:
        parts.append(f"Failed: {', '.join(failed)}.")
    if results.get("tests", {}).get("exit") == 0:
        last = (folder / "tests.log").read_text(encoding="utf-8").strip().splitlines()[-1]
        parts.append(f"Tests on CUDA: {last.strip('= ')}.")
    for make in (_precision, _training, _kernels, _crf, _inference, _channels, _memory):
        parts += make(figures)
    parts += _demo(folder, results)
    return "\n\n".join(parts)


def _precision(figures: Mapping[str, Any]) -> list[str]:
    if "precision" not in figures:
        return []
    return ["### Precision", markdown(precision.table(figures["precision"]["ways"])),
            "Losses of one step of VOC's size (random weights, fixed threshold), and the norm of "
            "the difference of its gradient over that of the float32 step's."]


def _training(figures: Mapping[str, Any]) -> list[str]:
    found = {name: figures[name] for name in WAYS if name in figures}
    if not found:
        return []
    cells = [["training, `voc`", "ms", "images/s", "TFLOP/s", "% of peak", "MiB", "reserved MiB",
              "minutes for all iterations"]]
    for name, facts in found.items():
        seconds = facts["seconds_per_iteration"]
        cells.append([
            WAYS[name], f"{1e3 * seconds:.1f}", f"{facts['images_per_second']:.0f}",
            f"{facts['flops_per_step'] / seconds / 1e12:.0f}", f"{100 * facts['utilisation']:.0f}",
            f"{facts['memory_bytes'] / 2**20:.0f}", f"{facts['reserved_bytes'] / 2**20:.0f}",
            f"{MINUTES * facts['schedule_hours']:.1f}",
        ])
    parts = ["### Training", markdown(cells),
             "An iteration of `python -m cosa.benchmark train --config configs/voc.yaml`, loading "
             "included (JPEG files of noise, 500x375); evaluations are not."]
    for name, facts in found.items():
        if "comparison" in facts:
            ours, theirs = facts["comparison"]["ours"], facts["comparison"]["baseline"]
            parts.append(f"Step without loading, {WAYS[name]}: {1e3 * ours:.1f} ms; as the "
                         "released programs make it, in float32, in turn on the same batches: "
                         f"{1e3 * theirs:.1f} ms, {theirs / ours:.1f} times as long.")
    phases = [["phase, ms", *(WAYS[name] for name in found)]]
    for phase in next(iter(found.values()))["phases"]:
        phases.append([phase, *(f"{1e3 * facts['phases'].get(phase, 0):.1f}"
                                for facts in found.values())])
    return [*parts, markdown(phases)]


def _kernels(figures: Mapping[str, Any]) -> list[str]:
    kernels = figures.get("train", {}).get("kernels")
    if not kernels:
        return []
    return ["What a step spends its time on, by default:", markdown(kernel_table(kernels))]


def _crf(figures: Mapping[str, Any]) -> list[str]:
    if "crf" not in figures:
        return []
    facts = figures["crf"]
    return ["### Dense CRF", markdown(crf.table(facts["results"])),
            f"Milliseconds per image of {facts['size'][0]}x{facts['size'][1]} pixels, "
            f"{facts['images']} images, {facts['repeats']} repeats, `release` kernels; "
            f"torch on the GPU, pydensecrf on one core. {' '.join(facts['left_out'])}".strip()]


def _inference(figures: Mapping[str, Any]) -> list[str]:
    if "inference" not in figures:
        return []
    facts = figures["inference"]
    cells = [["inference", "network ms", "CRF ms", "CRF / network", "images/s, overlapped"]]
    for row in facts["rows"]:
        times = row["milliseconds"]
        network, refined = times["network"]["median"], times["crf"]
        share = NOTHING if refined is None else f"{100 * refined['median'] / network:.0f} %"
        cells.append([
            row["label"], f"{network:.1f}",
            NOTHING if refined is None else f"{refined['median']:.1f}", share,
            f"{row['overlapped']['images_per_second']:.1f}",
        ])
    return ["### Inference", markdown(cells),
            f"Per image, {facts['images']} images, batches of {facts['batch_size']}, a random "
            f"network of {code(facts['config'])}, {facts['size']} pixels; `network` is all scales "
            "and flips. A random network finds all classes everywhere, so that the CRF can drop "
            "few: with a trained one it is faster."]


def _channels(figures: Mapping[str, Any]) -> list[str]:
    if "channels" not in figures:
        return []
    times = figures["channels"]["milliseconds"]
    told = ", ".join(f"{channels}: {float(spent):.2f}" for channels, spent in times.items())
    return [f"One pass of the CRF's bilateral filter, 500x375 pixels, milliseconds by channels: "
            f"{told}."]


def _memory(figures: Mapping[str, Any]) -> list[str]:
    told = [
        f"{CAPS[name]}: {figures[name]['memory_bytes'] / 2**20:.0f} MiB at the peak, "
        f"{figures[name]['reserved_bytes'] / 2**20:.0f} held"
        for name in CAPS if name in figures
    ]
    if not told:
        return []
    return [f"The step without torch.compile, with no more memory than {'; '.join(told)}."]


def _demo(folder: Path, results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    summary = folder / "demo" / "summary.json"
    if results.get("demo", {}).get("exit") != 0 or not summary.is_file():
        return []
    scores = json.loads(summary.read_text(encoding="utf-8"))
    return [f"The demo: {results['demo']['seconds']:.0f} s with start and evaluations, "
            f"mIoU {100 * scores['miou']:.1f}."]
