"""What every table is stamped with: command, date, machine, and the revision of the program."""

from __future__ import annotations

import datetime
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cosa.benchmark.tables import code
from cosa.core.device import machine
from cosa.core.errors import UserError
from cosa.core.revision import Revision, revision
from cosa.core.text import shown

THREADS = "OMP_NUM_THREADS"
"""Part of a stamped command where it is set, as times depend on it."""


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
