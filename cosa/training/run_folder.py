"""The folder of a training run: configuration, metrics, checkpoints, panels, summary."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

try:
    import fcntl
except ImportError:  # Windows; there nothing keeps two programs out of one folder.
    fcntl = None

from cosa.config import Config, load_saved, to_yaml
from cosa.core.declared import Misfit, check
from cosa.core.distributed import is_main, main_only
from cosa.core.errors import UserError
from cosa.core.files import append, remove_leftovers, write_atomically, writing
from cosa.core.foreign import MEGABYTE, parse_json, read_bytes, read_text

MOST_LOG = 1000 * MEGABYTE
"""A line has about 500 bytes."""

_OLDER = re.compile(r"checkpoint-(\d+)\.pth")


class _Line(TypedDict):
    iteration: int


class _Summary(TypedDict):
    iterations: int


class RunFolder:
    """Files of one run. Of several processes, the first one writes them.

    config.yaml         the whole configuration
    data.json           what was found in the data set
    starts.jsonl        one JSON object per start: the program and the machine
    metrics.jsonl       one JSON object per line: "iteration", "loss", its terms, thresholds
    evaluations.jsonl   one JSON object per line: "iteration" and the scores
    last.pth            everything that resuming needs
    checkpoint-*.pth    the same of earlier iterations
    best.pth            the assignment network at its best validation score, for inference
    panels/             pictures of the last evaluation
    details.json        what the scores of the last evaluation are made of
    examples/           pictures of its best, median and worst images, and of each class
    summary.json        final scores
    report.html         all of it, to be looked at
    tensorboard/        what TensorBoard shows, where that is wanted
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.data = self.path / "data.json"
        self.starts = self.path / "starts.jsonl"
        self.metrics = self.path / "metrics.jsonl"
        self.evaluations = self.path / "evaluations.jsonl"
        self.last = self.path / "last.pth"
        self.best = self.path / "best.pth"
        self.panels = self.path / "panels"
        self.details = self.path / "details.json"
        self.examples = self.path / "examples"
        self.summary = self.path / "summary.json"
        self.report = self.path / "report.html"
        self.tensorboard = self.path / "tensorboard"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other programs from training into this folder; it is made if it is missing.

        The lock goes with the process, however that ends. Loader processes do not inherit it,
        as they would one of ``flock``: it would outlive a killed run for seconds.

        Raises:
            UserError: another program holds it, or the folder cannot be written.
        """
        if not is_main():
            yield
            return
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / ".lock", "w")
        with file:
            if fcntl is not None:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    if error.errno in (errno.EACCES, errno.EAGAIN):
                        raise UserError(
                            f"another program trains into {self.path} at this moment: "
                            "stop it, or choose another folder (name=..., --output)"
                        ) from error
                    # Some network file systems have no locks: go on without.
            yield

    def older(self, iteration: int) -> Path:
        """The name that the checkpoint of an iteration has once it is not the newest."""
        return self.path / f"checkpoint-{iteration:08d}.pth"

    def older_checkpoints(self) -> list[Path]:
        """The checkpoints before last.pth, the newest first."""
        found = [path for path in self.path.glob("checkpoint-*.pth") if _OLDER.fullmatch(path.name)]
        return sorted(found, key=self.iteration_of, reverse=True)

    def iteration_of(self, older: Path) -> int:
        """The iteration in a name that :meth:`older` gave."""
        return int(_OLDER.fullmatch(older.name)[1])

    def checkpoints(self) -> list[Path]:
        """All checkpoints, readable or not, the newest first."""
        return [path for path in (self.last, *self.older_checkpoints()) if path.is_file()]

    def check_free(self) -> None:
        """Raise ``UserError`` if the folder holds a run already."""
        if self.checkpoints():
            raise UserError(
                f"{self.path} already holds a run: continue it with --resume {self.path}, "
                "or choose another name=..."
            )

    @main_only
    def create(self, config: Config) -> None:
        """Make the folder for a new run; what a run without a checkpoint left is removed.

        Raises:
            UserError: it holds a run already, or cannot be written.
        """
        self.check_free()
        with writing(self.path):
            for path in (self.metrics, self.evaluations, self.starts):
                write_atomically(path, "")
            for path in (self.best, self.summary, self.details, self.report):
                path.unlink(missing_ok=True)
        self._remove_leftovers()
        self.write_config(config)

    @main_only
    def write_config(self, config: Config) -> None:
        """Write config.yaml, at the beginning or when a run resumes with overrides.

        Raises:
            UserError: the folder cannot be written.
        """
        write_atomically(self.config, to_yaml(config))

    @main_only
    def write_data(self, found: dict[str, Any]) -> None:
        """Write data.json: what was found in the data set."""
        write_atomically(self.data, json.dumps(found, indent=2) + "\n")

    def reopen(self, overrides: list[str]) -> Config:
        """Configuration of an interrupted run, with overrides over it.

        The run may be one that was killed before its first checkpoint, but none whose
        checkpoints are gone.

        Raises:
            UserError: there is no run to resume.
        """
        if not self.config.is_file():
            raise UserError(f"{self.path} holds no run to resume: config.yaml is missing; "
                            "begin with python train.py CONFIG.yaml")
        results = [path.name for path in (self.best, self.summary) if path.exists()]
        if results and not self.checkpoints():
            raise UserError(f"{self.path} holds no run to resume: last.pth is missing, though "
                            f"{results[0]} is there; put last.pth back, or begin anew with "
                            f"python train.py {self.config} name=...")
        return load_saved(self.config, overrides)

    @main_only
    def log_start(self, record: dict[str, Any]) -> None:
        """Append one line to starts.jsonl."""
        append(self.starts, json.dumps(record) + "\n")

    @main_only
    def log(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        append(self.metrics, json.dumps(record) + "\n")

    @main_only
    def log_evaluation(self, iteration: int, scores: dict[str, Any]) -> None:
        """Append the scores to evaluations.jsonl, in place of others at or after the iteration."""
        _keep(self.evaluations, _records(self.evaluations), iteration - 1)
        append(self.evaluations, json.dumps({"iteration": iteration, **scores}) + "\n")

    def read_evaluations(self) -> list[dict[str, Any]]:
        """The lines of evaluations.jsonl; none if there is no such file.

        Raises:
            UserError: a line is of another kind.
        """
        return read_log(self.evaluations)

    @main_only
    def write_details(self, details: dict[str, Any]) -> None:
        """Write details.json, and delete the pictures that it does not name."""
        write_atomically(self.details, json.dumps(details) + "\n")
        named = {example["file"] for example in details["examples"]}
        with writing(self.examples):
            for path in self.examples.glob("*.png"):
                if path.name not in named:
                    path.unlink()

    @main_only
    def forget_after(self, iteration: int) -> None:
        """Drop metrics, evaluations and final scores of later iterations: they are repeated.

        A last line that was cut off in the middle is dropped, too, and so are the temporary
        files of a killed program.

        Raises:
            UserError: a file is damaged, and none is changed; or the folder cannot be written.
        """
        logs = [(path, _records(path)) for path in (self.metrics, self.evaluations)]
        stale = self.summary.exists() and self._summarised() > iteration
        if self.details.exists() and self._detailed() > iteration:
            self.details.unlink()
        self._remove_leftovers()
        for path, records in logs:
            _keep(path, records, iteration)
        if stale:
            self.summary.unlink()

    def _remove_leftovers(self) -> None:
        for folder in (self.path, self.panels, self.examples):
            remove_leftovers(folder, alone=True)

    def _summarised(self) -> int:
        """The iterations that summary.json speaks of."""
        text = read_text(self.summary, "the summary")
        where = f"{self.summary} is damaged, delete it"
        return parse_json(text, where, _Summary)["iterations"]

    def _detailed(self) -> int:
        """The iteration that details.json speaks of."""
        text = read_text(self.details, "the record of the evaluation")
        return parse_json(text, f"{self.details} is damaged, delete it", _Line)["iteration"]

    @main_only
    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json."""
        write_atomically(self.summary, json.dumps(summary, indent=2) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file of a run, each with its ``iteration``; none without the file.

    Raises:
        UserError: a line is of another kind.
    """
    return [record for _, record in _records(path)]


def _records(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The whole lines of a log, each with what it says; none if there is no such file.

    Raises:
        UserError: a line is JSON of another kind, which no program of ours wrote.
    """
    records = []
    lines = read_bytes(path, "the log", most=MOST_LOG).splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line.decode())
            check(_Line, record)
        except Misfit as error:
            raise UserError(f"{path}, line {number}: {error}; the file is damaged: delete the "
                            "line") from error
        except (ValueError, RecursionError):  # it was cut off in the middle
            continue
        records.append((line, record))
    return records


def _keep(path: Path, records: list[tuple[bytes, dict[str, Any]]], last: int) -> None:
    """Keep the lines of iterations up to ``last``."""
    kept = [line.decode() + "\n" for line, record in records if record["iteration"] <= last]
    write_atomically(path, "".join(kept))
