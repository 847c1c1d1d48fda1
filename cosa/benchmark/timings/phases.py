"""Time between marks, on the device's own clock."""

from __future__ import annotations

import statistics
import time

import torch


class PhaseClock:
    """Times the phases of a repeated piece of work by marks at their ends.

    On CUDA the marks are events in the stream: the host does not wait for them, so what is
    timed runs as it does without them. A phase that the device waits for, such as the loading of
    images, counts with the time of waiting.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[tuple[str, torch.cuda.Event | float]] = []

    def mark(self, phase: str) -> None:
        """End a phase, and begin the next."""
        if self.device.type == "cuda":
            moment = torch.cuda.Event(enable_timing=True)
            moment.record(torch.cuda.current_stream(self.device))
        else:
            moment = time.perf_counter()
        self._marks.append((phase, moment))

    def seconds(self) -> dict[str, float]:
        """Phase -> median seconds over the repetitions, of which the last phase is the end.

        A phase that occurs several times in one counts as a whole. What ends at the first mark is
        left out.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        spent: dict[str, list[float]] = {}
        whole: dict[str, float] = {}
        for (_, before), (phase, now) in zip(self._marks, self._marks[1:], strict=False):
            passed = before.elapsed_time(now) / 1e3 if self.device.type == "cuda" else now - before
            whole[phase] = whole.get(phase, 0.0) + passed
            if phase == self._marks[-1][0]:
                for name, seconds in whole.items():
                    spent.setdefault(name, []).append(seconds)
                whole = {}
        return {phase: statistics.median(values) for phase, values in spent.items()}
