"""What inference costs, stage by stage, and what a CRF adds to its cost and its scores."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import multiprocessing
import os
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import cosa
from cosa.benchmark.crf import classes_from, missing_pydensecrf
from cosa.benchmark.flops import count_multi_scale
from cosa.benchmark.memory import peak
from cosa.benchmark.report import NOTHING, machine, markdown, plain, read_report, write_report
from cosa.benchmark.timing import cell, clock, spread
from cosa.checkpoint import build_network, save_weights
from cosa.config import load_config, to_dict
from cosa.crf import PRESETS
from cosa.data import coco, scenes, voc
from cosa.data.datasets import IGNORE, header_size, read_mask
from cosa.data.images import network_input, read_image
from cosa.device import allow_tf32, choose_autocast, choose_device
from cosa.errors import UserError
from cosa.files import write_atomically
from cosa.inference import outputs
from cosa.inference.jobs import Job, Plan, plan
from cosa.inference.options import positive_integer
from cosa.inference.outputs import Results
from cosa.inference.pipeline import read_back, segment_files
from cosa.inference.pixels import argmax_at_size
from cosa.inference.segmenter import Maps, Prepared, Segmenter
from cosa.inference.settings import BACKENDS, MAX_SIZE, CrfSettings, Settings
from cosa.metrics import SegmentationMetrics
from cosa.network import CoSANetwork
from cosa.palette import voc_palette
from cosa.predict import scaled_size

TOPIC = "inference"
TRAINED = "runs/demo/best.pth"
CONFIG = "configs/demo.yaml"
SCENES = 48
STAGES = {"decode": "decode", "network": "network", "crf": "CRF", "argmax": "argmax",
          "write": "write"}
ITERATED = ("release", "toco")
"""Presets of the CRF in the table: the same kernels, 1 and 10 iterations."""
SCENE_CLASSES = tuple(look.name for look in scenes.CLASSES)
SPREAD = 4.0
"""Standard deviation of the logits that a random network is given: with 21 classes the best one
then has a probability of 0.67 on average."""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    view: str
    """"single-scale" or "multi-scale"."""
    settings: Settings

    @property
    def label(self) -> str:
        """Its name in the table."""
        crf = self.settings.crf
        if crf is None:
            return self.view
        plural = "" if crf.iterations == 1 else "s"
        return f"{self.view}, CRF {crf.backend}, {crf.iterations} iteration{plural}"


@dataclass(frozen=True)
class Setup:
    """What all rows have in common."""

    weights: str
    device: str
    batch_size: int
    workers: int
    threads: int
    """Of PyTorch, on the CPU."""


def choose_rows(
    network: CoSANetwork, size: int, backends: Sequence[str], max_size: int = MAX_SIZE
) -> list[Row]:
    """For each view no CRF, then each backend with each number of iterations.

    The multi-scale view has the scales and flips that the weights were evaluated with; where
    these are scale 1 without flips, there is no such view.
    """
    evaluation = network.config["evaluate"]
    views = {"single-scale": ((1.0,), False)}
    seen = tuple(map(float, evaluation["scales"])), bool(evaluation["flip"])
    if seen not in views.values():
        views["multi-scale"] = seen
    choices: list[CrfSettings | None] = [None]
    for backend in backends:
        for preset in ITERATED:
            choices.append(CrfSettings(**PRESETS[preset], backend=backend))
    return [
        Row(view, Settings(size=size, scales=scales, flip=flip, max_size=max_size, crf=crf))
        for view, (scales, flip) in views.items() for crf in choices
    ]


class _Stages:
    """Seconds of each stage, one value per image, with the device synchronised around it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}

    def time(self, stage: str, function: Callable[..., Any], *arguments: Any) -> Any:
        start = clock(self.device)
        result = function(*arguments)
        self.seconds[stage].append(clock(self.device) - start)
        return result


