"""Runs of other programs: several at a time, resumable run by run."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cosa.benchmark.stamp import Revision
from cosa.config import Config, to_dict
from cosa.core.errors import UserError
from cosa.core.files import PROJECT_FOLDER, write_atomically
from cosa.core.hub import fetch, is_model
from cosa.core.terminal import progress_bar
from cosa.encoders.pretrained import HOW_TO_MAKE

MARKER = "benchmark.json"
"""In each run folder made here: what was run, and whether it came to its end."""

_REFRESH = 10.0  # seconds between two looks at the clock of the progress bar


@dataclass(frozen=True)
class Run:
    """One row of a table with one seed: commands that fill one folder."""

    row: str
    config: Config
    commands: tuple[tuple[str, ...], ...]
    """Program and arguments, one after the other."""
    revision: Revision
    """Of the program that makes the run."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What else the result depends on, in plain types."""

    @property
    def folder(self) -> Path:
        return Path(self.config.output) / self.config.name

    @property
    def log(self) -> Path:
        """Everything that the commands print."""
        return self.folder.with_name(f"{self.config.name}.log")

    def identity(self) -> dict[str, Any]:
        """What the result depends on; the number of loader processes is no part of it."""
        config = to_dict(self.config)
        del config["data"]["workers"]
        return {"row": self.row, "config": config, "weights": _weights_digest(self.config),
                "revision": asdict(self.revision), **self.details}

    def is_finished(self) -> bool:
        """Whether this very run has come to its end before.

        Raises:
            UserError: the folder is not ours, or holds a finished run of something else.
        """
        if not self.folder.exists():
            return False
        marker = self._read_marker()
        if not marker["finished"]:
            return False
        there, own = marker["identity"], self.identity()
        if there == own:
            return True
        other = "another configuration or other weights"
        if {**there, "revision": None} == {**own, "revision": None}:
            known = there.get("revision")
            maker = Revision(**known).in_full() if known else "of an unknown revision"
            other = f"another state of the program ({maker}; now {self.revision.in_full()})"
        raise UserError(f"{self.folder} holds a finished run of {other}: choose another --output, "
                        "or delete that folder")

    def start_afresh(self) -> None:
        """Make an empty folder; what an interrupted run left there is deleted.

        Raises:
            UserError: there is a folder that this program did not make.
        """
        if self.folder.exists():
            self._read_marker()
            shutil.rmtree(self.folder)
        self.log.unlink(missing_ok=True)
        self._write_marker(finished=False)

    def finish(self, machine: str) -> None:
        """Mark the folder as complete, made on a machine."""
        self._write_marker(finished=True, machine=machine)

    def made_on(self) -> str | None:
        """The machine that has made a finished run; None where the folder does not tell."""
        return self._read_marker().get("machine")

    def _write_marker(self, finished: bool, **further: str) -> None:
        content = {"finished": finished, "identity": self.identity(), **further}
        write_atomically(self.folder / MARKER, json.dumps(content, indent=2) + "\n")

    def _read_marker(self) -> dict[str, Any]:
        path = self.folder / MARKER
        if not path.is_file():
            raise UserError(f"{self.folder} was not made by this program: choose another --output")
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: delete the folder {self.folder}") from error


class Runner:
    """Runs what is not finished yet, some at a time; the first failure stops all.

    Args:
        jobs: runs at a time.
        threads: of each run, given as OMP_NUM_THREADS.
        check: called before and after each command; what it raises stops all, and the run of
            the command does not count as finished.
        machine: what finished runs are said to be made on.
    """

    def __init__(
        self, jobs: int, threads: int, check: Callable[[], None] = lambda: None, machine: str = "",
    ) -> None:
        self.jobs, self.check, self.machine = jobs, check, machine
        paths = [str(PROJECT_FOLDER), os.environ.get("PYTHONPATH", "")]
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        }
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen] = set()
        self._stopping = False

    def complete(self, runs: Sequence[Run]) -> None:
        """Return once all runs are finished.

        Raises:
            UserError: a folder is not usable, or a command failed; the sentence names its log.
        """
        pending = [run for run in runs if not run.is_finished()]
        done = len(runs) - len(pending)
        pool = ThreadPoolExecutor(self.jobs)
        futures = {pool.submit(self._execute, run) for run in pending}
        try:
            with progress_bar(total=len(runs), initial=done, desc="runs", unit="run") as bar:
                while futures:
                    ready, futures = wait(futures, _REFRESH, return_when=FIRST_COMPLETED)
                    for future in ready:
                        future.result()
                        bar.update()
                    bar.refresh()
        finally:
            # After a failure, and after Ctrl-C: leave no process behind.
            self._stop()
            pool.shutdown(cancel_futures=True)

    def _execute(self, run: Run) -> None:
        self.check()
        run.start_afresh()
        for command in run.commands:
            with open(run.log, "ab") as log:
                with self._lock:
                    if self._stopping:
                        return
                    process = subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                        env=self.environment,
                    )
                    self._processes.add(process)
                code = process.wait()
                with self._lock:
                    self._processes.discard(process)
                    stopped = self._stopping
            if stopped:
                return
            self.check()
            if code:
                raise UserError(f"the run {run.config.name} failed with exit code {code} "
                                f"({last_line(run.log)}): see {run.log}")
        run.finish(self.machine)

    def _stop(self) -> None:
        with self._lock:
            self._stopping = True
            for process in self._processes:
                process.terminate()


def last_line(log: Path) -> str:
    """The last line of a log that is not empty."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")


def _weights_digest(config: Config) -> str:
    """SHA-256 of the encoder's weight file, if the configuration names one."""
    if not config.model.pretrained or not config.model.weights:
        return ""
    hub = is_model(config.model.weights)
    for folder in (Path(), PROJECT_FOLDER):
        file = fetch(config.model.weights) if hub else folder / config.model.weights
        if file.is_file():
            return _sha256(file, file.stat().st_mtime_ns)
    raise UserError(f"model.weights: there is no file {config.model.weights}: make it "
                    f"({HOW_TO_MAKE}), or set model.pretrained=false")


@functools.cache
def _sha256(file: Path, modified: int) -> str:
    with open(file, "rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
