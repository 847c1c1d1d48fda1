"""A program that starts infer.py with signals to come, and with output that nobody reads.

    python tests/helpers/outside.py < JOBS

JOBS is a JSON list of objects with "arguments"; "await", a file before which no signal is sent;
"signals", a list of [seconds to wait, number]; "dies", a file before which, whole as it is, gets
its name the run kills itself; "stdout" and "stderr": "kept", "closed", "gone" (a pipe without a
reader) or "full" (a disk). Prints a JSON list: "code", negative for a signal, "out" and "err".

Importing PyTorch takes seconds, so it happens once, here; each run is a fork of this process,
which itself computes nothing. Only the start of the interpreter is left out.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import infer  # noqa: E402
from cosa.core.errors import run_program  # noqa: E402


def open_as(kind: str, number: int, kept: int) -> None:
    """Let a standard stream be what a shell can make of it."""
    if kind == "closed":
        os.close(number)
    elif kind == "gone":
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, number)
    else:
        os.dup2(os.open("/dev/full", os.O_WRONLY) if kind == "full" else kept, number)


def start(job: dict) -> dict:
    """Run infer.py once; how it ended and what it printed."""
    streams = ("stdout", "stderr")
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            sys.argv = ["infer.py", *job["arguments"]]
            if "dies" in job:
                sys.addaudithook(lambda event, values: die(event, values, job["dies"]))
            for number, (name, file) in enumerate(zip(streams, (out, err), strict=True), start=1):
                open_as(job.get(name, "kept"), number, file.fileno())
            sys.stdout = None if job.get("stdout") == "closed" else sys.stdout
            sys.stderr = None if job.get("stderr") == "closed" else sys.stderr
            run_program(infer.program)
        code = send(child, job)
        printed = []
        for file in (out, err):
            file.seek(0)
            printed.append(file.read().decode())
    return {"code": code, "out": printed[0], "err": printed[1]}


def die(event: str, values: tuple, path: str) -> None:
    """As if another process had sent it; nothing of Python runs any more."""
    if event == "os.rename" and str(values[1]) == path:
        os.kill(os.getpid(), signal.SIGKILL)


def send(child: int, job: dict) -> int:
    """Send the signals to a child; its exit code."""
    ended, status = 0, 0
    deadline = time.monotonic() + 60
    while job.get("signals") and not Path(job["await"]).exists():
        assert time.monotonic() < deadline, "there is no such file yet"
        time.sleep(0.005)
    for seconds, number in job.get("signals", []):
        time.sleep(seconds)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        os.kill(child, number)
    if not ended:
        _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    """Do the jobs. A child leaves as any program does: through here, to the interpreter's end."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as infer.py does while modules load
    results = [start(job) for job in json.load(sys.stdin)]
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
