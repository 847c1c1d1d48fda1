"""Write the report of a run, or compare several.

    python -m cosa.report runs/demo                    writes runs/demo/report.html
    python -m cosa.report runs/a runs/b runs/c         writes comparison.html
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cosa.core.errors import run_program
from cosa.core.files import check_target
from cosa.core.terminal import Parser, say
from cosa.report.writing import write_comparison, write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Write what the command line says; return the exit code.

    Raises:
        UserError: matplotlib is missing, a folder holds no run, or a file cannot be written.
    """
    parser = Parser(prog="python -m cosa.report", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--output", metavar="FILE",
                        help="default: report.html in the run's folder, or comparison.html")
    given = parser.parse_args(arguments)
    if given.output:
        check_target(given.output)
    if len(given.runs) == 1:
        path = write_report(given.runs[0], given.output)
    else:
        path = write_comparison(given.runs, given.output or "comparison.html")
    say(f"{path} is written")
    return 0


if __name__ == "__main__":
    run_program(main)
