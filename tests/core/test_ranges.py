"""What options may be, and that no program reads a number without a range."""

import argparse
import ast

import pytest

from cosa.core.ranges import Choice, Filled, Range, Several, Tuple, real, whole
from tests.helpers.tiny import ROOT


@pytest.mark.parametrize("domain, good, bad", [
    (Range(1, 8), [1, 8, (1, 2), [[3]], True, "word", None], [0, 9, 10**30, (1, 9), float("nan")]),
    (Range(0.5, 2.0), [0.5, 2], [0.4, float("inf")]),
    (Several(Range(0, 1), most=2), [(0.5,), (0, 1)], [(), (0, 0, 0), (2.0,)]),
    (Tuple((Range(0, 1), Range(5, 6))), [(0, 5)], [(0, 0), (5, 5)]),
    (Choice(("a", "b")), ["a"], ["", "c"]),
    (Filled("a folder"), ["."], [""]),
])
def test_domains(domain, good, bad):
    assert not any(map(domain.refusal, good))
    assert all(map(domain.refusal, bad))


def test_readers_of_the_command_line():
    assert whole(1, 8)("3") == 3 and real(0, 1)("1e-1") == 0.1
    for read, text, told in (
        (whole(1, 8), "9", "9: it must lie in 1..8"), (whole(1, 8), "1.5", "'1.5' must be a whole"),
        (whole(1, 8), "1" * 9999, "must be a whole"), (real(0, 1), "nan", "in 0..1"),
        (real(0, 1), "x", "'x' must be a number"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=told):
            read(text)


def bare_numbers(source):
    """Lines of calls with ``type=int`` or ``type=float``, numbers of any size."""
    return [node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)
            for keyword in node.keywords if keyword.arg == "type"
            and isinstance(keyword.value, ast.Name)
            and keyword.value.id in ("int", "float")]


def test_no_program_reads_a_number_without_a_range():
    found = {str(path): bare_numbers(path.read_text(encoding="utf-8"))
             for path in (*(ROOT / "cosa").rglob("*.py"), *ROOT.glob("*.py"))}
    assert [path for path, lines in found.items() if lines] == []
    assert bare_numbers("add('--n', type=int)\nadd('--m', type=whole(1, 2))") == [1]


def test_choices_are_told_apart():
    assert Choice(("", ";", "|")).refusal(",") == "use one of '', ';', '|'"
