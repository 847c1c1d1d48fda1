"""The ablation's table, as aligned text and as Markdown, and its place in the report file."""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cosa.benchmark.campaigns.verdicts import Results, mean_and_deviation, paired
from cosa.core.errors import UserError
from cosa.core.files import write_atomically
from cosa.core.threads import core_count

TITLE = "# Benchmarks\n"
NOTHING = "–"


@dataclass(frozen=True)
class Line:
    """A line of the table. Heads that a row does not train have no score there."""

    row: str
    label: str
    trains_segmentation: bool = True
    trains_cams: bool = True


LINES = (
    Line("supervised", "fully supervised", trains_cams=False),
    Line("classification-only-end", "classification only, at the end", trains_segmentation=False),
    Line("classification-only-peak", "classification only, at its peak",
         trains_segmentation=False),
    Line("cosa", "CoSA"),
    Line("without-swapping", "without swapping"),
    Line("without-raw", "without RAW"),
    Line("without-csc", "without CSC"),
    Line("fixed-0.3", "fixed threshold 0.3"),
    Line("fixed-0.5", "fixed threshold 0.5"),
    Line("fixed-0.7", "fixed threshold 0.7"),
)

SEGMENTATION = {"miou": "mIoU", "share": "% of supervised", "cmiou": "C-mIoU",
                "miou_label_filtered": "mIoU filtered"}
CAMS = {"cam_miou": "CAM at ξ", "cam_best_miou": "CAM best", "aux_cam_miou": "aux CAM at ξ†",
        "cam_cmiou": "CAM C-mIoU"}
COLUMNS = {
    key: (SEGMENTATION | CAMS)[key]
    for key in ("miou", "share", "cam_miou", "cam_best_miou", "aux_cam_miou", "cmiou",
                "cam_cmiou", "miou_label_filtered")
} | {"training_seconds": "seconds"}

LEGEND = """\
All scores are in percent, mean ± standard deviation over the seeds, of the averaged (EMA) network.
`mIoU` is label-free: nothing but the image leads to the prediction. `mIoU filtered` leaves out the
classes that the image does not have, as published tables do. CAMs are always filtered so; `CAM at
ξ` uses the run's own threshold (classification alone adapts none and has no such score), `CAM
best` the best of 19 thresholds, chosen on the masks, hence an upper bound. `C-mIoU` averages the
coexistence classes. `seconds` is the training time without evaluations.
*At its peak* is the checkpoint with the best `CAM best` on the validation images, of about 12
during the run, scored as the others are."""

SPLIT_NOTES = {
    "test": "Training, validation and test scenes come from different splits and never share an "
            "image. Choices are made on validation scenes, the table is on test scenes.",
    "val": "This data set has no test split: choices and scores are on the same validation images.",
}


def table(results: Results) -> list[list[str]]:
    """Header and one list of cells for each line of the table that was run."""
    rows = [["row", *COLUMNS.values()]]
    for line in LINES:
        if line.row in results:
            rows.append([line.label, *(_cell(results, line, key) for key in COLUMNS)])
    return rows


def plain(cells: list[list[str]]) -> str:
    """The table as aligned text."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]),
                   *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    )


def markdown(cells: list[list[str]]) -> str:
    """The table as Markdown."""
    head, *body = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([head, "|---|" + "---:|" * (len(cells[0]) - 1), *body])


def machine(device: torch.device) -> str:
    """Processor, number of cores, GPU if it is used, and PyTorch version."""
    parts = [f"{_processor()}, {core_count()} cores"]
    if device.type == "cuda":
        parts.append(torch.cuda.get_device_name(device))
    return ", ".join([*parts, f"PyTorch {torch.__version__}"])


def markers(topic: str) -> tuple[str, str]:
    """The comments that enclose a topic's section in the report file."""
    return f"<!-- {topic}:start -->", f"<!-- {topic}:end -->"


def replace_section(
    old: str, section: str, name: str = "the report", topic: str = "ablation"
) -> str:
    """``old`` with the text between a topic's markers replaced, or with a section at its end.

    Raises:
        UserError: one marker is missing, twice there, or they are in the wrong order.
    """
    start, end = markers(topic)
    block = f"{start}\n{section.strip()}\n{end}"
    counts = old.count(start), old.count(end)
    if counts == (0, 0):
        return f"{(old or TITLE).rstrip()}\n\n{block}\n"
    before, _, rest = old.partition(start)
    _, found, after = rest.partition(end)
    if counts != (1, 1) or not found:
        raise UserError(f"{name} must have {start} and then {end}, once each: mend the markers")
    return before + block + after


def read_report(path: Path, topic: str = "ablation") -> str:
    """The report so far, "" if there is none; fails now rather than after hours of training.

    Raises:
        UserError: it cannot be read, or its markers are damaged.
    """
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; choose another --report") from error
    replace_section(text, "", str(path), topic)
    return text


def write_report(path: Path, section: str, topic: str = "ablation") -> None:
    """Put the section into the report file, atomically.

    Raises:
        UserError: the file cannot be read or written, or its markers are damaged.
    """
    text = read_report(path, topic)
    write_atomically(path, replace_section(text, section, str(path), topic))


def _cell(results: Results, line: Line, key: str) -> str:
    if key in SEGMENTATION and not line.trains_segmentation:
        return NOTHING
    if key in CAMS and not line.trains_cams:
        return NOTHING
    if key == "share":
        pairs = paired(results, (line.row, "miou"), ("supervised", "miou"))
        if not pairs or not all(bound for _, bound in pairs):
            return NOTHING
        return f"{100 * mean_and_deviation([x / bound for x, bound in pairs])[0]:.1f}"
    if key == "training_seconds":
        values = known(results[line.row], key)
        return f"{mean_and_deviation(values)[0]:.0f}" if values else NOTHING
    return percent(results[line.row], key)


def percent(by_seed: dict[int, dict[str, Any]], key: str) -> str:
    """Mean ± standard deviation in percent of a score over the seeds that have it."""
    values = known(by_seed, key)
    if not values:
        return NOTHING
    mean, deviation = mean_and_deviation(values)
    return f"{100 * mean:.1f}" + ("" if math.isnan(deviation) else f" ± {100 * deviation:.1f}")


def known(by_seed: dict[int, dict[str, Any]], key: str) -> list[float]:
    """The values of a score, without the seeds that have none."""
    return [scores[key] for scores in by_seed.values() if scores.get(key) is not None]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
