"""The time of the CRF's filter by the number of channels: does a GPU dislike some numbers?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cosa.benchmark import stamp
from cosa.benchmark.tables import REPORT, print_section
from cosa.benchmark.timings.clock import clock
from cosa.benchmark.timings.crf_inputs import read_photos
from cosa.core.device import choose_device
from cosa.core.files import write_atomically
from cosa.core.terminal import Parser
from cosa.core.text import aligned
from cosa.crf import PRESETS
from cosa.lattice import Lattice, bilateral_features

TOPIC = "channels"
CHANNELS = (*range(1, 25), 32, 33, 64, 81, 84)
REPEATS = 5


def measure(device: torch.device, photos: str | None) -> dict[int, float]:
    """Channels -> median milliseconds of one pass of the bilateral filter, 500x375 pixels."""
    photo = torch.from_numpy(np.array(read_photos(photos, (375, 500), 1)[0][0])).to(device)
    lattice = Lattice(bilateral_features(photo, *PRESETS["release"]["bilateral"][1:]))
    found = {}
    for channels in CHANNELS:
        values = torch.rand(photo.shape[0] * photo.shape[1], channels, device=device)
        spent = []
        for _ in range(1 + REPEATS):
            start = clock(device)
            lattice.filter(values)
            spent.append(1e3 * (clock(device) - start))
        found[channels] = float(np.median(spent[1:]))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Time one pass of the bilateral filter of a CRF for many numbers of channels."""
    parser = Parser(prog=f"python -m cosa.benchmark {TOPIC}", description=main.__doc__)
    parser.add_argument("folder", nargs="?", help="photographs; default: a generated scene")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--json", metavar="FILE", help="write the figures here, too")
    given = parser.parse_args(arguments)
    device = choose_device(given.device, "--device ")
    started = stamp.begin(TOPIC, arguments, REPORT)
    found = measure(device, given.folder)
    rows = [["channels", "ms", "us a channel"]]
    rows += [[str(channels), f"{spent:.3f}", f"{1e3 * spent / channels:.1f}"]
             for channels, spent in found.items()]
    print_section(aligned(rows))
    if given.json:
        facts = {**started.facts(device), "milliseconds": found}
        write_atomically(Path(given.json), json.dumps(facts, indent=2) + "\n")
    return 0
