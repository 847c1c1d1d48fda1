import os
import socket

import pytest

from cosa.core.errors import UserError
from cosa.core.foreign import open_regular, read_bytes, read_csv, read_json, read_lines


def test_a_file_is_opened(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    with open_regular(tmp_path / "a") as file:
        assert file.read() == b"abc"


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
        for path, words in [
            (tmp_path, "folder"), (tmp_path / "pipe", "pipe"), ("/dev/zero", "device"),
            (tmp_path / "socket", "device"), (tmp_path / "none", "No such file"),
            (f"{tmp_path}/a\0b", "name"), (f"{tmp_path}/\ud800", "name"),
        ]:
            with pytest.raises(OSError, match=words):
                open_regular(path)


def test_a_file_that_is_too_large_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", "the list", most=5) == b"12345"
    with pytest.raises(UserError, match="a: the list is larger than 4e-06 MB"):
        read_bytes(tmp_path / "a", "the list", most=4)
    with pytest.raises(UserError, match="/dev/zero: the list cannot be read .*device"):
        read_bytes("/dev/zero", "the list")


@pytest.mark.parametrize("read", [read_lines, read_csv])
def test_lines_keep_their_numbers(tmp_path, read):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfx\r\n\r\n y \n")
    one = (lambda text: [text]) if read is read_csv else str
    assert read(tmp_path / "a", "it") == [(1, one("x")), (3, one("y"))]
    (tmp_path / "a").write_bytes(b"x\n" + b"y" * 4001)
    with pytest.raises(UserError, match="line 2: 'yyy.*has 4001 characters"):
        read(tmp_path / "a", "it")
    (tmp_path / "a").write_bytes(b"x\n\n\xffy")
    with pytest.raises(UserError, match="line 3: it is not in UTF-8"):
        read(tmp_path / "a", "it")


def test_json_of_a_declared_type(tmp_path):
    (tmp_path / "a").write_text('{"a": [1, 2]}')
    assert read_json(tmp_path / "a", "it", dict[str, list[int]]) == {"a": [1, 2]}
    with pytest.raises(UserError, match=r"a: a\[0\] must be of type str, not 1"):
        read_json(tmp_path / "a", "it", dict[str, list[str]])
