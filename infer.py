"""Segment images with a trained network: python infer.py INPUT --weights FILE --output FOLDER.

Started by torchrun, each process segments its share of the images.

Exit code 0: all done; 1: finished, but some images failed or could not be scored; 2: could not
start, or could not go on; 130 or 143: stopped by Ctrl-C or SIGTERM, of which the first counts.
"""

from __future__ import annotations

import importlib
import os
import signal

if __name__ == "__main__":  # until the modules are there, which takes seconds
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: os._exit(128 + number))

from cosa.core.errors import run_program

if __name__ == "__main__":  # a failure of the imports is told as any other
    run_program(lambda: importlib.import_module("infer").program())

from cosa.inference.command_line import parse
from cosa.inference.program import main, program

__all__ = ["main", "parse", "program"]
