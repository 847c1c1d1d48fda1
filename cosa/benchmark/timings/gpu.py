"""All that is to be measured on a GPU, the most important first, in one command.

Each part runs in a process of its own and leaves a log and its figures; the report is written anew
after each. A run that is cut off goes on where it was.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cosa.benchmark import stamp
from cosa.benchmark.tables import add_report_option, read_report, write_report
from cosa.benchmark.timings.gpu_report import make_section
from cosa.core.device import choose_device
from cosa.core.errors import UserError
from cosa.core.files import PROJECT_FOLDER, write_atomically
from cosa.core.ranges import whole
from cosa.core.terminal import Parser, say

TOPIC = "gpu"
BENCHMARK = ["-m", "cosa.benchmark"]
VOC = ["--config", "configs/voc.yaml", "device=cuda"]
FEW = ["--rounds", "6", "train.compile=false"]
PLAIN = ["train.compile=false", "train.cuda_graphs=false"]


@dataclass(frozen=True)
class Part:
    """Something to measure."""

    about: str
    command: Callable[[Path, list[str]], list[str]]
    """Arguments of Python, from the file of its figures and the folder of photographs, if any."""


MANY = ["--rounds", "100"]  # of 30 ms: a single late batch is to count for little


def _train(*options: str) -> Callable[[Path, list[str]], list[str]]:
    return lambda file, _: [*BENCHMARK, "train", *VOC, "--json", str(file), *options]


def _inference(file: Path, photos: list[str]) -> list[str]:
    return [*BENCHMARK, "inference", *photos, "--config", "configs/voc.yaml", "--classes", "21",
            "--limit", "64", "--backends", "torch", "--presets", "release", "--device", "cuda",
            "--output", str(file),
            "--report", str(file.with_suffix(".md"))]


def _crf(file: Path, photos: list[str]) -> list[str]:
    return [*BENCHMARK, "crf", *photos, "--device", "cuda", "--limit", "1", "--repeats", "3",
            "--memory", "--output", str(file), "--report", str(file.with_suffix(".md"))]


PARTS = {
    "tests": Part("the tests that need CUDA", lambda file, _: [
        "-m", "pytest", "-m", "cuda", "-p", "no:cacheprovider", "tests"]),
    "precision": Part("a step in bf16 against float32", lambda file, _: [
        *BENCHMARK, "precision", *VOC, "--json", str(file)]),
    "train": Part("training as it is by default", _train(*MANY, "--baseline", "--profile")),
    "train-graphs": Part("training without torch.compile", _train(*MANY, "train.compile=false")),
    "crf": Part("the CRF against one core of pydensecrf", _crf),
    "inference": Part("inference with and without a CRF", _inference),
    "channels": Part("the CRF's filter by channels", lambda file, photos: [
        *BENCHMARK, "channels", *photos, "--device", "cuda", "--json", str(file)]),
    "memory-12": Part("training with 12 GiB", _train("--memory-limit", "12", *FEW)),
    "memory-8": Part("training with 8 GiB", _train("--memory-limit", "8", *FEW)),
    "train-plain": Part("training operation by operation", _train(*PLAIN)),
    "demo": Part("the demo", lambda file, _: [
        "train.py", "configs/demo.yaml", "device=cuda", f"output={file.parent}", "name=demo"]),
}
"""Name -> what is measured, in this order."""


def run(part: Part, name: str, folder: Path, photos: list[str], limit: int) -> dict[str, object]:
    """Measure a part; return its ``exit`` code, None if it took too long, and ``seconds``."""
    file, started = folder / f"{name}.json", time.monotonic()
    command = [sys.executable, *part.command(file, photos)]
    with open(folder / f"{name}.log", "wb") as log:
        try:
            done = subprocess.run(command, cwd=PROJECT_FOLDER, stdin=subprocess.DEVNULL, stdout=log,
                                  stderr=subprocess.STDOUT, timeout=limit)
            code: int | None = done.returncode
        except subprocess.TimeoutExpired:
            code = None
    return {"exit": code, "seconds": round(time.monotonic() - started, 1)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure on a CUDA device: tests, precision, training, CRF, inference, memory, the demo.

    Goes on where an earlier run into the same folder was cut off. Exit code 1: some part failed;
    its log says why.
    """
    parser = Parser(prog=f"python -m cosa.benchmark {TOPIC}", description=main.__doc__)
    parser.add_argument("folder", nargs="?", help="photographs for the CRF and inference; default: "
                        "generated scenes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
                        help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--again", action="store_true", help="measure anew what is there")
    parser.add_argument("--limit", type=whole(1, 10**6), default=900, metavar="SECONDS",
                        help="for each part; 900")
    add_report_option(parser)
    parser.add_argument("--output", default=f"runs/{TOPIC}", help="folder of logs and figures")
    given = parser.parse_args(arguments)
    started = stamp.begin(TOPIC, arguments, given.report)
    read_report(given.report, TOPIC)
    if not torch.cuda.is_available():
        raise UserError("there is no CUDA device here: run this benchmark on one")
    facts = started.facts(choose_device("cuda"))
    folder = Path(given.output).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    photos = [str(Path(given.folder).resolve())] if given.folder else []
    table = folder / f"{TOPIC}.json"
    results = {} if given.again or not table.is_file() else _finished(table, facts)
    for name in given.parts:
        if name not in results:
            say(f"{name}: {PARTS[name].about}")
            results[name] = run(PARTS[name], name, folder, photos, given.limit)
            told = {0: "done", None: "took too long"}.get(results[name]["exit"], "failed")
            say(f"{name}: {told} in {results[name]['seconds']} s; {folder / name}.log")
        write_atomically(table, json.dumps({**facts, "parts": results}, indent=2) + "\n")
        write_report(given.report, make_section(folder, facts, results), TOPIC)
    return int(any(result["exit"] != 0 for result in results.values()))


def _finished(table: Path, facts: dict[str, str]) -> dict[str, dict[str, object]]:
    """The parts of an earlier run that succeeded, on the same machine at the same revision.

    Raises:
        UserError: the earlier run was of another one.
    """
    earlier = json.loads(table.read_text(encoding="utf-8"))
    for key in ("machine", "revision"):
        if earlier[key] != facts[key]:
            raise UserError(f"{table} is of {earlier[key]}, not of {facts[key]}: choose another "
                            "--output, or measure --again")
    return {name: part for name, part in earlier["parts"].items() if part["exit"] == 0}
