"""Push a run to the Hugging Face hub: python -m cosa.hub push RUN user/name."""

from cosa.core.errors import run_program
from cosa.hub.push import main

if __name__ == "__main__":
    run_program(main)
