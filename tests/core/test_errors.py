import pickle
import sys

import pytest

from cosa.core.errors import UserError, did_you_mean, run_program
from cosa.core.text import LINE


def test_the_nearest_name_is_offered_or_none():
    assert did_you_mean("trian", ["val", "train"]) == "; did you mean 'train'?"
    assert did_you_mean("xyz", {"val": 1, "train": 2}) == ""
    assert did_you_mean("xyz", [], cutoff=0.0) == ""
    assert did_you_mean("vax", ["train", "val"], cutoff=0.0) == "; did you mean 'val'?"
    assert did_you_mean("vax", ["train", "val"], cutoff=0.9) == ""


def leave(main, capsys):
    with pytest.raises(SystemExit) as left:
        run_program(main)
    return left.value.code, capsys.readouterr()


def test_run_program_prints_one_line_for_a_users_mistake(capsys):
    def main():
        raise UserError("the file x is not there: check the path")

    code, printed = leave(main, capsys)
    assert code == 2 and printed.out == ""
    assert printed.err == "error: the file x is not there: check the path\n"


def test_a_message_is_one_line_of_text(capsys):
    def main():
        raise UserError(f"a\x1b[2J\nerror: b {'x' * 100_000}: check the path")

    code, printed = leave(main, capsys)
    assert code == 2 and printed.err.startswith(r"error: a\x1b[2J\nerror: b xx")
    assert printed.err.endswith("xx: check the path\n")
    assert printed.err.count("\n") == 1 and len(printed.err) == LINE + len("error: ") + 1
    again = pickle.loads(pickle.dumps(UserError("a\nb")))
    assert type(again) is UserError and str(again) == str(UserError(again)) == r"a\nb"


def test_defects_are_text(capsys):
    def main():
        raise RuntimeError("\u202ebroken\udcff")

    code, printed = leave(main, capsys)
    assert code == 1
    assert printed.err.endswith("\nRuntimeError: \\u202ebroken\\udcff\n")


def test_run_program_passes_exit_codes_on(capsys):
    assert leave(lambda: 143, capsys)[0] == 143
    assert leave(lambda: None, capsys)[0] == 0


@pytest.mark.parametrize("error, words", [
    (OSError(28, "No space left on device", "runs/a/metrics.jsonl"), "metrics.jsonl"),
    (PermissionError(13, "Permission denied"), "Permission denied"),
])
def test_run_program_tells_what_the_system_refuses(capsys, error, words):
    def main():
        raise error

    code, printed = leave(main, capsys)
    assert code == 2 and printed.err.startswith("error: ") and words in printed.err
    assert printed.err.count("\n") == 1


def test_run_program_leaves_after_ctrl_c_without_a_traceback(capsys):
    def main():
        raise KeyboardInterrupt

    code, printed = leave(main, capsys)
    assert code == 130 and "Traceback" not in printed.err


def test_run_program_does_not_hide_defects(capsys):
    code, printed = leave(lambda: sys.exit(1 // 0), capsys)
    assert code == 1 and printed.out == "" and printed.err.startswith("Traceback")
    assert printed.err.endswith("\nZeroDivisionError: integer division or modulo by zero\n")
