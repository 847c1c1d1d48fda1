"""What inference costs, stage by stage, and what a CRF adds to its cost and its scores."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cosa.benchmark import stamp
from cosa.benchmark.tables import (
    add_report_option,
    markdown,
    print_section,
    read_report,
    write_report,
)
from cosa.benchmark.timings.crf import missing_pydensecrf
from cosa.benchmark.timings.flops import count_multi_scale
from cosa.benchmark.timings.inference_runs import Row, Setup, first, load, measure, truth
from cosa.benchmark.timings.inference_table import explain, table
from cosa.benchmark.timings.random_network import SCENE_CLASSES, write_random
from cosa.checkpoint import TrainedNetwork
from cosa.core import IGNORE
from cosa.core.errors import UserError
from cosa.core.files import write_atomically
from cosa.core.ranges import BATCH, SIDE, THREADS, whole
from cosa.core.terminal import Parser, say
from cosa.core.text import aligned
from cosa.crf import PRESETS
from cosa.data.images import image_size
from cosa.data.masks import read_mask
from cosa.data.scenes import dataset as scenes
from cosa.inference.command_line import default_workers
from cosa.inference.jobs import Plan, plan
from cosa.inference.settings import BACKENDS, MAX_SIZE, CrfSettings, Settings
from cosa.network import CoSANetwork

TOPIC = "inference"
TRAINED = "runs/demo/best.pth"
CONFIG = "configs/demo.yaml"
SCENES = 48
ITERATED = ("release", "toco")
"""Presets of the CRF in the table: the same kernels, 1 and 10 iterations."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Time inference with and without a CRF, by stage and overlapped; write a table and JSON."""
    given = parse(arguments)
    started = stamp.begin(TOPIC, arguments, given.report)
    read_report(given.report, TOPIC)
    with tempfile.TemporaryDirectory() as folder:
        work = prepare(given, Path(folder))
        results = measure(work.setup, work.jobs, work.masks, work.rows)
    facts = {**started.facts(torch.device(work.facts["device"])), **work.facts}
    write_atomically(Path(given.output), json.dumps({**facts, "rows": results}, indent=2) + "\n")
    cells = table(work.rows, results)
    details, above, below = explain(facts, results)
    head = stamp.heading(facts, *details)
    section = ["## Inference", head, above, markdown(cells), *below]
    write_report(given.report, "\n\n".join(section), TOPIC)
    print_section(head, above, aligned(cells), *facts["notes"])
    say(f"the numbers are in {given.output}, the report is {given.report}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog=f"python -m cosa.benchmark {TOPIC}", description=main.__doc__
    )
    add = parser.add_argument
    add("folder", nargs="?", help=f"images; default: {SCENES} generated scenes with their masks")
    add("--weights", metavar="FILE",
        help=f"default: {TRAINED} if it is there, else a random network")
    add("--masks", metavar="FOLDER", help="true masks; images without one are left out")
    add("--limit", type=whole(1, 10**6), default=SCENES, metavar="N",
        help=f"the first N images; {SCENES}")
    add("--config", metavar="FILE",
        help=f"take a random network of this configuration's architecture; {CONFIG}")
    add("--classes", type=whole(2, 256), metavar="K",
        help="of a random network, background included; default: those of the configured data")
    add("--size", type=whole(1, SIDE.high), metavar="N",
        help="side that images are squashed to; default: as evaluated")
    add("--max-size", type=whole(1, SIDE.high), default=MAX_SIZE, metavar="N",
        help=f"longer sides are shrunk to this for the CRF; {MAX_SIZE}")
    add("--batch-size", type=whole(1, BATCH.high), default=4, metavar="N", help="default: 4")
    add("--workers", type=whole(1, THREADS.high), default=default_workers(), metavar="N",
        help="threads that read, that write and that run a CRF of torch on the CPU, overlapped")
    add("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS),
        help="of the CRF; all that are installed")
    add("--presets", nargs="+", choices=ITERATED, default=list(ITERATED), help="of the CRF; both")
    add("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    add_report_option(parser)
    add("--output", default=f"runs/{TOPIC}/{TOPIC}.json", help="file of the numbers")
    given = parser.parse_args(arguments)
    if given.weights and (given.config or given.classes):
        parser.error("--config and --classes are of a random network: leave out --weights")
    if given.masks and not given.folder:
        parser.error("--masks belong to a folder of images: give it, too")
    return given


@dataclass
class Work:
    """What is to be measured, and what is known of it beforehand."""

    setup: Setup
    jobs: Plan
    masks: Path | None
    rows: list[Row]
    facts: dict[str, Any]


def prepare(given: argparse.Namespace, folder: Path) -> Work:
    """Choose images, weights and rows; what is generated, and all results, go to ``folder``.

    Raises:
        UserError: something is missing or does not fit.
    """
    images, masks = given.folder, given.masks and Path(given.masks)
    if images is None:
        scenes.export(scenes.ScenesDataset("test", count=given.limit), folder)
        images, masks = str(folder / "images"), folder / "masks"
    jobs = plan(images, str(folder / "results"), masks=masks)
    weights = given.weights
    if weights is None and not (given.config or given.classes) and Path(TRAINED).is_file():
        weights = TRAINED
    file = weights or str(folder / "random.pt")
    if weights is None:
        write_random(Path(file), given.config or CONFIG, given.classes, jobs[0])
    setup = Setup(file, given.device, given.batch_size, given.workers, torch.get_num_threads())
    network, _, device = load(setup)
    notes = []
    if weights is None:
        notes.append("The network is random: its masks mean nothing and are not scored. Nearly "
                     "all its classes are probable somewhere, so that the CRF can drop few: it "
                     "takes longer than on the same images with a trained network.")
        masks = None
    elif given.folder is None and network.classes != SCENE_CLASSES:
        notes.append("The weights have other classes than the scenes, which are not scored.")
        masks = None
    if masks:
        jobs = with_masks(jobs, masks, network.num_classes, given.limit)
    jobs = first(jobs, given.limit)
    missing = missing_pydensecrf() if "pydensecrf" in given.backends else None
    if missing is not None:
        notes.append(f"Rows are left out: {missing}.")
    backends = [name for name in given.backends if missing is None or name == "torch"]
    rows = choose_rows(network, given.size or network.image_size, backends, given.presets,
                       given.max_size)
    facts = {
        "device": str(device), "threads": setup.threads,
        "workers": setup.workers, "batch_size": setup.batch_size, "images": len(jobs),
        "source": given.folder, "masks": given.masks, "weights": weights,
        "config": None if weights else given.config or CONFIG,
        "classes": network.num_classes + 1, "size": rows[0].settings.size,
        **complexity(network, rows), "notes": notes,
    }
    return Work(setup, jobs, masks, rows, facts)


def choose_rows(
    network: TrainedNetwork, size: int, backends: Sequence[str],
    presets: Sequence[str] = ITERATED, max_size: int = MAX_SIZE,
) -> list[Row]:
    """For each view no CRF, then each backend with each preset.

    The multi-scale view has the scales and flips that the weights were evaluated with; where
    these are scale 1 without flips, there is no such view.
    """
    evaluation = network.config.evaluate
    views = {"single-scale": ((1.0,), False)}
    seen = evaluation.scales, evaluation.flip
    if seen not in views.values():
        views["multi-scale"] = seen
    choices: list[CrfSettings | None] = [None]
    for backend in backends:
        for preset in presets:
            choices.append(CrfSettings(**PRESETS[preset], backend=backend))
    return [
        Row(view, Settings(size=size, scales=scales, flip=flip, max_size=max_size, crf=crf))
        for view, (scales, flip) in views.items() for crf in choices
    ]


def with_masks(jobs: Plan, masks: Path, classes: int, limit: int) -> Plan:
    """The first jobs that have a true mask, at most ``limit``, after a look at their masks.

    Raises:
        UserError: there is none, or one does not fit its image or the classes.
    """
    if not masks.is_dir():
        raise UserError(f"--masks {masks} is no folder: give the one of the true masks")
    if classes >= IGNORE:
        raise UserError(f"--masks: the weights have {classes} classes, but masks hold at most "
                        f"{IGNORE - 1} beside the value {IGNORE} for ignored pixels")
    kept = first(jobs.only(truth(masks, job).exists() for job in jobs), limit)
    if not kept:
        raise UserError(f"--masks {masks}: no mask belongs to an image; that of "
                        f"{jobs[0].source} would be {truth(masks, jobs[0])}")
    for job in kept:
        height, width = read_mask(truth(masks, job), classes).shape
        own = image_size(job.source)
        if own != (width, height):
            raise UserError(f"{truth(masks, job)}: the mask is {width}x{height} pixels but "
                            f"{job.source} is {own[0]}x{own[1]}; they must have one size")
    return kept


def complexity(network: CoSANetwork, rows: Sequence[Row]) -> dict[str, Any]:
    """``parameters``, and ``flops`` per image of each view, of the network and of its encoder."""
    flops = {}
    for row in rows:
        if row.settings.crf is None:
            settings = row.settings
            found = count_multi_scale(network, settings.size, settings.scales, settings.flip)
            flops[row.view] = {"network": found.flops, "encoder": 2 * found.encoder_macs}
    encoder = sum(parameter.numel() for parameter in network.encoder.parameters())
    return {"parameters": {"network": found.parameters, "encoder": encoder}, "flops": flops}
