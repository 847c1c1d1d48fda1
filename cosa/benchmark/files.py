"""Text files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

from cosa.errors import UserError


def write_atomically(path: str | Path, text: str) -> None:
    """Replace a file's content; until then the old one stays.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}; check the folder's rights and "
                        "the free space") from error
