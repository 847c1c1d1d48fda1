"""Whether the file of the summary would be in the way of the run's other files."""

from __future__ import annotations

import os
from pathlib import Path

from cosa.core.errors import UserError
from cosa.inference.command_line import Options
from cosa.inference.exports import export_places
from cosa.inference.gallery import gallery_places
from cosa.inference.jobs import Plan, mask_name
from cosa.inference.record import CLASSES_FILE, MARKS_FILE
from cosa.inference.review import review_places


def check_json(options: Options, jobs: Plan) -> None:
    """Raise ``UserError`` if the summary would be in the way of another file or a folder.

    That is: replace one, or a true mask, or need one of that name.
    """
    if _is_taken(_real(options.json), options, jobs):
        raise UserError(f"--json {options.json} is the name of another file or folder of this "
                        "run, or below it: choose another")


def _is_taken(target: Path, options: Options, jobs: Plan) -> bool:
    output, above = Path(options.output), [target, *target.parents]
    files = [options.weights, options.labels, output / CLASSES_FILE, output / MARKS_FILE,
             options.colors, *export_places(options), *review_places(options),
             *gallery_places(options)]
    if options.evaluate and Path(options.evaluate).is_file():
        files.append(options.evaluate)
    if not {_real(file) for file in files if file}.isdisjoint(above):
        return True
    if any(jobs.overwritten(path.parent, [path.name]) for path in above):
        return True
    # Of a folder that is there already, Summary says what it is.
    if not target.is_dir() and any(_real(f).is_relative_to(target) for f in jobs.folders):
        return True
    if _below(jobs.root, target) in jobs.files:
        return True
    return bool(options.evaluate) and _below(options.evaluate, target) in map(mask_name, jobs.files)


def _below(folder: str | Path, path: Path) -> str | None:
    """The path from a folder to a real path, in "/" notation; None if it is not below."""
    folder = _real(folder)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else None


def _real(path: str | Path) -> Path:
    """The absolute path without symbolic links, which need not exist."""
    return Path(os.path.realpath(path))