def time_stages(
    network: CoSANetwork,
    jobs: Sequence[Job],
    rows: Sequence[Row],
    batch_size: int,
    autocast: Callable[[], AbstractContextManager],
) -> list[dict[str, list[float]]]:
    """Seconds of each stage for each image, one stage after the other.

    For each batch the rows take their turns, so that whatever else the machine does falls on all
    alike. The network runs once for all rows of a view. The first batch runs twice, and counts
    the second time.

    Returns:
        For each row: stage -> one value per image; of "crf" none without a CRF.

    Raises:
        UserError: an image cannot be segmented, or the device's memory is too small.
    """
    device = next(network.parameters()).device
    segmenters = [
        Segmenter(network, row.settings, batch_size=batch_size, autocast=autocast) for row in rows
    ]
    measured = [_Stages(device) for _ in rows]
    for turn, start in enumerate([0, *range(0, len(jobs), batch_size)]):
        batch = [jobs[k] for k in range(start, min(start + batch_size, len(jobs)))]
        stages = measured if turn else [_Stages(device) for _ in rows]
        try:
            _time_batch(segmenters, batch, stages)
        except torch.OutOfMemoryError as error:
            raise segmenters[-1].out_of_memory() from error
    return [stages.seconds for stages in measured]


def _time_batch(
    segmenters: Sequence[Segmenter], batch: Sequence[Job], measured: Sequence[_Stages]
) -> None:
    views: dict[tuple[Any, ...], tuple[list[Maps], float]] = {}
    for segmenter, stages in zip(segmenters, measured, strict=True):
        prepared = [stages.time("decode", decode, segmenter, job) for job in batch]
        view = segmenter.settings.scales, segmenter.settings.flip
        if view not in views:
            start = clock(segmenter.device)
            maps = list(segmenter.predict(prepared))
            views[view] = maps, (clock(segmenter.device) - start) / len(batch)
        maps, share = views[view]
        stages.seconds["network"] += len(batch) * [share]
        for job, ready, found in zip(batch, prepared, maps, strict=True):
            if segmenter.settings.crf:
                found = stages.time("crf", segmenter.refine, found, ready.photo)
            mask = stages.time("argmax", label, found, ready)
            results = Results(mask=mask)
            stages.time("write", outputs.write, job, results, segmenter.network.palette)


def decode(segmenter: Segmenter, job: Job) -> Prepared:
    """Read an image file and resize it for the network."""
    return segmenter.prepare(read_image(job.source), None)


def label(maps: Maps, prepared: Prepared) -> np.ndarray:
    """The mask, (H, W) uint8 of the image's size."""
    return np.array(maps.classes, dtype=np.uint8)[argmax_at_size(maps.seg, prepared.size).numpy()]


def load(
    setup: Setup,
) -> tuple[CoSANetwork, Callable[[], AbstractContextManager], torch.device]:
    """Network, precision and device as infer.py has them.

    Raises:
        UserError: the weights or the device are not usable.
    """
    device = choose_device(setup.device)
    torch.set_num_threads(setup.threads)
    network = cosa.load(setup.weights, device)
    if network.num_classes > 255:
        raise UserError(
            f"{setup.weights} has {network.num_classes} classes: masks hold at most 255"
        )
    training = network.config.get("train", {})
    allow_tf32(training.get("tf32", True))
    return network, choose_autocast(device, training.get("precision", "auto")), device


def run_pipeline(setup: Setup, jobs: Plan, settings: Settings) -> dict[str, float]:
    """All stages at once, as infer.py runs them; in a process of its own.

    One pass over the first batch goes before the one that is timed.

    Returns:
        ``images_per_second``; ``peak_bytes``, and ``loaded_bytes`` of them before the first
        image: the largest resident set of the process, on CUDA what PyTorch has allocated.

    Raises:
        UserError: an image cannot be segmented.
    """
    network, autocast, device = load(setup)
    loaded = peak(device)

    def run(some: Plan) -> None:
        for outcome in segment_files(
            network, some, settings, batch_size=setup.batch_size, workers=setup.workers,
            autocast=autocast,
        ):
            if outcome.error is not None:
                raise outcome.error

    run(first(jobs, setup.batch_size))
    start = clock(device)
    run(jobs)
    seconds = clock(device) - start
    return {"images_per_second": len(jobs) / seconds, "peak_bytes": peak(device),
            "loaded_bytes": loaded}


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module returns in a process that has done nothing else.

    Raises:
        UserError: the process was ended; and whatever the function raises.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise UserError("a measuring process was ended, perhaps for want of memory: lower "
                            "--batch-size, --workers or --size") from error


