import pytest

from cosa.core import terminal
from cosa.core.terminal import Parser, note, progress_bar, say, warn
from cosa.core.text import LINE


@pytest.mark.parametrize("terminal_there, seconds", [(True, 0.1), (False, 30.0)])
def test_log_files_are_not_flooded(monkeypatch, terminal_there, seconds):
    monkeypatch.setattr(terminal.sys.stderr, "isatty", lambda: terminal_there, raising=False)
    with progress_bar(total=3, desc="x") as bar:
        assert bar.mininterval == seconds


def test_lines_are_text(capsys):
    say("a\nb\x1b[2J", 7, "  ä 日本")
    say("x" * 5000, error=True)
    note("c\nwarning: d")
    warn("e\u202e")
    out, err = capsys.readouterr()
    assert out == "a\\nb\\x1b[2J\n7\n  ä 日本\n"
    long, *rest = err.splitlines()
    assert len(long) == LINE and rest == [r"note: c\nwarning: d", r"warning: e\u202e"]


def test_a_bar_keeps_its_line(capsys):
    with progress_bar(total=2, desc="a\n\x1b[2J" + "x" * 500) as bar:
        say("told above", error=True)
        bar.update()
    err = capsys.readouterr().err
    assert "\x1b" not in err and r"a\n\x1b[2Jxx" in err and "x" * 80 not in err
    assert "\rtold above\n" in err


def test_words_that_a_parser_refuses_are_text(capsys):
    with pytest.raises(SystemExit) as left:
        Parser(prog="p").parse_args(["--a\nerror: b\x1b[2J", "x" * 5000])
    usage, line = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and usage == "usage: p [-h]"
    assert line.startswith(r"p: error: unrecognized arguments: --a\nerror: b\x1b[2J xxx")
    assert len(line) == LINE + len("p: error: ")
