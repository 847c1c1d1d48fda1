"""Which state of the program runs: a commit, and what differs from it."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cosa.core.errors import UserError
from cosa.core.files import PROJECT_FOLDER

_SHOWN = 10  # digits of a commit
_DOCUMENTS = (":(exclude,top)docs", ":(exclude,top,glob)**/*.md")
_LOCATIONS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # would point git elsewhere


@dataclass(frozen=True)
class Revision:
    """A state of the program: what equal revisions make is comparable."""

    commit: str
    """Of git, in hexadecimal digits; "" where git does not tell."""
    changes: str
    """SHA-256 of what differs from the commit, "" if nothing does; without a commit of the code."""

    def __str__(self) -> str:
        if not self.commit:
            return f"code {self.changes[:_SHOWN]}"
        return f"revision {self.commit[:_SHOWN]}" + (" (modified)" if self.changes else "")

    def in_full(self) -> str:
        """Words that tell it from every other revision, modified ones included."""
        modified = self.commit and self.changes
        return f"{self} [{self.changes[:_SHOWN]}]" if modified else str(self)


def revision(report: str | Path, folder: Path = PROJECT_FOLDER) -> Revision:
    """The present state of the program.

    Tracked files of any kind count, and untracked ones of Python that git does not ignore. What
    benchmarks write does not: neither the report file, nor run folders, nor other documents
    (docs/ and Markdown). So a table does not make the program "modified" for the next one.

    Args:
        report: the file that the table goes to.
        folder: of the program; no part of a checkout is known where it is not the top of one.

    Raises:
        UserError: git knows the commit, but not what has changed since.
    """
    try:
        if _git(folder, "rev-parse", "--show-cdup").strip():
            return Revision("", _digest_of_code(folder))
        commit = _git(folder, "rev-parse", "HEAD").decode().strip()
    except (OSError, subprocess.CalledProcessError):
        return Revision("", _digest_of_code(folder))
    left_out = [*_DOCUMENTS]
    path = Path(report).resolve()
    if path.is_relative_to(folder.resolve()):
        name = path.relative_to(folder.resolve()).as_posix()
        left_out.append(f":(exclude,top,literal){name}")
    try:
        changed = _git(folder, "diff", "HEAD", "--binary", "--no-color", "--no-ext-diff",
                       "--no-textconv", "--", ".", *left_out)
        added = _git(folder, "ls-files", "--others", "--exclude-standard", "-z", "--",
                     ":(glob)**/*.py", *left_out)
    except subprocess.CalledProcessError as error:
        reason = os.fsdecode(error.stderr).strip()
        raise UserError(f"git cannot tell what has changed in {folder} ({reason}): mend that "
                        "first, as tables name the revision of the program") from error
    if not changed and not added:
        return Revision(commit, "")
    names = [os.fsdecode(name) for name in added.split(b"\0") if name]
    return Revision(commit, _digest(changed, folder, names))


def _git(folder: Path, *arguments: str) -> bytes:
    environment = {key: value for key, value in os.environ.items() if key not in _LOCATIONS}
    environment["GIT_OPTIONAL_LOCKS"] = "0"  # a look must not hold up who works there
    done = subprocess.run(["git", *arguments], cwd=folder, env=environment, check=True,
                          stdin=subprocess.DEVNULL, capture_output=True)
    return done.stdout


def _digest_of_code(folder: Path) -> str:
    code = [*folder.glob("*.py"), *(folder / "cosa").rglob("*.py")]
    return _digest(b"", folder, [path.relative_to(folder).as_posix() for path in code])


def _digest(changed: bytes, folder: Path, names: Iterable[str]) -> str:
    digest = hashlib.sha256(changed)
    for name in sorted(names):
        path = folder / name
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"\0{name}\0{len(content)}\0".encode("utf-8", "surrogateescape") + content)
    return digest.hexdigest()
