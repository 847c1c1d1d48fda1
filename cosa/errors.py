"""What can go wrong without being a defect, told in one sentence."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend; the message names the file or key and the remedy."""


class NotFiniteError(ValueError):
    """A loss, gradient or activation is NaN or infinite; the message is a clause saying which."""


def not_finite(loss: float) -> str:
    """The clause about a step that is not finite: its loss, or else the norm of the gradient."""
    return f"the {'norm of the gradient' if math.isfinite(loss) else 'loss'} is not finite"


def run_program(main: Callable[[], int | None]) -> None:
    """Run a program's ``main`` and leave with its exit code.

    A ``UserError``, or an ``OSError`` (a full disk, missing rights), becomes one line on stderr
    and exit code 2, Ctrl-C exit code 130; every other exception is a defect of ours and keeps
    its traceback.
    """
    try:
        code = main()
    except UserError as error:
        code = _refuse(str(error))
    except OSError as error:
        code = _refuse(" ".join(str(error).split()))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code or 0)


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2
