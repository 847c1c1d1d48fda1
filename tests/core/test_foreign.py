import os
import socket

import pytest

from cosa.core.errors import UserError
from cosa.core.foreign import (
    open_regular,
    read_bytes,
    read_csv,
    read_json,
    read_lines,
    read_xml,
)


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


def test_tables_with_other_separators(tmp_path):
    (tmp_path / "a").write_text('a; "b;c";d\n')
    assert read_csv(tmp_path / "a", "it", delimiter=";") == [(1, ["a", "b;c", "d"])]
    assert read_csv(tmp_path / "a", "it", text="x\ty z", delimiter="\t") == [(1, ["x", "y z"])]


LAUGHS = """<!DOCTYPE a [<!ENTITY l0 "ha"><!ENTITY l1 "&l0;&l0;"><!ENTITY l2 "&l1;&l1;">]>"""


@pytest.mark.parametrize("content, message", [
    (LAUGHS + "<a>&l2;</a>", "declares a document type"),
    ("<!-- a --><!DOCTYPE a><a/>", "declares a document type"),
    ('<!DOCTYPE a SYSTEM "file:///etc/hostname"><a/>', "declares a document type"),
    ("<a>&l2;</a>", "undefined entity"),
    ("<a>", "no element found"), ("", "no element found"), ("<a/>x", "junk after"),
    ('<?xml version="1.0" encoding="martian"?><a/>', "unknown encoding"),
    ("<a>" * 50_000, "no element found"),
])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_xml_that_is_refused(tmp_path, content, message, encoding):
    if "martian" in content and encoding != "utf-8":
        message = "encoding"
    (tmp_path / "a").write_bytes(content.encode(encoding))
    with pytest.raises(UserError, match=message) as raised:
        read_xml(tmp_path / "a", "it")
    assert str(raised.value).startswith(f"{tmp_path / 'a'}: it cannot be read (")


def test_xml_that_is_read(tmp_path):
    (tmp_path / "a").write_text("<a><b>1 &lt; 2</b>" + "<c>" * 50_000 + "</c>" * 50_000 + "</a>")
    root = read_xml(tmp_path / "a", "it")
    assert root.findtext("b") == "1 < 2" and sum(1 for _ in root.iter("c")) == 50_000
