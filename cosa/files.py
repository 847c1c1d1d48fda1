"""Files that are whole or not there, whatever interrupts the writing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cosa.errors import UserError


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
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
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


def write_atomically(path: str | Path, text: str) -> None:
    """Replace a file's content with UTF-8 text; see :func:`replacing`."""
    with replacing(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")
