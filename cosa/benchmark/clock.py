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
            moment.record()
        else:
            moment = time.perf_counter()
        self._marks.append((phase, moment))

    def seconds(self) -> dict[str, float]:
        """Phase -> median seconds over its repetitions; what ends at the first mark is left out."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        spent: dict[str, list[float]] = {}
        for (_, before), (phase, now) in zip(self._marks, self._marks[1:], strict=False):
            passed = before.elapsed_time(now) / 1e3 if self.device.type == "cuda" else now - before
            spent.setdefault(phase, []).append(passed)
        return {phase: statistics.median(values) for phase, values in spent.items()}
