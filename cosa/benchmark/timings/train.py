"""Speed of training: images/s, the phases of a step, memory and utilisation of the device."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cosa.benchmark import stamp
from cosa.benchmark.tables import REPORT, code, markdown, print_section, write_report
from cosa.benchmark.timings.baseline_step import Baseline
from cosa.benchmark.timings.clock import clock
from cosa.benchmark.timings.flops import count, count_multi_scale
from cosa.benchmark.timings.kernels import kernel_table, profile
from cosa.benchmark.timings.memory import peak, start_peak
from cosa.benchmark.timings.phases import PhaseClock
from cosa.benchmark.timings.textures import textures
from cosa.benchmark.timings.trainer import CACHED, Trainer
from cosa.config import Config, load_config
from cosa.core.device import choose_device, memory_errors_explained
from cosa.core.errors import UserError
from cosa.core.files import write_atomically
from cosa.core.ranges import real, whole
from cosa.core.terminal import Parser
from cosa.core.text import aligned
from cosa.data import SegmentationDataset, build_dataset, coco, voc
from cosa.data.base import FileDataset
from cosa.data.batches import to_device
from cosa.training.build import calls_of

TOPIC = "train"
DEFAULT_CONFIG = "configs/demo.yaml"
PHASES = ("data", "teacher", "student", "targets", "losses", "backward", "optimizer and average")
NOISE_IMAGES = 64
MOST_COMPARED = 8
"""Rounds with the baseline's step, which takes long, at most."""

KNOWN = {"voc": len(voc.CLASSES), "coco": len(coco.CLASSES)}
"""Data set whose classes are known without its files -> how many, without the background."""

PEAKS = {
    "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "A10": 125e12,
    "RTX 4090": 165e12, "RTX 3090": 71e12,
}
"""Dense bf16 operations per second with float32 sums, of the data sheets of the full models."""

LEGEND = """\
`ms` is the median over the iterations on the device's clock; `data` is what the device waits for
batches and their copies. The student's forward pass comes before the targets, which need the
threshold: where the host of a GPU fits that, it does so meanwhile. Utilisation counts the matrix
products of teacher (forward, all scales and flips) and student (forward, and twice that
backward)."""

BASELINE_NOTE = """\
The baseline makes the same step as the released programs do: float32 without TensorFloat-32,
attention by plain matrix products, one scale and one flip after the other, maps of all classes,
pseudo-labels image by image, scikit-learn's mixture on the whole queue at every iteration, one
optimizer kernel per tensor. Both steps were timed in this run, in turn, on the same {cached}
batches without their loading; the queue of the baseline held {queue} batches."""


@dataclasses.dataclass
class Measured:
    """What a run of training steps took."""

    seconds: float
    """Of an iteration, loading included: the wall's time over all."""
    phases: dict[str, float]
    """Phase -> median seconds."""
    memory: int
    """Bytes beyond what there was before the networks were built."""
    reserved: int
    """Bytes that PyTorch holds on a GPU, gaps between tensors included; 0 on the CPU."""


def measure(trainer: Trainer, before: int, rounds: int, warm_up: int) -> Measured:
    """Train for ``warm_up`` and then ``rounds`` iterations, loader included.

    Args:
        before: bytes in use before the trainer was built, of ``start_peak``.
    """
    device = trainer.device
    phases, started = PhaseClock(device), 0.0
    loaded = trainer.batches(warm_up + rounds, trainer.config.data.workers)
    for made, batch in enumerate(loaded, start=1):
        batch = to_device(batch, device, trainer.cotraining.online.mean)
        phases.mark(PHASES[0])
        trainer.train_on(batch, phases.mark)
        phases.mark(PHASES[-1])
        if made == warm_up:
            started = clock(device)
            phases = PhaseClock(device)
            phases.mark("start")
    seconds = (clock(device) - started) / rounds
    reserved = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0
    return Measured(seconds, phases.seconds(), peak(device) - before, reserved)


def choose_dataset(config: Config, folder: Path) -> SegmentationDataset:
    """The configured training images, or JPEG files of noise where none are named.

    Args:
        folder: for these files, of VOC's usual size. Each holds one or two classes.
    """
    if not is_synthetic(config):
        return build_dataset(config.data, "train")
    noise = textures(folder, NOISE_IMAGES, 500, 375)
    classes = [f"class_{k}" for k in range(known_classes(config))]
    labels = np.zeros((NOISE_IMAGES, len(classes)), dtype=np.uint8)
    rng = np.random.default_rng(0)
    for row in labels:
        row[rng.integers(len(classes), size=2)] = 1
    return FileDataset(classes, noise.names, labels, noise.image_paths)


def known_classes(config: Config) -> int:
    """How many foreground classes the configured data set has."""
    if config.data.name in KNOWN:
        return KNOWN[config.data.name]
    return len(build_dataset(config.data, "train").classes)


