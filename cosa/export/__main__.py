"""Export a trained network for inference elsewhere: python -m cosa.export --weights FILE ..."""

from cosa.core.errors import run_program
from cosa.export.command import main

run_program(main)
