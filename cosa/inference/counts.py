"""How many images came to which end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from cosa.core import distributed
from cosa.core.errors import UserError
from cosa.inference.outcome import Outcome


@dataclass
class Counts:
    """What became of the images so far."""

    done: int = 0
    skipped: int = 0
    failed: int = 0
    unscored: int = 0
    empty: int = 0
    """Of those done, masks of the background alone."""
    stale: int = 0
    """Images that failed and whose files are those of an earlier run."""
    failures: dict[str, str] = field(default_factory=dict)
    """Names of the images that failed, and why."""
    interrupted: bool = False
    started: float = field(default_factory=time.perf_counter)

    def add(self, outcome: Outcome, unscored: UserError | None) -> None:
        """Count an image; ``unscored`` is why it has no part in the scores."""
        if outcome.error is not None:
            self.failed += 1
            self.failures[outcome.job.name] = str(outcome.error)
            self.stale += any(map(os.path.exists, outcome.job.results.values()))
        elif outcome.skipped:
            self.skipped += 1
        else:
            self.done += 1
            self.empty += bool(outcome.empty)
        self.unscored += unscored is not None

    @contextmanager
    def until_interrupted(self) -> Iterator[None]:
        """A ``KeyboardInterrupt`` ends this block and no more; ``interrupted`` tells."""
        try:
            yield
        except KeyboardInterrupt:
            self.interrupted = True

    def add_up(self) -> None:
        """Add what became of the other processes' images; one interrupted interrupts all."""
        every = [asdict(counts) for counts in distributed.gather(self)]
        for name in ("done", "skipped", "failed", "unscored", "empty", "stale"):
            setattr(self, name, sum(counts[name] for counts in every))
        self.failures = {name: why for counts in every for name, why in counts["failures"].items()}
        self.interrupted = any(counts["interrupted"] for counts in every)

    def report(self) -> dict[str, Any]:
        """For the summary."""
        counts = asdict(self)
        del counts["stale"], counts["empty"], counts["failures"]
        seconds = time.perf_counter() - counts.pop("started")
        return {
            **counts,
            "seconds": round(seconds, 3),
            "images_per_second": round(self.done / seconds, 3),
        }

    def line(self) -> str:
        """For the terminal."""
        unscored = f", {self.unscored} not scored" if self.unscored else ""
        rate = self.done / (time.perf_counter() - self.started)
        return (
            f"{self.done} done ({rate:.2f} images/s), {self.skipped} skipped (already there), "
            f"{self.failed} failed{unscored}"
        )
