"""What the dense CRF costs: the torch backend against pydensecrf, with and without all classes."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cosa import crf
from cosa.benchmark import stamp
from cosa.benchmark.tables import (
    NOTHING,
    add_report_option,
    markdown,
    print_section,
    read_report,
    write_report,
)
from cosa.benchmark.timings.clock import cell, clock, spread
from cosa.benchmark.timings.crf_inputs import CELL, PRESENT, class_maps, read_photos
from cosa.benchmark.timings.crf_memory import explain_memory, measure_memory, memory_table
from cosa.core.device import choose_device
from cosa.core.errors import UserError
from cosa.core.files import write_atomically
from cosa.core.ranges import SIDE, whole
from cosa.core.terminal import Parser, say
from cosa.core.text import aligned
from cosa.data import coco, voc
from cosa.inference.pixels import Size

TOPIC = "crf"
CLASSES = [1 + len(voc.CLASSES), 1 + len(coco.CLASSES)]
"""Default numbers of classes, background included."""
TORCH, EVERY_CLASS, PYDENSECRF = "torch", "torch, every class", "pydensecrf"

NOTICEABLE = 0.02
"""A class whose probability stays below this everywhere is left out of the messages: its message
could reach 0.1, the weights of the release's kernels being 5 in all."""


def missing_pydensecrf() -> str | None:
    """Why the backend pydensecrf cannot run here; None if it can."""
    try:
        crf.dense_crf(
            np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 2), 0.5), backend="pydensecrf"
        )
    except UserError as error:
        return str(error)
    return None


def variants(
    iterations: int, device: torch.device, pydensecrf: bool
) -> dict[str, Callable[[np.ndarray, Tensor], Tensor]]:
    """What is compared: name -> function of photo and probabilities (on ``device``)."""
    options = {**crf.PRESETS["release"], "iterations": iterations}

    def torch_backend(photo: np.ndarray, maps: Tensor) -> Tensor:
        return crf.dense_crf(photo, maps, **options)

    def every_class(photo: np.ndarray, maps: Tensor) -> Tensor:
        return crf.dense_crf(photo, maps, **options, negligible=0.0)

    found = {TORCH: torch_backend, EVERY_CLASS: every_class}
    if pydensecrf:
        found[PYDENSECRF] = lambda photo, maps: crf.dense_crf(
            photo, maps, **options, backend="pydensecrf"
        )
    return found


def measure(
    photos: Sequence[np.ndarray],
    classes: int,
    iterations: int,
    *,
    repeats: int,
    device: torch.device,
    pydensecrf: bool = True,
) -> dict[str, Any]:
    """Time the variants in turn on each photo, and compare their labels.

    Returns:
        ``classes``, ``iterations``; ``noticeable``, the mean number of classes of a photo whose
        probability exceeds ``NOTICEABLE`` somewhere; ``milliseconds`` (variant -> ``spread`` over
        photos and repeats); shares of pixels in [0, 1]: ``changed`` by the CRF, ``agreement``
        with pydensecrf, ``same_with_every_class``; ``ratio`` (pydensecrf's time over torch's)
        and ``gain`` (the time with every class over that without the negligible ones). What
        needs pydensecrf is None without it.
    """
    runs = variants(iterations, device, pydensecrf)
    spent: dict[str, list[float]] = {name: [] for name in runs}
    same = dict.fromkeys(["before", *runs], 0)
    noticeable = 0
    for number, photo in enumerate(photos):
        maps = class_maps(photo, classes, seed=number).to(device)
        labels = {"before": maps.max(dim=0).indices}
        noticeable += int((maps.amax(dim=(1, 2)) > NOTICEABLE).sum())
        # What is loaded or allocated on first use is not timed.
        for turn in range(repeats + (number == 0)):
            for name, run in runs.items():
                start = clock(device)
                refined = run(photo, maps)
                seconds = clock(device) - start
                if turn or number:
                    spent[name].append(seconds)
                labels[name] = refined.max(dim=0).indices
        for name, other in labels.items():
            same[name] += int((other == labels[TORCH]).sum())
    pixels = sum(photo.shape[0] * photo.shape[1] for photo in photos)
    times = {name: spread(seconds) for name, seconds in spent.items()}
    median = {name: value["median"] for name, value in times.items()}
    return {
        "classes": classes,
        "iterations": iterations,
        "noticeable": noticeable / len(photos),
        "milliseconds": times,
        "changed": 1 - same["before"] / pixels,
        "agreement": same[PYDENSECRF] / pixels if pydensecrf else None,
        "same_with_every_class": same[EVERY_CLASS] / pixels,
        "ratio": median[PYDENSECRF] / median[TORCH] if pydensecrf else None,
        "gain": median[EVERY_CLASS] / median[TORCH],
    }


