"""Where a run puts what is about all its images, and whether that would be in the way."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from cosa.core.errors import UserError
from cosa.core.files import check_target
from cosa.inference.command_line import Options


def spare_inputs(options: Options, places: Sequence[Path], option: str) -> None:
    """Raise ``UserError`` if a file that the options name is one of the places, or below it.

    Args:
        places: files and folders that will be written.
        option: that asks for them, such as "--review".
    """
    for place in places:
        for name in ("weights", "labels", "colors", "evaluate"):
            given = getattr(options, name)
            if given and Path(os.path.realpath(given)).is_relative_to(os.path.realpath(place)):
                raise UserError(f"--{name} {given} would be overwritten by {option}: choose "
                                "another --output, or move it away")


def check_places(
    options: Options, files: Sequence[Path], option: str, is_own: Callable[[Path], bool]
) -> None:
    """Raise ``UserError`` if files cannot be written, or would replace what is not this program's.

    Args:
        files: that will be written; the first one tells whose they are.
        option: that asks for them.
        is_own: whether a file was written by this option.
    """
    spare_inputs(options, files, option)
    for file in files:
        check_target(file)
    there = next((file for file in files if file.exists()), None)
    if there is not None and not is_own(files[0]):
        raise UserError(f"{there} is there and was not written by {option}: move it away, or "
                        "choose another --output")
