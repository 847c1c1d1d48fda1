"""The command line of infer.py, and the settings that follow from it and from the weights."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import torch

from cosa.core import distributed
from cosa.core.errors import UserError, did_you_mean
from cosa.crf import PRESETS
from cosa.inference.jobs import SUFFIXES
from cosa.inference.labels import ImageLabels
from cosa.inference.segmenter import run_crf
from cosa.inference.settings import BACKENDS, MAX_SIZE, MODES, CrfSettings, Settings
from cosa.network import CoSANetwork


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, whose combination makes sense."""
    parser = _Parser(
        description="Segment images. Masks are palette PNG files of the images' sizes, with the "
        "images' relative paths and stems; 0 is background, classes.csv lists the classes. "
        "Files that are there already are not computed again."
    )
    add = parser.add_argument
    add("input", type=filled, help="folder (with its subfolders), image file, or glob in quotes")
    add("--weights", type=filled, required=True, metavar="FILE", help="a checkpoint of CoSA")
    add("--output", type=filled, required=True, metavar="FOLDER", help="where the results go")
    add("--save", type=kinds, default=("mask",), metavar="KIND,...",
        help=f"what to write, of {', '.join(SUFFIXES)}; default: mask")
    add("--overlay", action="store_true", help="also write each image with its mask over it")
    add("--overwrite", action="store_true", help="compute finished files again")
    add("--labels", type=filled, metavar="CSV",
        help="image-level labels; other classes are left out")
    add("--threshold", type=share, metavar="T", help="of pseudo-labels; default: as trained")
    add("--crf", nargs="?", const="release", metavar="PRESET",
        help="refine by a dense CRF: release (default), toco or deeplab")
    add("--crf-backend", choices=BACKENDS, help="default: torch")
    add("--crf-iterations", type=positive_integer, metavar="N", help="instead of the preset's")
    add("--crf-gaussian", type=number, nargs=2, metavar=("W", "SXY"),
        help="weight and sigma in pixels of the position kernel")
    add("--crf-bilateral", type=number, nargs=3, metavar=("W", "SXY", "SRGB"),
        help="weight, sigma in pixels and in grey levels of the colour kernel")
    add("--mode", choices=MODES, default="whole",
        help="images squashed to a square (default), or windows of the image as it is")
    add("--window", type=positive_integer, metavar="N", help="side of the windows")
    add("--stride", type=positive_integer, metavar="N", help="step between windows")
    add("--max-size", type=positive_integer, default=MAX_SIZE, metavar="N",
        help=f"longer sides are shrunk to this for windows and CRF; default: {MAX_SIZE}")
    add("--scales", type=positive_number, nargs="+", metavar="S", help="default: as evaluated")
    add("--flip", action=argparse.BooleanOptionalAction, help="default: as evaluated")
    add("--size", type=positive_integer, metavar="N", help="side that images are squashed to")
    add("--json", type=filled, metavar="FILE",
        help="write a summary of all images and of the run")
    add("--evaluate", type=filled, metavar="MASKS",
        help="score against the true masks in this folder")
    add("--batch-size", type=positive_integer, default=4, metavar="N", help="default: 4")
    add("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    add("--workers", type=positive_integer, metavar="N", help="threads that read, and that write")
    args, rest = parser.parse_known_args(arguments)
    parser.refuse(rest)
    for option, needed, there in (
        ("crf_backend", "--crf", args.crf),
        ("crf_iterations", "--crf", args.crf),
        ("crf_gaussian", "--crf", args.crf),
        ("crf_bilateral", "--crf", args.crf),
        ("window", "--mode slide", args.mode == "slide"),
        ("stride", "--mode slide", args.mode == "slide"),
        ("size", "--mode whole", args.mode == "whole"),
        ("threshold", "--save cpl", "cpl" in args.save),
    ):
        if getattr(args, option) is not None and not there:
            parser.error(f"--{option.replace('_', '-')} is of use with {needed} only: add that, or "
                         "leave it out")
    args.save = tuple(k for k in SUFFIXES if k in args.save or (k == "overlay" and args.overlay))
    cores = (os.cpu_count() or 1) // distributed.local_world()
    args.workers = args.workers or max(1, min(8, cores))
    return args


def choose_crf(args: argparse.Namespace) -> CrfSettings | None:
    """The preset with the numbers that replace its own.

    Raises:
        UserError: there is no such preset or backend here, or a number is out of range.
    """
    if args.crf is None:
        return None
    if args.crf not in PRESETS:
        known = f"; choose one of {', '.join(PRESETS)}"
        raise UserError(f"--crf {args.crf or repr('')} is no preset"
                        f"{did_you_mean(args.crf, PRESETS) or known}")
    own = {
        "iterations": args.crf_iterations,
        "gaussian": args.crf_gaussian,
        "bilateral": args.crf_bilateral,
    }
    for name in ("gaussian", "bilateral"):
        if 0 in (own[name] or ())[1:]:
            raise UserError(f"--crf-{name}: all numbers but the first, the weight, are standard "
                            "deviations and must be positive")
    chosen = PRESETS[args.crf] | {key: value for key, value in own.items() if value is not None}
    crf = CrfSettings(
        iterations=chosen["iterations"],
        gaussian=tuple(map(float, chosen["gaussian"])),
        bilateral=tuple(map(float, chosen["bilateral"])),
        backend=args.crf_backend or BACKENDS[0],
    )
    # An image of four pixels tells whether it works before any work is done.
    run_crf(np.zeros((2, 2, 3), np.uint8), torch.full((2, 2, 2), 0.5), crf)
    return crf


def choose_settings(
    args: argparse.Namespace,
    network: CoSANetwork,
    crf: CrfSettings | None,
    labels: ImageLabels | None,
) -> Settings:
    """The options, with what the weights say for those that are not given.

    Raises:
        UserError: the stride leaves gaps, or there is no threshold for the pseudo-labels.
    """
    evaluation = network.config["evaluate"]
    window = args.window or network.image_size
    stride = args.stride or math.ceil(2 * window / 3)
    if stride > window:
        raise UserError(f"--stride {stride} leaves gaps between windows of {window}: lower it")
    threshold = None
    if "cpl" in args.save:
        threshold = network.thresholds[0] if args.threshold is None else args.threshold
        if threshold is None:
            raise UserError(f"{args.weights} holds no threshold for pseudo-labels: give one, "
                            "--threshold T")
    return Settings(
        size=args.size or network.image_size,
        scales=tuple(args.scales or evaluation["scales"]),
        flip=evaluation["flip"] if args.flip is None else args.flip,
        mode=args.mode,
        window=window,
        stride=stride,
        max_size=args.max_size,
        crf=crf,
        threshold=threshold,
        labels=labels and labels.digest,
    )


def kinds(text: str) -> tuple[str, ...]:
    """The parts of a list such as "mask,cam"."""
    chosen = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = next((kind for kind in chosen if kind not in SUFFIXES), None)
    if unknown is not None or not chosen:
        known = f"; choose from {','.join(SUFFIXES)}"
        raise argparse.ArgumentTypeError(
            f"'{unknown or text}' cannot be saved{did_you_mean(unknown or '', SUFFIXES) or known}"
        )
    return chosen


def filled(text: str) -> str:
    """A path: "" would be taken for the current folder, or for an option that is not given."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty: give a path")
    return text


def positive_integer(text: str) -> int:
    try:
        if int(text) >= 1:
            return int(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"'{text}' must be a whole number of at least 1")


def number(text: str) -> float:
    value = _float(text)
    if 0 <= value < math.inf:
        return value
    raise argparse.ArgumentTypeError(f"'{text}' must be a number of at least 0")


def positive_number(text: str) -> float:
    value = _float(text)
    if 0 < value < math.inf:
        return value
    raise argparse.ArgumentTypeError(f"'{text}' must be a number above 0")


def share(text: str) -> float:
    value = _float(text)
    if 0 <= value <= 1:
        return value
    raise argparse.ArgumentTypeError(f"'{text}' must be a number from 0 to 1")


def _float(text: str) -> float:
    """NaN, which is in no range, for what is no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


class _Parser(argparse.ArgumentParser):
    """Tells in one sentence what is wrong."""

    def error(self, message: str) -> NoReturn:
        missing = message.removeprefix("the following arguments are required: ")
        if missing != message:
            message = f"{missing} must be given; --help lists all options"
        self.exit(2, f"error: {message.removeprefix('argument ')}\n")

    def refuse(self, rest: Sequence[str]) -> None:
        """End the program if there are arguments that are none of its own."""
        options = [word.partition("=")[0] for word in rest if re.match("-+[a-z]", word)]
        if options:
            known = self._option_string_actions
            hint = did_you_mean(options[0], known) or "; --help lists all options"
            self.error(f"there is no option {options[0]}{hint}")
        if rest:
            self.error(f"'{rest[0]}' is one argument too many: give one folder or image, or a "
                       "glob in quotes, or the shell puts all its files in its place")
