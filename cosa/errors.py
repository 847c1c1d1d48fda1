"""Mistakes a user can make, told in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend; the message names the file or key and the remedy."""


def run_program(main: Callable[[], int | None]) -> None:
    """Run a program's ``main`` and leave with its exit code.

    A ``UserError`` becomes one line on stderr and exit code 2, Ctrl-C exit code 130; every other
    exception is a defect of ours and keeps its traceback.
    """
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code or 0)
