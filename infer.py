"""Segment images with a trained network: python infer.py INPUT --weights FILE --output FOLDER.

Exit code 0: all done; 1: finished, but some images failed; 2: could not start; 130: stopped.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from tqdm import tqdm

import cosa
from cosa.device import choose_autocast, choose_device
from cosa.errors import UserError, run_program
from cosa.inference import plan, segment_files
from cosa.network import CoSANetwork


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Segment images. Masks are palette PNG files of the images' sizes, with the "
        "images' relative paths and stems; 0 is background, classes.csv lists the classes. "
        "Files that are there already are not computed again."
    )
    add = parser.add_argument
    add("input", help="folder (with its subfolders), image file, or glob in quotes")
    add("--weights", required=True, metavar="FILE", help="a checkpoint of CoSA")
    add("--output", required=True, metavar="FOLDER", help="where the masks go")
    add("--overlay", action="store_true", help="also write each image with its mask over it")
    add("--overwrite", action="store_true", help="compute finished files again")
    add("--batch-size", type=positive_integer, default=4, metavar="N", help="default: 4")
    add("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    add("--scales", type=positive_number, nargs="+", metavar="S", help="default: as evaluated")
    add("--flip", action=argparse.BooleanOptionalAction, help="default: as evaluated")
    add("--size", type=positive_integer, metavar="N", help="side that images are squashed to")
    add("--workers", type=positive_integer, metavar="N", help="threads that read, and that write")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code, raises UserError if it cannot start."""
    args = parse(arguments)
    jobs = plan(args.input, args.output, args.overlay)
    device = choose_device(args.device)
    network = load_network(args.weights, device)
    write_classes(Path(args.output), network)
    todo = [job for job in jobs if args.overwrite or not job.finished]
    settings = network.config["evaluate"]
    results = segment_files(
        network,
        todo,
        size=args.size or network.image_size,
        scales=args.scales or settings["scales"],
        flip=settings["flip"] if args.flip is None else args.flip,
        batch_size=args.batch_size,
        workers=args.workers or min(8, os.cpu_count() or 1),
        autocast=choose_autocast(device),
    )
    done = failed = 0
    interrupted = False
    started = time.perf_counter()
    # Without a terminal there is no bar: logs should not fill with it.
    with tqdm(total=len(todo), unit="image", disable=None) as bar:
        try:
            with closing(results):
                for _, error in results:
                    done, failed = done + (error is None), failed + (error is not None)
                    if error is not None:
                        tqdm.write(f"failed: {error}", file=sys.stderr)
                    bar.update()
        except KeyboardInterrupt:
            interrupted = True
    rate = done / (time.perf_counter() - started)
    print(
        f"{done} done ({rate:.2f} images/s), {len(jobs) - len(todo)} skipped (already there), "
        f"{failed} failed; masks are in {args.output}"
    )
    if interrupted:
        print("stopped; the same command goes on where it left off", file=sys.stderr)
        return 130
    return 1 if failed else 0


def load_network(path: str, device: torch.device) -> CoSANetwork:
    """Load weights whose classes fit into a mask."""
    network = cosa.load(path, device)
    if network.num_classes > 255:
        raise UserError(f"{path} has {network.num_classes} classes: masks hold at most 255")
    return network


def write_classes(folder: Path, network: CoSANetwork) -> None:
    """Write classes.csv: index, name, red, green, blue. UserError if the folder refuses."""
    names = ("background", *network.classes)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "classes.csv", "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["index", "name", "red", "green", "blue"])
            rows = enumerate(zip(names, network.palette, strict=True))
            table.writerows([index, name, *color] for index, (name, color) in rows)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be written: {error.strerror}") from error


def positive_integer(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return int(text)


def positive_number(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return float(text)


if __name__ == "__main__":
    run_program(main)
