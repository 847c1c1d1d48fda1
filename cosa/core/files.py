"""Files that are whole or not there, whatever interrupts the writing."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cosa.core.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

PROJECT_FOLDER = Path(__file__).resolve().parents[2]
"""Where train.py, configs/ and weights/ are."""

# What PyTorch's reader raises on files with flipped bits or a missing end, found by trying.
DAMAGE = (
    OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError,
    AssertionError, struct.error,
)
"""An error of these while a file of tensors is read says that it is damaged."""

TEMPORARY = ".cosa-{}.tmp"
"""Names of unfinished files: short, since the target's may be as long as the file system allows."""


class Replacement:
    """An unfinished file beside ``path``, in whose place ``commit`` puts it.

    It is locked as long as a program is at work on it, so that :func:`remove_leftovers` can tell
    what a killed one has left.

    Args:
        path: of the file that is to be; its folder must exist.

    Raises:
        OSError: the folder cannot be written.
        UserError: what is there is no regular file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        check_replaceable(self.path)
        self.temporary = self.path.with_name(TEMPORARY.format(uuid.uuid4().hex))
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        self.file: BinaryIO = os.fdopen(os.open(self.temporary, flags, 0o666), "w+b")
        if fcntl is not None:
            with suppress(OSError):  # Some network file systems have no locks.
                # Nobody holds it but one who sweeps up, for a moment.
                fcntl.flock(self.file, fcntl.LOCK_EX)

    def commit(self) -> None:
        """Put the file in its place; raises OSError if that fails.

        Its content is on the disk before it gets its name: else a power failure could leave an
        empty file that counts as finished. The name itself may be lost with the power: then the
        file is merely missing, and made again.
        """
        self.file.flush()
        # By name: another library may have written it through a handle of its own.
        with open(self.temporary, "rb+") as file:
            os.fsync(file.fileno())
        if fcntl is None:  # Windows renames no open file.
            self.file.close()
        os.replace(self.temporary, self.path)
        self.file.close()

    def discard(self) -> None:
        """Delete the file unless it is in its place."""
        with suppress(OSError):  # What could not be written is not wanted any more.
            self.file.close()
        self.temporary.unlink(missing_ok=True)


@contextmanager
def replacement(path: str | Path) -> Iterator[Replacement]:
    """A ``Replacement`` that is put in its place if the block ends without an exception.

    Raises:
        OSError: it cannot be written.
        UserError: what is there is no regular file.
    """
    new = Replacement(path)
    try:
        yield new
        new.commit()
    finally:
        new.discard()


@contextmanager
def atomic(path: str | Path) -> Iterator[BinaryIO]:
    """A file, open for writing, that becomes ``path`` if the block ends without an exception.

    Until then an older file stays as it is; after an exception nothing is left. The folder must
    exist.

    Raises:
        OSError: it cannot be written.
        UserError: what is there is no regular file.
    """
    with replacement(path) as new:
        yield new.file


@contextmanager
def replacing(path: str | Path) -> Iterator[str]:
    """Like ``atomic``, for writers that want a name; missing folders are made.

    Raises:
        UserError: the folder cannot be written, the disk is full, or what is there is no regular
            file.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacement(path) as new:
            yield str(new.temporary)


def write_atomically(path: str | Path, text: str) -> None:
    """Replace a file's content with UTF-8 text; see :func:`replacing`."""
    with replacing(path) as temporary:
        Path(temporary).write_bytes(text.encode())


def append(path: str | Path, text: str) -> None:
    """Add UTF-8 text to a file, all of it or nothing.

    Raises:
        UserError: the file cannot be written, or the disk is full.
    """
    with writing(path), open(path, "ab", buffering=0) as file:
        size, content = file.tell(), text.encode("utf-8")
        try:
            while content:
                content = content[file.write(content):]
        except OSError:
            file.truncate(size)
            raise


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """What is done in the block to a file or folder fails in one sentence.

    Raises:
        UserError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error} ({free_space(path)}); "
                        "check the folder's rights and the free space") from error


def free_space(path: str | Path) -> str:
    """A clause about the disk on which a file is, or would be."""
    free = shutil.disk_usage(existing(Path(path).absolute().parent)).free
    return f"{free / 2**20:.1f} MiB are free there"


def check_replaceable(path: str | Path) -> None:
    """Raise ``UserError`` if there is something at ``path`` that is no regular file."""
    with suppress(FileNotFoundError, NotADirectoryError):
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "a device, pipe or socket"
            raise UserError(f"cannot write {path}: it is {what}; choose another name")


def check_target(path: str | Path) -> None:
    """Tell, before the work that is to fill it, that a file could not be written.

    Raises:
        UserError: a folder or device has its name, or its folder neither is there nor can be
            made, or must not be written.
    """
    path = Path(path)
    check_replaceable(path)
    folder = existing(path.absolute().parent)
    if not folder.is_dir():
        raise UserError(f"cannot write {path}: {folder} is no folder; choose another name")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: {folder} must not be written by you; change its "
                        "rights, or choose another name")


def existing(path: Path) -> Path:
    """The path itself, or else the lowest one above it that is there; ``path`` is absolute."""
    return next(above for above in (path, *path.parents) if os.path.lexists(above))


class FolderLock:
    """Lets programs that work in one folder know of each other, without a file in it.

    It goes with the process, however that ends.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = folder
        self._descriptor: int | None = None

    def take(self, alone: bool) -> bool:
        """Hold the folder, together with others or alone; a lock held before is changed.

        Returns:
            False if another program is in the way; True also where there is no such folder yet,
            or nothing to lock it with, as on some network file systems and on Windows.
        """
        if fcntl is None:
            return True
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
            fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def release(self) -> None:
        """Let go of the folder, if it is held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def remove_leftovers(folder: str | Path, alone: bool = False) -> None:
    """Delete what killed programs left unfinished in a folder; nothing if it does not exist.

    Files that another program is at work on stay, and so does what cannot be deleted: they are
    in nobody's way, for no program of ours reads them.

    Args:
        alone: no other program writes into the folder, which a lock of the caller's ensures.
    """
    for path in Path(folder).glob(TEMPORARY.format("*")):
        with suppress(OSError):
            with open(path, "rb") as file:
                age = time.time() - os.fstat(file.fileno()).st_mtime
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an error: it is in use
            # A file of this moment may be about to get its lock.
            if alone or age > (24 * 3600 if fcntl is None else 1):
                path.unlink()
