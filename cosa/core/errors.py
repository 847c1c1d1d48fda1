"""What can go wrong without being a defect, told in one sentence."""

from __future__ import annotations

import difflib
import math
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable

from cosa.core.descriptors import FEWEST, allowed_files
from cosa.core.streams import forgiving_streams
from cosa.core.text import shown


class UserError(Exception):
    """Something the user can mend; the message names the file or key and the remedy.

    Whatever names are in it, the message is one line of visible characters: see ``shown``.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shown(message))


class NotFiniteError(ValueError):
    """A loss, gradient or activation is NaN or infinite; the message is a clause saying which."""


def not_finite(loss: float) -> str:
    """The clause about a step that is not finite: its loss, or else the norm of the gradient."""
    return f"the {'norm of the gradient' if math.isfinite(loss) else 'loss'} is not finite"


def run_program(main: Callable[[], int | None]) -> None:
    """Run a program's ``main`` and leave with its exit code.

    A ``UserError``, or an ``OSError`` (a full disk, missing rights), becomes one line on stderr
    and exit code 2, Ctrl-C exit code 130; every other exception is a defect of ours: its
    traceback, and exit code 1. What nobody reads is dropped. What cannot be printed for another
    reason is lost, which one line on stderr tells, and an exit code of 0 becomes 1.
    """
    with forgiving_streams() as out:
        code = _exit_code(main)
        out.flush()
        if out.lost:
            reason = out.lost.strerror or out.lost
            print(f"error: what was to be printed is lost: {reason}", file=sys.stderr)
            code = code or 1
    sys.exit(code)


def _exit_code(main: Callable[[], int | None]) -> int:
    files = allowed_files(FEWEST)
    if files < FEWEST:
        return _refuse(f"this process may hold only {files} files open at a time: at least "
                       f"{FEWEST} are needed, set ulimit -n {FEWEST} or more")
    try:
        return main() or 0
    except (MemoryError, ImportError) as error:
        if isinstance(error, ImportError) and "failed to map" not in str(error):
            raise
        return _refuse("the memory that this process may use is too small even for the program "
                       "itself: raise the limit (ulimit -v), or end other programs")
    except UserError as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(" ".join(str(error).split()))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()  # here, where what it quotes is made visible
        return 1


def _refuse(message: str) -> int:
    print(f"error: {shown(message)}", file=sys.stderr)
    return 2


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A hint for a misspelt name: "; did you mean 'x'?", or nothing if none is close.

    Args:
        cutoff: how alike the nearest must be, in 0..1 (``difflib``'s ratio); 0 takes any.
    """
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def one_line(error: Exception, most: int | None = None) -> str:
    """The first two lines of an error's message as one: PyTorch's first line alone says little.

    Args:
        most: characters; what is longer is cut after a word.
    """
    lines = str(error).strip().splitlines()
    text = " ".join(line.strip() for line in lines[:2]) if lines else type(error).__name__
    return text if most is None else textwrap.shorten(text, most, placeholder=" ...")
