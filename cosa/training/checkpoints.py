"""The newest checkpoints of a run: last.pth and those before it, never more than so many.

Older ones are there for the day on which the newest cannot be read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cosa import checkpoint
from cosa.core.errors import UserError
from cosa.core.files import writing
from cosa.core.terminal import warn
from cosa.training.run_folder import RunFolder


class Rotation:
    """Writes and finds the checkpoints of a run folder.

    last.pth is the newest; when it is replaced, it stays as checkpoint-<iteration>.pth. At no
    moment, whatever interrupts it, are there more than ``keep`` of them and the temporary file
    of the one that is being written.

    Args:
        run: the folder; its lock must be held while anything is written.
        keep: how many checkpoints, at least 1.
    """

    def __init__(self, run: RunFolder, keep: int) -> None:
        self.run = run
        self.keep = keep
        self._newest: int | None = None  # the iteration of last.pth

    def save(self, content: dict[str, Any], iteration: int) -> None:
        """Write last.pth; what it was before becomes an older one.

        A file of the same iteration is replaced: an older one is to be a way further back.

        Raises:
            UserError: the folder cannot be written or the disk is full; last.pth is as it was.
        """
        former = self._newest if self._newest != iteration else None
        if former is None or self.keep == 1:
            checkpoint.save(self.run.last, content)
        else:
            self._prune(self.keep - 2)
            if self._link_last(former):
                checkpoint.save(self.run.last, content)
            else:
                new = self.run.older(iteration)
                checkpoint.save(new, content)
                self._rename(self.run.last, self.run.older(former))
                self._rename(new, self.run.last)
        self._newest = iteration

    def read(self) -> tuple[Path, dict[str, Any]]:
        """The newest checkpoint that can be read: its path and content; no file is changed.

        A warning on stderr names those that could not be read.

        Raises:
            UserError: there is none.
        """
        damaged: dict[str, str] = {}
        for path in self.run.checkpoints():
            try:
                checkpoint.verify(path)
                content = checkpoint.read(path)
            except checkpoint.DamagedError as error:
                damaged[str(path)] = str(error)
                continue
            if path != self.run.last:
                lost = f"{' and '.join(damaged)} cannot be read" if damaged else (
                    f"{self.run.last} is missing")
                warn(f"{lost}: going on from the checkpoint before, {path}, which takes its "
                     "place")
            return path, content
        if not damaged:
            raise UserError(f"there is no file {self.run.last}: check the path")
        raise UserError(f"no checkpoint can be read ({'; '.join(damaged.values())}): put back a "
                        "copy of one, or begin anew with another name=...")

    def settle(self, path: Path, iteration: int) -> None:
        """Make the checkpoint that a run goes on from the newest one.

        It becomes last.pth in place of what could not be read. Checkpoints of its iteration or
        later ones are deleted: the training that they were of is repeated.

        Args:
            path: what :meth:`read` returned.
            iteration: the checkpoint's.

        Raises:
            UserError: the folder cannot be written.
        """
        if path != self.run.last:
            self._rename(path, self.run.last)
        later = [older for older in self.run.older_checkpoints()
                 if self.run.iteration_of(older) >= iteration]
        self._delete(later)
        self._prune(self.keep - 1)
        self._newest = iteration

    def _link_last(self, iteration: int) -> bool:
        """Give last.pth a second name; False on a file system without hard links."""
        older = self.run.older(iteration)
        try:
            older.unlink(missing_ok=True)
            os.link(self.run.last, older)
        except OSError:
            return False
        return True

    def _prune(self, keep: int) -> None:
        """Delete the oldest, but for so many beside last.pth."""
        self._delete(self.run.older_checkpoints()[keep:])

    def _rename(self, source: Path, target: Path) -> None:
        with writing(target):
            os.replace(source, target)

    def _delete(self, paths: list[Path]) -> None:
        with writing(self.run.path):
            for path in paths:
                path.unlink()
