"""What tells in the output folder where its files come from."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from cosa.checkpoint import TrainedNetwork
from cosa.core import distributed
from cosa.core.declared import Misfit, check
from cosa.core.errors import UserError
from cosa.core.files import FolderLock, existing, write_atomically
from cosa.core.foreign import parse_json, read_bytes
from cosa.encoders.normalization import IMAGENET
from cosa.inference.jobs import Plan
from cosa.inference.kinds import KINDS
from cosa.inference.settings import Settings

CLASSES_FILE = "classes.csv"
MARKS_FILE = ".cosa.json"
"""The names of the two files of a record."""

SEVERAL = {"weights_sha256": "several"}
"""The mark of files that are being overwritten: some are of other weights or settings."""

Mark = dict[str, Any]


class Record:
    """Weights and settings of the files in an output folder.

    ``classes.csv`` lists index, name, red, green and blue of the classes. ``.cosa.json`` holds,
    for each kind of file, a digest of the weights and the settings, so that results that do not
    belong together are not mixed unnoticed. Nor are those of two runs at the same time: in the
    ``with`` block, other runs must not write into the folder; from ``start`` on, they must not
    read it either.

    Raises:
        UserError: on entering, if another run writes into the folder.
    """

    def __init__(
        self, folder: Path, network: TrainedNetwork, settings: Settings, save: Iterable[str]
    ) -> None:
        self.folder = folder
        self.classes, self.digest = classes_table(network), weights_digest(network)
        marks = {kind: {"weights_sha256": self.digest, **settings.of(kind)} for kind in save}
        self.new: dict[str, Mark] = json.loads(json.dumps(marks))  # as they will be read
        self.old: dict[str, Mark] = {}
        self.strange: dict[str, Path] = {}
        """By kind, a file of which no mark tells where it comes from."""
        self.others: dict[str, Path] = {}
        """By kind, a file of which these jobs make none, where that matters."""
        self._seen: tuple[str | None, ...] = ()
        """What the record's files held when ``begin`` read them."""
        self._lock = FolderLock(folder)

    def __enter__(self) -> Record:
        distributed.from_main(lambda: self._hold(alone=False))
        return self

    def __exit__(self, *error: Any) -> None:
        self._lock.release()

    def begin(self, overwrite: bool, jobs: Plan) -> None:
        """Look at what is there; writes nothing.

        Raises:
            UserError: files in the folder were made otherwise, or nothing tells how, and are not
                to be overwritten.
        """
        self._seen = self._content()
        classes, self.old = self._seen[0], self._marks(self._seen[1])
        other_classes = classes not in (None, self.classes)
        if other_classes or any(self.old.get(kind) != self.new[kind] for kind in self.new):
            own, self.others = distributed.from_main(jobs.present)
            there = self.others | own
            # A mark of files that are not there says nothing: its run has made none.
            self.old = {k: mark for k, mark in self.old.items() if k in there or k not in self.new}
            self.strange = {k: there[k] for k in self.new if k in there and k not in self.old}
            other_classes = other_classes and bool(there)
        if overwrite:
            return
        if other_classes:
            raise self._refusal(KINDS[next(iter(there))].plural, "weights")
        for kind in self.new:
            differing = self._differing(kind)
            if self.old.get(kind) == SEVERAL:
                other = self.others.get(kind)
                hint = "" if other is None else f" (also of other images, such as {other})"
                raise self._refusal(KINDS[kind].plural, f"weights or settings{hint}")
            if "weights_sha256" in differing:
                raise self._refusal(KINDS[kind].plural, "weights")
            if differing:
                named = ", ".join(sorted(differing))
                both = self.old[kind].get("labels") and self.new[kind]["labels"]
                if differing == {"labels"} and both:
                    named = "labels: another file, or the file has changed"
                raise self._refusal(KINDS[kind].plural, f"settings ({named})")
            if kind in self.strange:
                raise UserError(
                    f"{self.folder} holds {KINDS[kind].plural} of unknown origin, such as "
                    f"{self.strange[kind]}: --overwrite or another --output"
                )

    def start(self) -> None:
        """Note what is about to be written.

        Until all files made otherwise are overwritten, the folder holds files of both kinds.

        Raises:
            UserError: another run is at work in the folder, or has been since ``begin``; or it
                cannot be written.
        """
        with suppress(OSError):  # what is wrong with it, writing tells
            self.folder.mkdir(parents=True, exist_ok=True)
        self._hold(alone=True)
        if self._content() != self._seen:
            raise UserError(f"another run of infer.py has written into {self.folder} meanwhile: "
                            "start again")
        self._write({**self.old, **self.new, **dict.fromkeys(self._changing(), SEVERAL)})

    def end(self) -> None:
        """Note what the files are of, now that those of these jobs are all made.

        Where a kind's files were made otherwise, those of other images still are.
        """
        mixed = [kind for kind in self._changing() if kind in self.others]
        self._write({**self.old, **self.new, **dict.fromkeys(mixed, SEVERAL)})

    def _hold(self, alone: bool) -> None:
        above = existing(self.folder.absolute())
        if not above.is_dir():
            raise UserError(f"--output {self.folder}: cannot write there, since {above} is no "
                            "folder; choose another")
        if not self._lock.take(alone):
            raise UserError(f"another run of infer.py is at work in {self.folder}: wait until it "
                            "ends, or choose another --output")

    def _changing(self) -> list[str]:
        """Kinds of which there were files of other, or unknown, weights or settings."""
        return [kind for kind in self.new if self._differing(kind) or kind in self.strange]

    def _differing(self, kind: str) -> set[str]:
        """Names of the settings in which the files there differ from the new ones."""
        old, new = self.old.get(kind, {}), self.new[kind]
        return {key for key in old if old[key] != new.get(key)} | {
            # A record without any settings is of a version that had none to choose from.
            key for key in new if key not in old and len(old) > 1
        }

    def _refusal(self, what: str, otherwise: str) -> UserError:
        return UserError(
            f"{self.folder} holds {what} made with other {otherwise}: --overwrite or another "
            "--output"
        )

    def _content(self) -> tuple[str | None, str | None]:
        return self._read(CLASSES_FILE), self._read(MARKS_FILE)

    def _marks(self, text: str | None) -> dict[str, Mark]:
        if text is None:
            return {}
        try:
            marks = parse_json(text, MARKS_FILE, dict[str, Any])
            if "weights_sha256" in marks:
                # So the record was when there were but these kinds.
                return {kind: marks for kind in ("mask", "overlay")}
            check(dict[str, dict[str, Any]], marks)
            return marks
        except (UserError, Misfit):
            # Whatever it was, it cannot vouch for the files.
            return dict.fromkeys(KINDS, SEVERAL)

    def _read(self, name: str) -> str | None:
        path = self.folder / name
        return read_bytes(path, "it").decode(errors="replace") if path.exists() else None

    def _write(self, marks: dict[str, Mark]) -> None:
        write_atomically(self.folder / CLASSES_FILE, self.classes)
        write_atomically(self.folder / MARKS_FILE, json.dumps(marks) + "\n")


def classes_table(network: TrainedNetwork) -> str:
    """The content of classes.csv; of a class name that is no Unicode, an escape stands for it."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(["index", "name", "red", "green", "blue"])
    rows = zip(("background", *network.classes), network.palette, strict=True)
    table.writerows([index, name, *color] for index, (name, color) in enumerate(rows))
    return text.getvalue().encode(errors="backslashreplace").decode()


def weights_digest(network: TrainedNetwork) -> str:
    """SHA-256 of all tensors, whichever kind of file they come from.

    ImageNet's normalisation adds nothing: when it was the only one, no file held it, and results
    of that time are still known by their digest.
    """
    digest, state = hashlib.sha256(), network.state_dict()
    mean, std = (state[name].flatten().cpu() for name in ("mean", "std"))
    if torch.equal(torch.stack([mean, std]), torch.tensor(IMAGENET)):
        del state["mean"], state["std"]
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
