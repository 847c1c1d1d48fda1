"""Distill a pretrained CNN into a small ViT: python -m cosa.distill PHOTOS --output FILE ..."""

from cosa.core.errors import run_program
from cosa.distill.command import main

if __name__ == "__main__":
    run_program(main)
