"""Write the network of a checkpoint to a file for inference alone.

    python -m cosa.checkpoint runs/pets/best.pth weights/pets.safetensors --half
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cosa.checkpoint.files import check_new_safetensors
from cosa.checkpoint.networks import check_finite, load, save_weights, shareable
from cosa.config import to_dict
from cosa.core.errors import run_program
from cosa.core.terminal import Parser, say


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the assignment network of a checkpoint, without what only training needs."""
    parser = Parser(prog="python -m cosa.checkpoint", description=main.__doc__)
    parser.add_argument("checkpoint", help="best.pth, last.pth or another file of this program")
    parser.add_argument("output", help="the .safetensors file to write; it must not exist")
    parser.add_argument("--half", action="store_true", help="16 bits a number: half the size")
    given = parser.parse_args(arguments)
    path = Path(given.output)
    check_new_safetensors(path)
    network = load(given.checkpoint)
    check_finite(network, given.checkpoint)
    save_weights(
        path, network, config=to_dict(shareable(network.config)), classes=network.classes,
        palette=network.palette, thresholds=network.thresholds, half=given.half,
    )
    say(f"{path}: {path.stat().st_size / 1e6:.1f} MB, of {len(network.classes)} classes")
    return 0


if __name__ == "__main__":
    run_program(main)
