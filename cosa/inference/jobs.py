"""Which images there are, and which files each of them becomes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cosa.core import distributed
from cosa.core.errors import UserError
from cosa.data.images import IMAGE_SUFFIXES, hidden
from cosa.inference.kinds import KINDS, SHEET
from cosa.inference.search import is_pattern, is_regular, matching, walk


class CannotGoOn(UserError):
    """Every further job would fail in the same way."""


@dataclass(frozen=True)
class Job:
    """One image and the files that it becomes."""

    name: str
    """Path of the image below the folder that is searched, in "/" notation."""
    source: Path
    results: dict[str, Path]
    """Keys of ``KINDS``, in its order."""

    @property
    def finished(self) -> bool:
        """Whether all its files are there and hold something.

        An empty file has lost its content with the power, or was never one of ours.
        """
        # Of os.path, which takes a name that no file can have for one that is not there.
        paths = self.results.values()
        return all(os.path.isfile(path) and os.path.getsize(path) > 0 for path in paths)


@dataclass(frozen=True)
class Plan(Sequence[Job]):
    """Jobs that are made when they are asked for: of each only the image's path is kept."""

    root: Path
    output: Path
    save: tuple[str, ...]
    """Keys of ``KINDS``, in its order."""
    files: list[str]
    """Paths of the images below ``root``, sorted, in "/" notation."""
    masks: Path | None = None
    """Folder of the true masks, if there is one."""

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Job:
        file = self.files[index]
        paths = (self.output / name for name in self.results(file))
        return Job(file, self.root / file, dict(zip(self.save, paths, strict=True)))

    def results(self, file: str) -> list[str]:
        """Paths below ``output`` of what becomes of an image."""
        stem = os.path.splitext(file)[0]
        return [stem + KINDS[kind].suffix for kind in self.save]

    @property
    def folders(self) -> set[Path]:
        """Where results go, ``output`` itself included."""
        return {self.output / folder for folder in {"", *map(os.path.dirname, self.files)}}

    def present(self) -> tuple[dict[str, Path], dict[str, Path]]:
        """What ``output`` holds: by kind, a file of these jobs, and one that is of none of them.

        A file's kind is that of its ending, whoever made it. Images and true masks in folders
        below ``output`` do not count.

        Raises:
            UserError: a folder cannot be searched.
        """
        own: dict[str, Path] = {}
        others: dict[str, Path] = {}
        if not self.output.is_dir():
            return own, others
        stems = {os.path.splitext(file)[0] for file in self.files}
        output = Path(os.path.realpath(self.output))
        sources = [Path(os.path.realpath(source)) for source in (self.root, self.masks) if source]
        left_out = tuple(f"{source.relative_to(output).as_posix()}/" for source in sources
                         if output in source.parents)
        for path in walk(self.output):
            if not path.name.endswith((".png", ".npz")):
                continue
            name = path.relative_to(self.output).as_posix()
            kind = next((k for k in self.save if name.removesuffix(KINDS[k].suffix) in stems
                         and name.endswith(KINDS[k].suffix)), None)
            if kind is not None:
                own.setdefault(kind, path)
            elif name != SHEET and not name.startswith(left_out):
                # Masks have the shortest ending, which others end in, too.
                endings = (k for k in reversed(KINDS) if name.endswith(KINDS[k].suffix))
                kind = next(endings, None)
                if kind is not None:
                    others.setdefault(kind, path)
            if others.keys() >= set(self.save):
                break
        return own, others

    def part(self, places: slice) -> Plan:
        """Neighbouring jobs."""
        return replace(self, files=self.files[places])

    def only(self, chosen: Iterable[bool]) -> Plan:
        """The part for which ``chosen``, of one value per image, is true."""
        kept = [file for file, keep in zip(self.files, chosen, strict=True) if keep]
        return replace(self, files=kept)

    def overwritten(self, folder: str | Path, files: Iterable[str]) -> str | None:
        """The first of the paths ``files`` below ``folder`` that a result would replace."""
        folder, output = Path(os.path.realpath(folder)), Path(os.path.realpath(self.output))
        if not folder.is_relative_to(output):
            return None
        below = folder.relative_to(output)
        written = {name for file in self.files for name in self.results(file)}
        return next((file for file in files if (below / file).as_posix() in written), None)


