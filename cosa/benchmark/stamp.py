"""What every table is stamped with: command, date, machine, and the revision of the program."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cosa.benchmark.tables import code
from cosa.core.errors import UserError
from cosa.core.files import PROJECT_FOLDER
from cosa.core.text import shown
from cosa.core.threads import core_count

THREADS = "OMP_NUM_THREADS"
"""Part of a stamped command where it is set, as times depend on it."""

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


@dataclass(frozen=True)
class Stamp:
    """What is known of a benchmark when it starts."""

    topic: str
    """Name of the benchmark, and of its section of the report."""
    command: str
    date: str
    revision: Revision
    report: str
    """The file that the table goes to."""

    def facts(self, device: torch.device) -> dict[str, str]:
        """``command``, ``date``, ``machine`` and ``revision``, for :func:`heading`."""
        return {"command": self.command, "date": self.date, "machine": machine(device),
                "revision": str(self.revision)}

    def require_unchanged(self) -> None:
        """See that the program still is what it was at the start.

        Raises:
            UserError: it is another one.
        """
        now = revision(self.report)
        if now != self.revision:
            raise UserError(
                f"the program was changed while the benchmark ran, from {self.revision.in_full()} "
                f"to {now.in_full()}, and a table is of one alone: undo the change and start the "
                "same command again, which keeps finished runs, or choose another --output"
            )


def begin(topic: str, arguments: Sequence[str] | None, report: str | Path) -> Stamp:
    """Note command, date and revision; to be called before anything is measured or written.

    Args:
        topic: name of the benchmark.
        arguments: its command line; None: that of this process.
        report: the file that the table will go to.

    Raises:
        UserError: see :func:`revision`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = shlex.join(["python", "-m", "cosa.benchmark", topic, *given])
    if THREADS in os.environ:
        command = f"{THREADS}={shlex.quote(os.environ[THREADS])} {command}"
    today = datetime.date.today().isoformat()
    return Stamp(topic, command, today, revision(report), str(report))


def heading(facts: Mapping[str, object], *details: str) -> str:
    """The first two paragraphs below a section's title: the command; the rest and ``details``."""
    told = [*(facts[key] for key in ("date", "machine", "revision")), *details]
    return f"{code(facts['command'])}\n\n{'; '.join(shown(item, None) for item in told)}."


def machine(device: torch.device) -> str:
    """Processor, number of cores, GPU if it is used, and PyTorch version."""
    parts = [f"{_processor()}, {core_count()} cores"]
    if device.type == "cuda":
        parts.append(torch.cuda.get_device_name(device))
    return ", ".join([*parts, f"PyTorch {torch.__version__}"])


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


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