def score(jobs: Plan, masks: Path, classes: int) -> dict[str, float | None]:
    """``miou``, ``boundary_f`` and ``jf`` of the mask files of finished jobs.

    In [0, 1], None where the true masks ignore every pixel.
    """
    metrics = SegmentationMetrics(classes + 1, boundary=True)
    for outcome in read_back(jobs, classes):
        if outcome.error is not None:
            raise outcome.error
        metrics.update(outcome.mask, read_mask(truth(masks, outcome.job), classes))
    scores = metrics.compute()
    kept = {key: scores[key] for key in ("miou", "boundary_f", "jf")}
    return {key: None if math.isnan(value) else value for key, value in kept.items()}


def truth(masks: Path, job: Job) -> Path:
    """The file of an image's true mask."""
    return masks / (os.path.splitext(job.name)[0] + ".png")


def first(jobs: Plan, number: int) -> Plan:
    """At most so many jobs."""
    return replace(jobs, files=jobs.files[:number])


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
        own = header_size(job.source)
        if own != (width, height):
            raise UserError(f"{truth(masks, job)}: the mask is {width}x{height} pixels but "
                            f"{job.source} is {own[0]}x{own[1]}; they must have one size")
    return kept


def write_random(path: Path, config_file: str, classes: int | None, job: Job) -> None:
    """Weights of a random network of a configuration's architecture, the same each time.

    Its decoder is changed so that an image shows several classes, with logits well apart: on
    probabilities that are all alike, or on a single class, a CRF drops the classes and is done.

    Args:
        classes: of the network, background included; None: as many as the configured data has.
        job: an image to scale the decoder by.

    Raises:
        UserError: the configuration is not usable.
    """
    config = load_config(config_file)
    known = {"scenes": SCENE_CLASSES, "voc": voc.CLASSES, "coco": coco.CLASSES}
    names = known.get(config.data.name)
    if classes is not None:
        names = tuple(f"class_{k}" for k in range(1, classes))
    elif names is None:
        raise UserError(f"{config_file} is for data of any classes: say how many, --classes K")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(to_dict(config), len(names)).eval()
    side, _ = scaled_size(2 * (config.evaluate.image_size,), 1.0, network.patch_size)
    _make_sure(network, network_input(read_image(job.source), side)[None])
    save_weights(path, network, config=to_dict(config), classes=names,
                 palette=voc_palette(len(names) + 1))


