"""Segment images with a trained network: python infer.py INPUT --weights FILE --output FOLDER.

Exit code 0: all done; 1: finished, but some images failed; 2: could not start; 130: stopped.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from tqdm import tqdm

import cosa
from cosa.device import allow_tf32, choose_autocast, choose_device
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
    record = Record(Path(args.output), network)
    record.begin(args.overwrite)
    todo = jobs if args.overwrite else jobs.unfinished()
    settings, training = network.config["evaluate"], network.config.get("train", {})
    allow_tf32(training.get("tf32", True))
    results = segment_files(
        network,
        todo,
        size=args.size or network.image_size,
        scales=args.scales or settings["scales"],
        flip=settings["flip"] if args.flip is None else args.flip,
        batch_size=args.batch_size,
        workers=args.workers or min(8, os.cpu_count() or 1),
        autocast=choose_autocast(device, training.get("precision", "auto")),
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
        again = "starts over" if args.overwrite else "goes on where it left off"
        print(f"stopped; the same command {again}", file=sys.stderr)
        return 130
    record.end()
    return 1 if failed else 0


def load_network(path: str, device: torch.device) -> CoSANetwork:
    """Load weights whose classes fit into a mask."""
    network = cosa.load(path, device)
    if network.num_classes > 255:
        raise UserError(f"{path} has {network.num_classes} classes: masks hold at most 255")
    return network


class Record:
    """What tells in the output folder where its masks come from.

    ``classes.csv`` lists index, name, red, green and blue of the classes. ``.cosa.json`` holds a
    digest of the weights, so that masks of two networks are not mixed unnoticed.
    """

    def __init__(self, folder: Path, network: CoSANetwork) -> None:
        self.folder = folder
        self.classes, self.digest = classes_table(network), weights_digest(network)

    def begin(self, overwrite: bool) -> None:
        """Raise UserError if other weights made the masks there, or the folder refuses."""
        classes, mark = (self._read(name) for name in ("classes.csv", ".cosa.json"))
        same = classes in (None, self.classes) and mark in (None, self._mark(self.digest))
        if not (same or overwrite):
            raise UserError(
                f"{self.folder} holds masks made with other weights: --overwrite or another "
                "--output"
            )
        # Until all files of the others are overwritten the folder holds masks of both.
        self._write({"classes.csv": self.classes, ".cosa.json": self._mark(same and self.digest)})

    def end(self) -> None:
        """Note that all masks are of these weights."""
        self._write({".cosa.json": self._mark(self.digest)})

    @staticmethod
    def _mark(digest: str | bool) -> str:
        return json.dumps({"weights_sha256": digest or "several"}) + "\n"

    def _read(self, name: str) -> str | None:
        try:
            return (self.folder / name).read_bytes().decode(errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"{self.folder / name} cannot be read: {error.strerror}") from error

    def _write(self, files: dict[str, str]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (self.folder / name).write_bytes(text.encode())
        except OSError as error:
            reason = error.strerror
            raise UserError(f"--output {self.folder} cannot be written: {reason}") from error


def classes_table(network: CoSANetwork) -> str:
    """The content of classes.csv."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(["index", "name", "red", "green", "blue"])
    rows = zip(("background", *network.classes), network.palette, strict=True)
    table.writerows([index, name, *color] for index, (name, color) in enumerate(rows))
    return text.getvalue()


def weights_digest(network: CoSANetwork) -> str:
    """SHA-256 of all tensors, whichever kind of file they come from."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


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
