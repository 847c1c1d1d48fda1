"""Writing the pages, and keeping that of a training up to date."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from cosa.core.distributed import main_only
from cosa.core.errors import UserError, one_line
from cosa.core.files import write_atomically
from cosa.core.terminal import note, warn
from cosa.report.charts import available, require
from cosa.report.comparison import comparison_page
from cosa.report.reading import read_run
from cosa.report.run_page import run_page


def write_report(folder: str | Path, path: str | Path | None = None) -> Path:
    """Write the report of the run in a folder; return its path, by default report.html there.

    Raises:
        UserError: matplotlib is missing, there is no run, or the file cannot be written.
    """
    require()
    run = read_run(folder)
    path = run.folder.report if path is None else Path(path)
    write_atomically(path, run_page(run))
    return path


def write_comparison(folders: Sequence[str | Path], path: str | Path) -> Path:
    """Write a page that compares the runs in these folders; return its path.

    Raises:
        UserError: see :func:`write_report`.
    """
    require()
    write_atomically(path, comparison_page([read_run(folder) for folder in folders]))
    return Path(path)


@cache
def _tell_missing(folder: Path) -> None:
    """Say once how to get the report of a run."""
    note(f"report.html is not written, which needs the package matplotlib: pip install matplotlib, "
         f"then python -m cosa.report {folder}")


@main_only
def keep_up(folder: Path) -> None:
    """Write the report of a training that goes on, whatever is wrong with the report."""
    if not available():
        _tell_missing(folder)
        return
    try:
        write_report(folder)
    except UserError as error:
        warn(f"report.html is not written: {error}")
    except Exception as error:  # a training of days must not end for a picture of it
        kind = type(error).__name__
        warn(f"report.html is not written ({kind}: {one_line(error, 200)}); the training goes on, "
             f"and python -m cosa.report {folder} says more")