def is_synthetic(config: Config) -> bool:
    """Whether the configuration is of a known data set and does not say where it is."""
    return config.data.name in KNOWN and not config.data.root


def compare(trainer: Trainer, rounds: int) -> dict[str, float]:
    """Median seconds of our step and of the baseline's, in turn, on the same batches."""
    batches = trainer.cached_batches()
    config, total = trainer.config, trainer.config.train.iterations
    other = Trainer(config, trainer.dataset)
    baseline = Baseline(other.cotraining, other.config)
    fill_queues(baseline)
    steps = {
        "ours": trainer.train_on,
        "baseline": lambda batch: baseline.step(batch, total - 1),
    }
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for made in range(1 + rounds):  # the first round is the warm-up
        for name, step in steps.items():
            start = clock(trainer.device)
            step(batches[made % CACHED])
            spent[name].append(clock(trainer.device) - start)
    return {name: statistics.median(values[1:]) for name, values in spent.items()}


def kernels_of(trainer: Trainer) -> list[dict[str, Any]]:
    """The kernels of a step, see :func:`cosa.benchmark.timings.kernels.profile`."""
    batch = trainer.cached_batches()[0]
    return profile(lambda: trainer.train_on(batch))


def fill_queues(baseline: Baseline) -> None:
    """Confidences as after many iterations: the mixture's cost grows with the queue."""
    rng = np.random.default_rng(0)
    config = baseline.config
    cells = config.train.batch_size * (config.augment.crop_size // config.threshold.cell) ** 2
    for threshold in baseline.thresholds.values():
        for _ in range(config.threshold.queue_length - 1):
            part = np.where(rng.random(cells) < 0.25, rng.normal(0.65, 0.13, cells),
                            rng.normal(0.25, 0.09, cells))
            threshold.queue.append(part.clip(0.06, 1))


def step_flops(trainer: Trainer) -> int:
    """Floating-point operations of a step's matrix products; regularizers are not counted."""
    config, network = trainer.config, trainer.cotraining.online
    crop, batch = config.augment.crop_size, config.train.batch_size
    teacher = count_multi_scale(network, crop, config.teacher.scales, config.teacher.flip, batch)
    return teacher.flops + 3 * count(network, crop, batch).flops


def limit_memory(device: torch.device, gibibytes: float) -> None:
    """Let PyTorch take no more of a GPU's memory.

    Raises:
        UserError: the device is no GPU.
    """
    if device.type != "cuda":
        raise UserError("--memory-limit is for a GPU: leave it out, or add device=cuda")
    number = torch.cuda.current_device() if device.index is None else device.index
    whole_memory = torch.cuda.get_device_properties(number).total_memory
    torch.cuda.set_per_process_memory_fraction(
        min(1.0, gibibytes * 2**30 / whole_memory), number)


def matmul_rate(device: torch.device, bf16: bool) -> float:
    """Operations per second of one large matrix product on the device."""
    side = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if bf16 else torch.float32
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(50):
        phases = PhaseClock(device)
        phases.mark("start")
        matrix @ matrix
        phases.mark("product")
        best = min(best, phases.seconds()["product"])
    return 2 * side**3 / best


def device_peak(device: torch.device, bf16: bool) -> tuple[float, str]:
    """Operations per second of the device, and where the figure comes from."""
    if device.type == "cuda" and bf16:
        name = torch.cuda.get_device_name(device)
        for key, value in PEAKS.items():
            if re.search(rf"\b{key}\b", name) and not re.search("PCIe|NVL|Laptop|Max-Q", name):
                return value, "data sheet"
    return matmul_rate(device, bf16), "a large matrix product"


def facts_of(trainer: Trainer, measured: Measured) -> dict[str, Any]:
    """Everything measured, for the table and for --json."""
    config = trainer.config
    images = config.train.batch_size / measured.seconds
    with trainer.cotraining.autocast():
        bf16 = torch.is_autocast_enabled(trainer.device.type)
    flops, (rate, source) = step_flops(trainer), device_peak(trainer.device, bf16)
    return {
        "images_per_second": images,
        "seconds_per_iteration": measured.seconds, "phases": measured.phases,
        "memory_bytes": measured.memory, "reserved_bytes": measured.reserved,
        "calls": called(trainer), "flops_per_step": flops,
        "utilisation": flops / measured.seconds / rate, "peak": rate, "peak_source": source,
        "precision": "bf16" if bf16 else "fp32",
        "schedule_hours": config.train.iterations * measured.seconds / 3600,
    }


def called(trainer: Trainer) -> str:
    """How the step calls its networks."""
    compiled, graphs = calls_of(trainer.config, trainer.device)
    ways = ["compiled"] * compiled + ["replayed as CUDA graphs"] * graphs
    return " and ".join(ways) or "as they are"


def table(facts: dict[str, Any]) -> list[list[str]]:
    """Header and a row for each phase of an iteration."""
    total = facts["seconds_per_iteration"]
    rows = [["phase", "ms", "%"]]
    for phase in PHASES:
        if phase in facts["phases"]:
            spent = facts["phases"][phase]
            rows.append([phase, f"{1e3 * spent:.1f}", f"{100 * spent / total:.0f}"])
    return [*rows, ["iteration", f"{1e3 * total:.1f}", "100"]]


def lines(facts: dict[str, Any], config: Config) -> list[str]:
    """What the table does not say, a sentence each."""
    said = [
        f"{facts['images_per_second']:.1f} images/s at batches of {config.train.batch_size}, "
        f"crops of {config.augment.crop_size}, {facts['precision']}, the networks called "
        f"{facts['calls']}.",
        f"Peak memory {facts['memory_bytes'] / 2**20:.0f} MiB, networks and optimizer included.",
        f"{facts['flops_per_step'] / 1e12:.3g} TFLOP per step: "
        f"{100 * facts['utilisation']:.0f} % of {facts['peak'] / 1e12:.3g} TFLOP/s "
        f"({facts['peak_source']}).",
        f"All {config.train.iterations} iterations of the configuration at this rate, without "
        f"evaluations: {facts['schedule_hours']:.2f} h.",
    ]
    if "comparison" in facts:
        ours, theirs = facts["comparison"]["ours"], facts["comparison"]["baseline"]
        said.append(f"Step without loading {1e3 * ours:.1f} ms, baseline {1e3 * theirs:.1f} ms: "
                    f"{theirs / ours:.2f} times as long.")
    return said


def make_section(facts: dict[str, Any], config: Config) -> str:
    """The Markdown of the report."""
    data = "JPEG files of noise, 500x375" if is_synthetic(config) else config.data.name
    parts = [
        f"## Training, {code(config.name)}", "", stamp.heading(facts, f"images: {data}"), "",
        markdown(table(facts)), "", *(f"- {line}" for line in lines(facts, config)), "", LEGEND,
    ]
    if "comparison" in facts:
        queue = config.threshold.queue_length
        parts += ["", BASELINE_NOTE.format(cached=CACHED, queue=queue)]
    if "kernels" in facts:
        parts += ["", markdown(kernel_table(facts["kernels"]))]
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Time the training of a configuration from random weights.

    Where the configuration names no folder of images, files of noise of VOC's size stand in.
    """
    parser = Parser(
        prog=f"python -m cosa.benchmark {TOPIC}", description=main.__doc__
    )
    parser.add_argument("--config", default=DEFAULT_CONFIG, help=f"YAML file; {DEFAULT_CONFIG}")
    parser.add_argument("--baseline", action="store_true",
                        help="also time the step as the released programs make it")
    parser.add_argument("--profile", action="store_true",
                        help="also list the kernels of a step that take longest, on CUDA")
    parser.add_argument("--rounds", type=whole(1, 10**6), default=20, help="iterations to time; 20")
    parser.add_argument("--warm-up", type=whole(1, 10**6), default=8, help="iterations before; 8")
    parser.add_argument("--memory-limit", type=real(0.1, 10**4), metavar="GIB",
                        help="of what PyTorch may take of a GPU's memory, as if it were smaller")
    parser.add_argument("--json", metavar="FILE", help="write the figures here, too")
    parser.add_argument("--report", metavar="FILE",
                        help="Markdown file to put a section in, such as docs/benchmarks.md")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="over the YAML file")
    given = parser.parse_intermixed_args(arguments)
    started = stamp.begin(TOPIC, arguments, given.report or REPORT)
    config = load_config(given.config, [*given.overrides, "model.pretrained=false"])
    if given.memory_limit:
        limit_memory(choose_device(config.device), given.memory_limit)
    with memory_errors_explained(), tempfile.TemporaryDirectory() as folder:
        dataset = choose_dataset(config, Path(folder))
        before = start_peak(choose_device(config.device))
        trainer = Trainer(config, dataset)
        measured = measure(trainer, before, given.rounds, given.warm_up)
        facts = {**started.facts(trainer.device), **facts_of(trainer, measured)}
        if given.baseline:
            facts["comparison"] = compare(trainer, min(max(1, given.rounds // 4), MOST_COMPARED))
        if given.profile and trainer.device.type == "cuda":
            facts["kernels"] = kernels_of(trainer)
    config = trainer.config
    print_section(aligned(table(facts)), *lines(facts, config))
    if "kernels" in facts:
        print_section(aligned(kernel_table(facts["kernels"])))
    if given.json:
        write_atomically(given.json, json.dumps(facts, indent=2) + "\n")
    if given.report:
        about = f"{TOPIC} {config.name} {facts['machine'].partition(',')[0]}"
        topic = re.sub(r"[^a-z0-9]+", "-", about.lower())
        write_report(given.report, make_section(facts, config), topic)
    return 0
