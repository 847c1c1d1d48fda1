"""What a run notes of each of its starts: which program, on what machine."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy
import PIL
import timm
import torch

from cosa.core import distributed
from cosa.core.device import describe, machine
from cosa.core.errors import UserError
from cosa.core.revision import revision
from cosa.training.run_folder import RunFolder


def describe_start(
    run: RunFolder,
    iteration: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
) -> dict[str, Any]:
    """A line of starts.jsonl: iteration, date, revision, versions, machine and device."""
    try:
        state = str(revision(run.path))
    except UserError:  # of use to a reader, but no reason not to train
        state = "unknown revision"
    return {
        "iteration": iteration,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "revision": state,
        "versions": {"Python": platform.python_version(), "PyTorch": torch.__version__,
                     "timm": timm.__version__, "NumPy": numpy.__version__,
                     "Pillow": PIL.__version__},
        "machine": machine(device),
        "device": describe(device, autocast),
        "processes": distributed.world(),
    }
