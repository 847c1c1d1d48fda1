"""Files that are whole or not there, whatever interrupts the writing."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cosa.errors import UserError

_TEMPORARY = re.compile(r"\.(.+\.[a-z0-9_]{8}|[0-9a-f]{32})\.tmp")
"""Names that :func:`replacing` yields, and ``cosa.palette.save_image`` writes to."""


@contextmanager
def replacing(path: str | Path) -> Iterator[str]:
    """The name of a temporary file that becomes ``path`` if the block ends without an exception.

    Missing folders are made. Until the end an older file stays as it is; after an exception the
    temporary file is deleted.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(".tmp", f".{path.name}.", path.parent)
        os.close(handle)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes files private; this one is to be as readable as any other.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
        temporary = ""
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; check the folder's "
                        "rights and the free space") from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def remove_leftovers(folder: str | Path) -> None:
    """Delete the temporary files that a killed program left in a folder, if there is one.

    To be called only while no other program writes there.

    Raises:
        UserError: one cannot be deleted.
    """
    for path in sorted(Path(folder).glob(".*.tmp")):
        if _TEMPORARY.fullmatch(path.name):
            try:
                path.unlink()
            except OSError as error:
                raise UserError(f"cannot delete {path}, which an interrupted program left: "
                                f"{error.strerror}; check the folder's rights") from error


def write_atomically(path: str | Path, text: str) -> None:
    """Replace a file's content with UTF-8 text; see :func:`replacing`."""
    with replacing(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")
