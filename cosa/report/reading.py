"""What the folder of a run holds, as far as it can be read: older runs lack some of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict, TypeVar

from cosa.config import Config, load_saved
from cosa.core.declared import Misfit, Within, check
from cosa.core.errors import UserError
from cosa.core.foreign import read_json
from cosa.score_names import Scores, Summary
from cosa.training.run_folder import RunFolder, read_log

Found = TypeVar("Found")

Line = dict[str, float | None]
"""Of metrics.jsonl."""


Octet = Annotated[int, Within(0, 255)]


class Confidences(TypedDict):
    """Pixels by the confidence of the CAM, n parts between n + 1 edges in [0, 1]."""

    edges: list[float]
    background: list[int]
    foreground: list[int]


class Example(TypedDict):
    """A picture in examples/."""

    name: Any
    file: str
    score: float | None
    kind: str
    label: int


class Details(TypedDict, total=False):
    """Of details.json; see ``cosa.training.details``."""

    iteration: int
    split: str
    classes: list[Any]
    palette: list[tuple[Octet, Octet, Octet]]
    images: int
    xi: tuple[float | None, float | None]
    fitted: dict[str, list[int]]
    confusion: list[list[int]]
    images_of_class: list[int]
    confidences: Confidences
    image_scores: list[int]
    examples: list[Example]
    training_seconds: float
    peak_memory_mb: float | None


class Labels(TypedDict):
    """Of a part of data.json."""

    images: int
    of_class: list[int]
    unlabelled: int


class Images(TypedDict):
    """Of a part of data.json."""

    sized: int
    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]


class Masks(TypedDict):
    """Of a part of data.json."""

    there: int
    read: int
    pixels: list[int]
    masks: list[int]
    ignored_pixels: int
    ignored_masks: int


class Part(TypedDict):
    """One of training and validation in data.json."""

    classes: list[Any]
    labels: Labels | None
    images: Images | None
    masks: Masks | None


class Finding(TypedDict):
    """Of data.json."""

    severity: str
    sentence: str


class Data(TypedDict, total=False):
    """Of data.json; see ``cosa.data.check``."""

    training: Part
    validation: Part
    findings: list[Finding]


class Start(TypedDict):
    """A line of starts.jsonl."""

    iteration: int
    date: str
    revision: str
    versions: dict[str, str]
    machine: str
    device: str
    processes: int


@dataclass
class Run:
    """A run folder's content; what is not there is None or empty."""

    folder: RunFolder
    config: Config | None = None
    metrics: list[Line] = field(default_factory=list)
    evaluations: list[Scores] = field(default_factory=list)
    summary: Summary | None = None
    details: Details | None = None
    data: Data | None = None
    starts: list[Start] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Sentences about files that cannot be read."""

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.config.name if self.config else self.folder.path.name

    @property
    def scores(self) -> Summary | Scores | None:
        """The final scores, else the last ones on the way."""
        return self.summary or (self.evaluations[-1] if self.evaluations else None)

    @property
    def iteration(self) -> int:
        """How far it is known to have come."""
        logged = [line["iteration"] for line in [*self.metrics[-1:], *self.evaluations[-1:]]]
        return max(logged, default=(self.summary or {}).get("iterations", 0))

    def seconds_at(self, iteration: int) -> float | None:
        """Of training up to an iteration, evaluations included; None if nothing tells."""
        known = [(line["iteration"], line.get("seconds")) for line in self.metrics]
        return next((seconds for done, seconds in reversed(known)
                     if done <= iteration and seconds is not None), None)


def read_run(path: str | Path) -> Run:
    """Read the folder of a run.

    Raises:
        UserError: there is no such folder, or it holds no run.
    """
    folder = RunFolder(path)
    if not folder.path.is_dir():
        raise UserError(f"{path} is no folder: give the folder of a run, such as runs/demo")
    if not (folder.config.is_file() or folder.evaluations.is_file() or folder.summary.is_file()):
        raise UserError(f"{path} holds no run: config.yaml, evaluations.jsonl and summary.json are "
                        "missing; give the folder of a run, such as runs/demo")
    run = Run(folder)

    def tried(file: Path, read: Callable[[], Found], otherwise: Found) -> Found:
        if not file.is_file():
            return otherwise
        try:
            return read()
        except UserError as error:
            run.problems.append(str(error))
            return otherwise

    run.config = tried(folder.config, lambda: load_saved(folder.config), None)
    run.metrics = tried(folder.metrics, lambda: _log(folder.metrics, Line), [])
    run.evaluations = tried(folder.evaluations, lambda: _log(folder.evaluations, Scores), [])
    run.starts = tried(folder.starts, lambda: _log(folder.starts, Start), [])
    run.summary = tried(folder.summary, lambda: _json(folder.summary, Summary), None)
    run.details = tried(folder.details, lambda: _details(folder.details), None)
    run.data = tried(folder.data, lambda: _json(folder.data, Data), None)
    return run


def _log(path: Path, kind: Any) -> list[Any]:
    """The lines of a log, each of a kind."""
    records = read_log(path)
    for number, record in enumerate(records, start=1):
        try:
            check(kind, record)
        except Misfit as error:
            raise UserError(f"{path}, line {number}: {error}; the file is damaged: delete the "
                            "line") from error
    return records


def _json(path: Path, kind: Any) -> Any:
    return read_json(path, "the file", kind, "delete it")


def _details(path: Path) -> Details:
    """details.json, whose lists are of one length."""
    details = _json(path, Details)
    count = len(details.get("classes", ()))
    confusion = details.get("confusion", [])
    told = details.get("confidences")
    square = all(len(row) == len(confusion) for row in confusion)
    fits = square and len(confusion) in (0, count)
    fits &= len(details.get("images_of_class", ())) in (0, count)
    if told is not None:
        parts = len(told["edges"]) - 1
        fits &= len(told["background"]) == parts == len(told["foreground"])
    if not fits:
        raise UserError(f"{path}: its lists are not of one length; delete it")
    return details
