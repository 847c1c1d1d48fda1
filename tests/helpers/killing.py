"""A program that starts train.py and kills it, again and again, until it has had its kills.

    python tests/helpers/killing.py < JOBS

JOBS is a JSON list of objects with config (a YAML file), folder (of the run) and deaths (a list).

Importing PyTorch takes seconds, so it happens once, here; every training is a fork of this
process, which itself computes nothing. The SIGKILL and what it leaves on the disk are the real
ones; only the start of the interpreter is left out. After each death (see ``arm``) the training is
started again as a user would, by --resume once there is a config.yaml; after the last one it may
finish.

Prints a JSON list for each job: of each start how it ended, and what it left.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402

import train  # noqa: E402
from cosa import checkpoint  # noqa: E402
from cosa.training import evaluation as score  # noqa: E402
from cosa.training.run_folder import RunFolder  # noqa: E402

CHANGES = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.chmod")
"""Audit events of what changes a folder."""


def die() -> None:
    """As if another process had sent it; nothing of Python runs any more."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(death: str, run: RunFolder) -> None:
    """Prepare this process to die.

    change:K   before the K-th change of the run folder: a file is opened for writing, renamed,
               linked, deleted
    save:K     in the middle of writing the K-th checkpoint (best.pth is one, too)
    log:K      in the middle of writing the K-th line of metrics.jsonl
    evaluate:K before the K-th batch of images that is evaluated
    """
    kind, number = death.split(":")
    number = int(number)
    {"change": die_at_change, "save": die_in_save, "log": die_in_log,
     "evaluate": die_in_evaluation}[kind](number, run)


def die_at_change(number: int, run: RunFolder) -> None:
    seen = 0

    def hook(event: str, args: tuple) -> None:
        nonlocal seen
        if event in CHANGES and str(args[0]).startswith(str(run.path)):
            seen += event != "open" or bool(args[2] & (os.O_WRONLY | os.O_RDWR))
            if seen == number:
                die()

    sys.addaudithook(hook)


def die_in_save(number: int, run: RunFolder) -> None:
    original, calls = torch.save, []

    def save(content: dict, path: str) -> None:
        calls.append(path)
        if len(calls) == number:
            whole = io.BytesIO()
            original(content, whole)
            Path(path).write_bytes(whole.getvalue()[: whole.tell() // 2])
            die()
        original(content, path)

    torch.save = save


def die_in_log(number: int, run: RunFolder) -> None:
    original, calls = RunFolder.log, []

    def log(self: RunFolder, record: dict) -> None:
        calls.append(record)
        if len(calls) == number:
            line = json.dumps(record)
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(line[: len(line) // 2])
            die()
        original(self, record)

    RunFolder.log = log


def die_in_evaluation(number: int, run: RunFolder) -> None:
    original, calls = score.evaluate, []

    def evaluate(*args, should_stop, **options):
        def ask() -> bool:
            calls.append(0)
            if len(calls) == number:
                die()
            return should_stop()

        return original(*args, should_stop=ask, **options)

    score.evaluate = evaluate


def start(config: str, run: RunFolder, death: str) -> dict:
    """Fork, train, and wait for the end: what happened, and what is in the run folder then."""
    arguments = ["--resume", str(run.path)] if run.config.exists() else [config]
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            if death and not death.startswith("after:"):
                arm(death, run)
            code = train.main(arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    if death.startswith("after:"):  # so many seconds, wherever that is
        time.sleep(float(death.removeprefix("after:")))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    for path in run.checkpoints():
        checkpoint.verify(path)
    return {
        "death": death,
        "resumed": arguments[0] == "--resume",
        "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
        "code": os.waitstatus_to_exitcode(status),
        "seconds": time.monotonic() - began,
        "checkpoints": [path.name for path in run.checkpoints()],
    }


def main() -> None:
    """Train for each job, with its deaths and then to the end."""
    jobs = json.load(sys.stdin)
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the trainings print is no part of the answer
    with answer:
        json.dump([[start(job["config"], RunFolder(job["folder"]), death)
                    for death in [*job["deaths"], ""]] for job in jobs], answer)


if __name__ == "__main__":
    main()
