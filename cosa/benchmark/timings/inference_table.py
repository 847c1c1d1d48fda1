"""The table of `benchmark inference`, and what is said about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cosa.benchmark.tables import NOTHING, code
from cosa.benchmark.timings.clock import cell
from cosa.benchmark.timings.inference_runs import STAGES, Row


def table(rows: Sequence[Row], results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Header and one list of cells for each row."""
    scored = results[0]["scores"] is not None
    cells = [["row", *STAGES.values(), "images/s", "slowdown", "overlapped", "slowdown",
              "peak MiB", *(["mIoU", "J&F"] if scored else [])]]
    for row, result in zip(rows, results, strict=True):
        overlapped, scores = result["overlapped"], result["scores"]
        line = [row.label]
        line += [NOTHING if times is None else cell(times)
                 for times in result["milliseconds"].values()]
        for rates in (result, overlapped):
            line += [f"{rates['images_per_second']:.2f}", f"{rates['slowdown']:.2f}"]
        line.append(f"{overlapped['peak_bytes'] / 2**20:.0f}")
        if scored:
            line += [NOTHING if scores[key] is None else f"{100 * scores[key]:.1f}"
                     for key in ("miou", "jf")]
        cells.append(line)
    return cells


def explain(
    facts: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> tuple[list[str], str, list[str]]:
    """What was run, for the heading, and the paragraphs above and below the table."""
    images = "generated scenes" if facts["source"] is None else f"images of {code(facts['source'])}"
    network = code(facts["weights"]) if facts["weights"] else (
        f"a random network of {code(facts['config'])}")
    details = [
        f"{facts['threads']} PyTorch thread(s), batches of {facts['batch_size']}, "
        f"{facts['workers']} worker(s)",
        f"{facts['images']} {images}",
        f"{network}, {facts['classes']} classes with the background, "
        f"{facts['size']}x{facts['size']} pixels",
    ]
    loaded = max(row["overlapped"]["loaded_bytes"] for row in results) / 2**20
    memory = "PyTorch's largest allocation on the GPU"
    if facts["device"] == "cpu":
        memory = "the largest resident set of that process"
    legend = (
        "Milliseconds per image, one stage after the other, the device synchronised around each: "
        "median (interquartile range); the first batch is run once before, untimed. `network` is "
        "all passes of a view, measured once for its rows; `argmax` resizes to the image and takes "
        "the best class. `images/s` is that of the stages in sequence, from the sum over all "
        "images; `overlapped` that of the pipeline as infer.py runs it: one pass, after a first "
        "batch, in a process of its own. There pydensecrf runs in one thread and, since it holds "
        "the interpreter's lock, holds up the others. The `slowdown` after each is against no CRF "
        f"in the same view. `peak MiB` is {memory}, {loaded:.0f} of them before the first image."
    )
    if results[0]["scores"]:
        legend += " Scores are in percent, label-free."
    below = [legend, *facts["notes"]]
    return details, _told_complexity(facts, results), below


def _told_complexity(facts: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    views = {row["view"]: row for row in results}
    parts = []
    for view, found in facts["flops"].items():
        scales = ", ".join(f"{scale:g}" for scale in views[view]["scales"])
        flips = " with flips" if views[view]["flip"] else ""
        parts.append(f"{view} (scales {scales}{flips}) {found['network'] / 1e9:.2f} G, "
                     f"{found['encoder'] / 1e9:.2f} G of them in the encoder")
    parameters = facts["parameters"]
    return (f"{parameters['network'] / 1e6:.2f} M parameters, {parameters['encoder'] / 1e6:.2f} M "
            f"of them in the encoder. FLOPs per image, two per multiply-add: {'; '.join(parts)}.")