def plan(
    source: str,
    output: str | os.PathLike[str],
    save: Iterable[str] = ("mask",),
    masks: str | os.PathLike[str] | None = None,
) -> Plan:
    """Find the images of ``source`` and name their outputs.

    Outputs keep the relative path and stem: ``output/a/b.png`` is the mask of ``a/b.jpg``, the
    others have the endings of ``KINDS``. In folders and globs, hidden files, files without
    the suffix of an image and everything inside ``output`` or ``masks`` are left out; links to
    folders are followed.

    Args:
        source: a folder (searched with its subfolders), a file, or a glob, where ``**`` stands
            for any subfolders and relative paths start at the first part with a wildcard.
        output: folder of the outputs; it need not exist.
        save: keys of ``KINDS``.
        masks: folder of the true masks, named like the masks of ``output``, if there is one.

    Returns:
        The jobs, sorted by path.

    Raises:
        UserError: no image there, a folder that cannot be searched, two files would become one,
            or an image or a true mask would be overwritten.
    """
    folders = [Path(output)] if masks is None else [Path(output), Path(masks)]
    root, files = _find(source, folders)
    if not files:
        known = " ".join(sorted(IMAGE_SUFFIXES))
        none = "none of its files" if root == Path(source) else "no file that fits this pattern"
        raise UserError(f"there is no image in {source}: {none} ends in {known}; check the path")
    save = set(save)
    jobs = Plan(root, Path(output), tuple(kind for kind in KINDS if kind in save), files,
                None if masks is None else Path(masks))
    _check_collisions(jobs)
    image = jobs.overwritten(root, files)
    if image is not None:
        raise UserError(f"{root / image} would be overwritten: choose another --output")
    truth = masks and jobs.overwritten(masks, map(mask_name, files))
    if truth:
        raise UserError(f"{Path(masks, truth)} would be overwritten: choose another --output")
    return jobs


def mask_name(image: str) -> str:
    """The path of an image's true mask below the folder of the masks."""
    return os.path.splitext(image)[0] + ".png"


def share(finished: Sequence[bool]) -> slice:
    """This process's part of the jobs: neighbours, with as much to do as in any other's part.

    Args:
        finished: for each job, whether it is.
    """
    # A finished job costs no more than a look at its mask.
    done = np.cumsum(np.where(finished, 0.01, 1.0))
    shares = np.arange(1, distributed.world()) / distributed.world()
    bounds = [0, *np.searchsorted(done, shares * done[-1]).tolist(), len(finished)]
    return slice(bounds[distributed.rank()], bounds[distributed.rank() + 1])


def _check_collisions(jobs: Plan) -> None:
    written = set()
    for file in jobs.files:
        for name in jobs.results(file):
            if name in written:
                first = next(other for other in jobs.files if name in jobs.results(other))
                raise UserError(
                    f"{jobs.root / first} and {jobs.root / file} would both become "
                    f"{jobs.output / name}: rename one of them"
                )
            written.add(name)


def _find(source: str, left_out: Sequence[Path]) -> tuple[Path, list[str]]:
    """The folder that relative paths start from, and the images' relative paths, sorted.

    The first of the folders ``left_out`` is the output.
    """
    path = Path(source)
    if path.is_file():
        return path.parent, [path.name]
    if path.is_dir():
        root, found = path, walk(path)
    elif any(is_pattern(part) for part in path.parts):
        first = next(i for i, part in enumerate(path.parts) if is_pattern(part))
        root = Path(*path.parts[:first])
        if not root.is_dir():
            raise UserError(f"there is no image in {source}: {root} is no folder; check the "
                            "path")
        # A slash at the end asks for folders, which are no images.
        ending = ("",) if source.endswith(("/", os.sep)) else ()
        found = matching(root, path.parts[first:] + ending)
    else:
        raise UserError(f"{source} does not exist: give a folder, an image or a quoted glob")
    real_root = Path(os.path.realpath(root))
    real = [Path(os.path.realpath(folder)) for folder in left_out]
    if real[0] == real_root:
        raise UserError(f"{left_out[0]} holds the images themselves: choose another --output")
    # What an earlier run wrote, or the true masks, where they lie among the images.
    inside = {folder.relative_to(real_root) for folder in real if real_root in folder.parents}
    files = set()
    for match in found:
        file = match.relative_to(root)
        is_image = file.suffix.lower() in IMAGE_SUFFIXES and not hidden(file)
        if is_image and not inside.intersection(file.parents) and is_regular(match):
            files.add(file.as_posix())
    return root, sorted(files)
