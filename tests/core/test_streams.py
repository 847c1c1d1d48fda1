import errno
import io
import os
import sys

import pytest

from cosa.core.errors import run_program
from cosa.core.streams import Forgiving, forgiving_streams


class Refusing(io.StringIO):
    """A stream on a file of its own whose reader has gone, or whose disk is full."""

    def __init__(self, number, file):
        super().__init__()
        self.number, self.file = number, file

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))

    def flush(self):
        self.write("")

    def fileno(self):
        return self.file.fileno()


@pytest.mark.parametrize("number, lost", [(errno.EPIPE, False), (errno.ENOSPC, True)])
def test_what_cannot_be_printed_is_dropped(tmp_path, number, lost):
    with open(tmp_path / "file", "w") as file:
        stream = Forgiving(Refusing(number, file))
        print("text", file=stream, flush=True)
        assert (stream.lost is not None) == lost
        assert os.path.samestat(os.fstat(file.fileno()), os.stat(os.devnull))


@pytest.mark.parametrize("text, written", [
    ("ä 日本\n  b\n", "ä 日本\n  b\n"),
    ("a\x1b[2J\rb\tc\u202e\u2028\x9b\udcff", r"a\x1b[2J\rb\tc\u202e\u2028\x9b\udcff"),
    # What tqdm writes.
    ("\r 50%|█", "\r 50%|█"), ("\r", "\r"), ("\n\n", "\n\n"), ("\x1b[A\x1b[A", "\x1b[A\x1b[A"),
    ("\rrun\r\x1b[A", "\rrun" + r"\r\x1b[A"),
])
def test_what_is_written_is_visible(text, written):
    out = io.StringIO()
    Forgiving(out).write(text)
    assert out.getvalue() == written


def test_what_the_encoding_lacks_is_escaped():
    out = io.TextIOWrapper(io.BytesIO(), "latin-1")
    print("ä 日\udcff", file=Forgiving(out), flush=True)
    assert out.buffer.getvalue() == b"\xe4 \\u65e5\\udcff\n"


@pytest.mark.parametrize("number, expected", [(errno.EPIPE, [0, 1, 2]), (errno.ENOSPC, [1, 1, 2])])
def test_only_a_full_disk_changes_the_exit_code(tmp_path, capsys, monkeypatch, number, expected):
    codes = []
    for code in range(3):
        with open(tmp_path / "file", "w") as file, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", Refusing(number, file))
            with pytest.raises(SystemExit) as left:
                run_program(lambda code=code: print("text") or code)
        codes.append(left.value.code)
    assert codes == expected
    told = capsys.readouterr().err.splitlines()
    sentence = "error: what was to be printed is lost: No space left on device"
    assert told == ([sentence] * 3 if number == errno.ENOSPC else [])


def test_streams_are_put_back_and_missing_ones_stand_in(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    before = sys.stdout
    with forgiving_streams() as out:
        assert sys.stdout is out and out.isatty() == before.isatty()
        print("nobody reads this", file=sys.stderr)
    assert sys.stdout is before and sys.stderr is None