@torch.no_grad()
def _make_sure(network: CoSANetwork, image: torch.Tensor) -> None:
    last = network.decoder.conv8
    seen: list[torch.Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(image)
    hook.remove()
    # All features are positive: by their mean alone, one class would win everywhere.
    mean = F.normalize(seen[0].mean(dim=(0, 2, 3)), dim=0)[None, :, None, None]
    last.weight -= mean * (last.weight * mean).sum(dim=1, keepdim=True)
    last.weight *= SPREAD / last(seen[0]).std()


def report_row(
    row: Row,
    seconds: Mapping[str, Sequence[float]],
    pipeline: Mapping[str, float],
    scores: Mapping[str, float | None] | None,
) -> dict[str, Any]:
    """All about a row but what compares it with others."""
    images = len(seconds["write"])
    return {
        "view": row.view,
        "scales": list(row.settings.scales),
        "flip": row.settings.flip,
        "crf": row.settings.crf and asdict(row.settings.crf),
        "milliseconds": {
            stage: spread(seconds[stage]) if seconds[stage] else None for stage in STAGES
        },
        "images_per_second": images / sum(map(sum, seconds.values())),
        "overlapped": dict(pipeline),
        "scores": scores and dict(scores),
    }


def compare(results: Sequence[dict[str, Any]]) -> None:
    """Add to each row its ``slowdown``, in sequence and overlapped, against no CRF in its view."""
    plain_rows = {row["view"]: row for row in results if row["crf"] is None}
    for row in results:
        for found, other in ((row, plain_rows[row["view"]]),
                             (row["overlapped"], plain_rows[row["view"]]["overlapped"])):
            found["slowdown"] = other["images_per_second"] / found["images_per_second"]


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


def measure(
    setup: Setup, jobs: Plan, masks: Path | None, rows: Sequence[Row]
) -> list[dict[str, Any]]:
    """All rows: stages in this process, the pipeline and its memory in one for each row.

    Results lie below the folder ``jobs.output``.

    Raises:
        UserError: something cannot be read or written, or the memory is too small.
    """
    network, autocast, _ = load(setup)
    folder = jobs.output
    stages = time_stages(
        network, replace(jobs, output=folder / "stages"), rows, setup.batch_size, autocast
    )
    results = []
    for number, (row, seconds) in enumerate(zip(rows, stages, strict=True)):
        own = replace(jobs, output=folder / str(number))
        pipeline = in_fresh_process(run_pipeline, setup, own, row.settings)
        scores = score(own, masks, network.num_classes) if masks else None
        results.append(report_row(row, seconds, pipeline, scores))
    compare(results)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Time inference with and without a CRF, by stage and overlapped; write a table and JSON."""
    given = parse(arguments)
    read_report(Path(given.report), TOPIC)
    with tempfile.TemporaryDirectory() as folder:
        work = prepare(given, Path(folder))
        results = measure(work.setup, work.jobs, work.masks, work.rows)
    facts = {
        "command": f"python -m cosa.benchmark {shlex.join([TOPIC, *(arguments or [])])}",
        "date": datetime.date.today().isoformat(),
        **work.facts,
    }
    write_atomically(Path(given.output), json.dumps({**facts, "rows": results}, indent=2) + "\n")
    cells = table(work.rows, results)
    above, below = explain(facts, results)
    section = ["## Inference", f"`{facts['command']}`", *above, markdown(cells), *below]
    write_report(Path(given.report), "\n\n".join(section), TOPIC)
    print(*above, plain(cells), *facts["notes"], sep="\n")
    print(f"the numbers are in {given.output}, the report is {given.report}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=f"python -m cosa.benchmark {TOPIC}", description=main.__doc__
    )
    add = parser.add_argument
    add("folder", nargs="?", help=f"images; default: {SCENES} generated scenes with their masks")
    add("--weights", metavar="FILE",
        help=f"default: {TRAINED} if it is there, else a random network")
    add("--masks", metavar="FOLDER", help="true masks; images without one are left out")
    add("--limit", type=positive_integer, default=SCENES, metavar="N",
        help=f"the first N images; {SCENES}")
    add("--config", metavar="FILE",
        help=f"take a random network of this configuration's architecture; {CONFIG}")
    add("--classes", type=classes_from(2), metavar="K",
        help="of a random network, background included; default: those of the configured data")
    add("--size", type=positive_integer, metavar="N",
        help="side that images are squashed to; default: as evaluated")
    add("--max-size", type=positive_integer, default=MAX_SIZE, metavar="N",
        help=f"longer sides are shrunk to this for the CRF; {MAX_SIZE}")
    add("--batch-size", type=positive_integer, default=4, metavar="N", help="default: 4")
    add("--workers", type=positive_integer, default=min(8, os.cpu_count() or 1), metavar="N",
        help="threads that read, that write and that run a CRF on the CPU, overlapped")
    add("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    add("--report", default="docs/benchmarks.md", help="Markdown file to update")
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
    missing = missing_pydensecrf()
    if missing is not None:
        notes.append(f"Rows are left out: {missing}.")
    rows = choose_rows(network, given.size or network.image_size,
                       [backend for backend in BACKENDS if missing is None or backend == "torch"],
                       given.max_size)
    facts = {
        "machine": machine(device), "device": str(device), "threads": setup.threads,
        "workers": setup.workers, "batch_size": setup.batch_size, "images": len(jobs),
        "source": given.folder, "masks": given.masks, "weights": weights,
        "config": None if weights else given.config or CONFIG,
        "classes": network.num_classes + 1, "size": rows[0].settings.size,
        **complexity(network, rows), "notes": notes,
    }
    return Work(setup, jobs, masks, rows, facts)


def explain(
    facts: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[str]]:
    """Paragraphs above and below the table."""
    images = "generated scenes" if facts["source"] is None else f"images of `{facts['source']}`"
    network = f"`{facts['weights']}`" if facts["weights"] else (
        f"a random network of `{facts['config']}`")
    above = [
        f"{facts['date']}; {facts['machine']}; {facts['threads']} PyTorch thread(s), batches of "
        f"{facts['batch_size']}, {facts['workers']} worker(s). {facts['images']} {images}; "
        f"{network}, {facts['classes']} classes with the background, "
        f"{facts['size']}x{facts['size']} pixels.",
        _told_complexity(facts, results),
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
        "batch, in a process of its own. The `slowdown` after each is against no CRF in the same "
        f"view. `peak MiB` is {memory}, {loaded:.0f} of them before the first image."
    )
    if results[0]["scores"]:
        legend += " Scores are in percent, label-free."
    below = [legend, *facts["notes"]]
    return above, below


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
