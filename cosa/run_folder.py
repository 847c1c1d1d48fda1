"""The folder of a training run: configuration, metrics, checkpoints, panels, summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cosa.config import Config, load_config, to_yaml
from cosa.errors import UserError


class RunFolder:
    """Files of one run.

    config.yaml      the whole configuration
    metrics.jsonl    one JSON object per line: training terms, or scores under "evaluation"
    last.pth         everything that resuming needs
    best.pth         the assignment network at its best validation score, for inference
    panels/          pictures of the last evaluation
    summary.json     final scores
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.last = self.path / "last.pth"
        self.best = self.path / "best.pth"
        self.panels = self.path / "panels"
        self.summary = self.path / "summary.json"

    def create(self, config: Config) -> None:
        """Make the folder for a new run.

        Raises:
            UserError: it holds a run already, or cannot be written.
        """
        if self.last.exists():
            raise UserError(
                f"{self.path} already holds a run: continue it with --resume {self.path}, "
                "or choose another name=..."
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.metrics.write_text("", encoding="utf-8")
        except OSError as error:
            raise self._unwritable(error) from error
        self.write_config(config)

    def write_config(self, config: Config) -> None:
        """Write config.yaml, at the beginning or when a run resumes with overrides.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            self.config.write_text(to_yaml(config), encoding="utf-8")
        except OSError as error:
            raise self._unwritable(error) from error

    def reopen(self, overrides: list[str]) -> Config:
        """Configuration of an interrupted run, with overrides over it.

        Raises:
            UserError: there is no run to resume.
        """
        if not self.last.is_file() or not self.config.is_file():
            raise UserError(f"{self.path} holds no run to resume: "
                            "config.yaml or last.pth is missing")
        return load_config(self.config, overrides)

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def forget_after(self, iteration: int) -> None:
        """Drop the metrics of later iterations: the resumed run writes them again.

        A last line that was cut off in the middle is dropped, too.
        """
        kept = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if record["iteration"] <= iteration:
                kept.append(line + "\n")
        self.metrics.write_text("".join(kept), encoding="utf-8")

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json."""
        self.summary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"cannot write the run folder {self.path}: {error.strerror}; "
                         "choose another with output=...")