def table(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Header and one list of cells for each result of :func:`measure`."""
    rows = [["classes, iterations", "noticeable", TORCH, PYDENSECRF, "ratio", "agreement",
             EVERY_CLASS, "gain", "same labels", "changed"]]
    for result in results:
        times = result["milliseconds"]
        known = result["ratio"] is not None
        rows.append([
            f"{result['classes']}, {result['iterations']}",
            f"{result['noticeable']:.0f}",
            cell(times[TORCH]),
            cell(times[PYDENSECRF]) if known else NOTHING,
            f"{result['ratio']:.2f}" if known else NOTHING,
            f"{100 * result['agreement']:.2f} %" if known else NOTHING,
            cell(times[EVERY_CLASS]),
            f"{result['gain']:.2f}",
            f"{100 * result['same_with_every_class']:.2f} %",
            f"{100 * result['changed']:.2f} %",
        ])
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Time the dense CRF alone: PyTorch against pydensecrf, same images and probabilities."""
    given = parse(arguments)
    started = stamp.begin(TOPIC, arguments, given.report)
    device = choose_device(given.device, "--device ")
    torch.set_num_threads(given.threads)
    read_report(given.report, TOPIC)
    photos, about = read_photos(given.folder, given.size, given.limit)
    missing = missing_pydensecrf()
    results = []
    for classes in given.classes:
        for iterations in given.iterations:
            results.append(measure(
                photos, classes, iterations, repeats=given.repeats, device=device,
                pydensecrf=missing is None,
            ))
    memory = measure_memory(
        given.folder, given.memory, given.classes, str(device), missing is None
    )
    facts = {
        **started.facts(device),
        "threads": given.threads,
        "size": [given.size[1], given.size[0]],
        "images": len(photos),
        "repeats": given.repeats,
        "source": given.folder,
        "left_out": [] if missing is None else [missing],
    }
    write_atomically(
        Path(given.output),
        json.dumps({**facts, "results": results, "memory": memory}, indent=2) + "\n",
    )
    cells = table(results)
    width, height = facts["size"]
    head = stamp.heading(facts, f"{given.threads} PyTorch thread(s)",
                         f"{width}x{height} pixels: {about}")
    section = ["## Dense CRF", head, markdown(cells), *explain(facts)]
    print_section(head, aligned(cells), *facts["left_out"])
    if memory:
        section += [markdown(memory_table(memory)), explain_memory()]
        print_section(aligned(memory_table(memory)), "MiB at the peak of a CRF")
    write_report(given.report, "\n\n".join(section), TOPIC)
    say(f"the numbers are in {given.output}, the report is {given.report}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="python -m cosa.benchmark crf", description=main.__doc__
    )
    add = parser.add_argument
    add("folder", nargs="?", help="photographs; default: a generated scene")
    add("--classes", type=whole(2, 256), nargs="+", default=CLASSES, metavar="K",
        help=f"numbers of classes, background included; {' '.join(map(str, CLASSES))}")
    add("--iterations", type=whole(1, 1000), nargs="+", default=[1, 10], metavar="N",
        help="numbers of iterations; 1 10")
    add("--size", type=size, default=(375, 500), metavar="WxH", help="in pixels; 500x375")
    add("--limit", type=whole(1, 10**6), default=4, metavar="N", help="photographs; 4")
    add("--repeats", type=whole(1, 10**6), default=3, metavar="N", help="of each photograph; 3")
    add("--threads", type=whole(1, 1024), default=1, metavar="N",
        help="of PyTorch on the CPU; 1, as many as pydensecrf has")
    add("--memory", type=size, nargs="*", default=[(375, 500), (768, 1024)], metavar="WxH",
        help="sizes whose use of memory is measured; 500x375 1024x768")
    add("--device", default="cpu", help="of the torch backend: auto, cpu (default), cuda, cuda:N")
    add_report_option(parser)
    add("--output", default=f"runs/{TOPIC}/{TOPIC}.json", help="file of the numbers")
    return parser.parse_args(arguments)


def size(text: str) -> Size:
    """"500x375" as (height, width)."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"'{text}' is no size such as 500x375")
    width, height = map(whole(1, SIDE.high), found.groups())
    return height, width


def explain(facts: dict[str, Any]) -> list[str]:
    """How to read the table, as paragraphs."""
    gaussian, bilateral = (crf.PRESETS["release"][key] for key in ("gaussian", "bilateral"))
    return [
        "Milliseconds per image, the lattice included: median (interquartile range) over the "
        f"images and {facts['repeats']} repeats of each, all columns in turn; the first run is not "
        f"timed. Kernels of the release: Gaussian {gaussian}, bilateral {bilateral}. `noticeable` "
        f"is the mean number of classes whose probability exceeds {NOTICEABLE} somewhere: the "
        "torch backend drops the others. `ratio` is pydensecrf's time over torch's, `agreement` "
        f"the share of pixels with the same label. `{EVERY_CLASS}` drops none: `gain` is what "
        "dropping buys, `same labels` the share of pixels whose label it leaves alone. `changed` "
        "is the share of pixels that the CRF relabels: mostly there could the columns differ.",
        f"The probabilities are made, not predicted: {PRESENT} classes, each with the colour of a "
        f"random cell of {CELL}x{CELL} pixels, score by the distance of the cells' colours to "
        "theirs, the others low everywhere; smooth noise on all, enlarged bilinearly, softmax; "
        "seeded by the image's number.",
        *facts["left_out"],
    ]
