"""All files below a folder, or those that fit a pattern; what cannot be searched is told."""

from __future__ import annotations

import errno
import fnmatch
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from cosa.core.errors import UserError


def is_pattern(part: str) -> bool:
    """Whether a part of a path holds wildcards."""
    return any(wildcard in part for wildcard in "*?[")


def is_regular(path: Path) -> bool:
    """Whether there is a file, as far as anyone can tell."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        # Of a link that leads nowhere, or to where nobody may look, the image fails: that is
        # better than to be left out in silence.
        return True


def matching(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """All that is below a folder and fits a pattern, given in its parts; some twice.

    Hidden names fit no wildcard. ``**`` stands for any subfolders, of which linked ones are
    followed, each once.

    Raises:
        UserError: a folder cannot be searched, of which ``glob`` says nothing.
    """
    part, *rest = parts
    if part == "**":
        for here, names in _folders(folder):
            if rest:
                yield from matching(here, rest)
            else:
                yield from (here / name for name in names)
        return
    if is_pattern(part):
        names = fnmatch.filter(_names(folder), part)
    else:
        names = [part] if _is_there(folder / part) else []
    for path in map(folder.joinpath, names):
        if not rest:
            yield path
        elif path.is_dir():
            yield from matching(path, rest)


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        _cannot_search(error)


def _is_there(path: Path) -> bool:
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EIO, errno.ESTALE):
            _cannot_search(OSError(error.errno, error.strerror, str(path.parent)))
        return False
    return True


def walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, but those of hidden folders.

    Raises:
        UserError: a folder cannot be searched.
    """
    for here, names in _folders(folder):
        yield from (here / name for name in names)


def _folders(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """A folder and all below it that are not hidden, each with the names of its files.

    Linked folders too, each once, lest a circle never ends.
    """
    seen = set()
    for here, subfolders, names in os.walk(folder, onerror=_cannot_search, followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield Path(here), names


def _cannot_search(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename} cannot be searched: {error.strerror}; change its rights, or "
                    "leave it out") from error
