"""Write generated scenes as files: python -m cosa.data.scenes FOLDER."""

from cosa.core.errors import run_program
from cosa.data.scenes.dataset import main

run_program(main)
