import os
import socket

import pytest

from cosa.core.foreign import open_regular


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
