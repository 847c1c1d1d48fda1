"""The command line of cosa.distill, and the file that it writes."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from textwrap import shorten
from typing import Any

from cosa.checkpoint.files import check_new_safetensors, save_safetensors
from cosa.core.device import (
    DEVICES,
    choose_autocast,
    choose_device,
    describe,
    memory_errors_explained,
)
from cosa.core.ranges import BATCH, SEED, SIDE, real, whole
from cosa.core.terminal import Parser, say
from cosa.distill.fit import Distillation, build_encoders, distill
from cosa.distill.photographs import FINER, load_photographs


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        UserError: the output cannot be written there.
    """
    parser = Parser(prog="python -m cosa.distill", description=main.__doc__)
    parser.add_argument("photos", nargs="+", metavar="PHOTOS",
                        help="folders of photographs, searched with their subfolders")
    parser.add_argument("--output", required=True,
                        help="the .safetensors file to write; it must not exist")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=whole(1, 10**8), help="how many to make")
    length.add_argument("--minutes", type=real(0.001, 1e6),
                        help="make steps until so long after the start; not the same ones again")
    parser.add_argument("--student", default="vit_tiny_patch16_224",
                        help="timm name of a plain ViT (%(default)s)")
    parser.add_argument("--student-options", type=_json_object, default={}, metavar="JSON",
                        help="as model.encoder_options, such as '{\"depth\": 6}'")
    parser.add_argument("--teacher", default="tf_efficientnet_lite2",
                        help="timm name (%(default)s)")
    parser.add_argument("--teacher-weights", default="", metavar="FILE",
                        help="as model.weights; else they are looked up by name")
    parser.add_argument("--crop", type=whole(1, SIDE.high), default=192,
                        help="side of the crops in pixels (%(default)s)")
    parser.add_argument("--batch", type=whole(1, BATCH.high), default=16,
                        help="crops in a step (%(default)s)")
    parser.add_argument("--mix", type=real(0, 1), default=0.5,
                        help="share of the crops that are mixed with another (%(default)s)")
    parser.add_argument("--lr", type=real(1e-12, 1e30), default=1e-3,
                        help="learning rate at its peak (%(default)s)")
    parser.add_argument("--seed", type=whole(0, SEED.high), default=0)
    parser.add_argument("--device", default="auto", help=f"{DEVICES}; default: auto")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto",
                        help="auto: bf16 on CUDA, fp32 on the CPU, where bf16 is faster if the "
                             "processor has it")
    given = parser.parse_args(arguments)
    check_new_safetensors(given.output)
    return given


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        # Beside what is no JSON: numbers of thousands of digits, lists of lists without end.
        raise argparse.ArgumentTypeError(
            f"'{shorten(text, 80, placeholder='...')}' is no JSON: {getattr(error, 'msg', error)}"
        ) from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"'{text}' is no JSON object such as {{\"depth\": 6}}")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Distill a pretrained CNN into a small ViT, on photographs without labels."""
    given = parse(arguments)
    until = None if given.minutes is None else time.monotonic() + 60 * given.minutes
    device = choose_device(given.device, "--device ")
    autocast = choose_autocast(device, given.precision)
    try:
        with memory_errors_explained("lower --batch or --crop, or give fewer photographs"):
            seen, master = build_encoders(given)
            photographs = load_photographs(given.photos, FINER * given.crop, device)
            learnt, held_out = len(photographs.learnt), len(photographs.held_out)
            say(f"{learnt} photographs to learn from, {held_out} held out; on "
                f"{describe(device, autocast)}")
            result = distill(given, seen, master, photographs, autocast, until)
    except KeyboardInterrupt:
        say(f"interrupted: {given.output} is not written", error=True)
        return 130
    about = described(given, result, learnt, seen.reader.early_layer)
    save_safetensors(given.output, result.encoder.state_dict(), {"cosa": json.dumps(about)})
    say(f"{given.output}: {result.steps} steps, loss {result.loss:.4f}, of the variance of the "
        f"teacher's features explained on {held_out} photographs held out: "
        f"{100 * result.explained:.1f} %, early ones, by block {seen.reader.early_layer}, "
        f"{100 * result.early_explained:.1f} %")
    return 0


def described(
    given: argparse.Namespace, result: Distillation, learnt: int, early_layer: int
) -> dict[str, Any]:
    """How the file was made: no paths, and nothing of the photographs but how many there were."""
    return {
        "program": "cosa.distill",
        "photographs": learnt,
        "steps": result.steps,
        "loss": round(result.loss, 4),
        "explained_variance": round(result.explained, 4),
        "early_explained_variance": round(result.early_explained, 4),
        "early_layer": early_layer,
        **{key: getattr(given, key) for key in (
            "student", "student_options", "teacher", "minutes", "crop", "batch", "mix", "lr",
            "seed",
        )},
    }
