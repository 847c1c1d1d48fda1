"""The JSON file about a run, written image by image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cosa.core import distributed
from cosa.core.errors import UserError
from cosa.core.files import Replacement, check_target, remove_leftovers, writing
from cosa.core.numbers import without_nan
from cosa.inference.outcome import Outcome

_HEAD = '{"images": [\n'


class Summary:
    """A JSON file that ``finish`` puts in its place; without it there is none.

    It holds ``images``, a list with one line for each image, and ``run``. Only the current image
    is in memory. Of several processes, each writes a file with its own images first.

    Args:
        path: of the file.
        classes: the C foreground classes of the weights.

    Raises:
        UserError: on entering, or later, if the file cannot be written, or would replace one that
            is no such summary.
    """

    def __init__(self, path: str | Path, classes: Sequence[str]) -> None:
        self.path, self.names = Path(path), ("background", *classes)

    def __enter__(self) -> Summary:
        check_target(self.path)
        with writing(self.path):
            self._check_old()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # One process alone: it could take another's new file for a leftover.
            distributed.from_main(lambda: remove_leftovers(self.path.parent))
            self._new = Replacement(self.path)
        self._write(_HEAD)
        return self

    def add(self, outcome: Outcome, unscored: UserError | None = None) -> None:
        """Note an image; ``unscored`` is why it has no part in the scores."""
        entry: dict[str, Any] = {"path": outcome.job.name}
        if outcome.size is not None:
            entry["size"] = [outcome.size[1], outcome.size[0]]
        if outcome.found is not None:
            entry["classes"] = [
                {
                    "index": found.label,
                    "name": self.names[found.label],
                    "share": round(found.share, 6),
                    "probability": found.probability and round(found.probability, 6),
                }
                for found in outcome.found
            ]
        if outcome.certainty is not None:
            entry["certainty"] = round(outcome.certainty, 6)
        entry["seconds"] = None if outcome.skipped else round(outcome.seconds, 6)
        entry["skipped"] = outcome.skipped
        entry["error"] = None if outcome.error is None else str(outcome.error)
        if unscored is not None:
            entry["unscored"] = str(unscored)
        self._write(_json(entry), separator=",\n")

    def finish(self, run: dict[str, Any]) -> None:
        """Add the images of the other processes and the whole run, and put the file in its place.

        All processes come here; what the first one says of the run counts.
        """
        with writing(self.path):
            self._new.file.flush()
            parts = distributed.gather(str(self._new.temporary))
            if distributed.is_main():
                for part in parts[1:]:
                    self._append(part)
                self._write(f'\n],\n"run": {_json(run)}}}\n')
                self._new.commit()
        distributed.barrier()  # until now the others keep their files

    def _append(self, part: str) -> None:
        """Add the images in another process's file."""
        with open(part, encoding="ascii") as lines:
            lines.readline()  # the head
            for line in lines:
                self._write(line.rstrip(",\n"), separator=",\n")

    def __exit__(self, *error: Any) -> None:
        self._new.discard()

    def _check_old(self) -> None:
        """A slip of the keyboard must not cost a photograph, or a file of annotations."""
        if self.path.exists():
            with open(self.path, "rb") as file:
                start = file.read(len(_HEAD))
            if start and start != _HEAD.encode():
                raise UserError(f"--json {self.path} is there and no summary of this program: "
                                "choose another name, or delete it")

    def _write(self, text: str, separator: str = "") -> None:
        """Write a text, and before it the separator unless it is the first item."""
        with writing(self.path):
            # The file itself tells what it holds, whenever Ctrl-C came.
            first = self._new.file.tell() <= len(_HEAD)
            self._new.file.write((text if first else separator + text).encode("ascii"))


def _json(content: dict[str, Any]) -> str:
    return json.dumps(without_nan(content), allow_nan=False)
