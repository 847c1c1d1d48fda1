import errno
import os
import stat
import threading

import pytest

from cosa.core.errors import UserError
from cosa.core.files import (
    TEMPORARY,
    Replacement,
    append,
    atomic,
    remove_leftovers,
    replacing,
    write_atomically,
)
from tests.helpers.limits import largest_file


def test_text_is_replaced_and_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b.txt"
    for text in ("first", "zweiter ü\n"):
        write_atomically(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


@pytest.mark.parametrize("error, raised", [(OSError(28, "No space left on device"), UserError),
                                           (KeyboardInterrupt(), KeyboardInterrupt)])
def test_an_interrupted_write_leaves_the_old_file_alone(tmp_path, error, raised):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(raised):
        with replacing(path) as temporary:
            with open(temporary, "w") as file:
                file.write("half")
            raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*b.txt: .*rights and the free space"):
        write_atomically(tmp_path / "file" / "b.txt", "text")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name, what in (("pipe", "a device"), ("link", "a device"), ("folder", "a folder")):
        with pytest.raises(UserError, match=f"cannot write .*{name}: it is {what}.*another name"):
            write_atomically(tmp_path / name, "text")
        with pytest.raises(UserError, match=f"{name}: it is {what}"):
            with atomic(tmp_path / name):
                pass
    assert stat.S_ISFIFO(os.stat(tmp_path / "link").st_mode)
    assert sorted(os.listdir(tmp_path)) == ["folder", "link", "pipe"]


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    seen = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: seen.append(os.fstat(file).st_size) or sync(file))
    monkeypatch.setattr(os, "replace", lambda a, b: seen.append(b.name) or replace(a, b))
    with atomic(tmp_path / "a") as file:
        file.write(b"abc")
    write_atomically(tmp_path / "b", "four")
    assert seen == [3, "a", 4, "b"]


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_full_disk_leaves_the_old_file_alone(tmp_path, monkeypatch, call):
    (tmp_path / "a").write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(UserError, match="cannot write .*a: No space left"):
            write_atomically(tmp_path / "a", "new")
        with pytest.raises(OSError, match="No space left"):
            with atomic(tmp_path / "a") as file:
                file.write(b"new")
    assert (tmp_path / "a").read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_a_new_file_gets_its_lock_though_another_program_looks_at_it(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    real = os.open

    def looked_at(path, *arguments):
        descriptor = real(path, *arguments)
        monkeypatch.undo()
        sweeper = open(path, "rb")
        fcntl.flock(sweeper, fcntl.LOCK_EX)
        threading.Timer(0.1, sweeper.close).start()
        return descriptor

    monkeypatch.setattr(os, "open", looked_at)
    with atomic(tmp_path / "a") as file:
        (path,) = tmp_path.iterdir()
        os.utime(path, (0, 0))
        remove_leftovers(tmp_path)
        file.write(b"abc")
    assert (tmp_path / "a").read_bytes() == b"abc"


def test_leftovers_are_removed_unless_a_program_is_at_work_on_them(tmp_path):
    pytest.importorskip("fcntl")
    kept = [tmp_path / ".cosa.json", tmp_path / ".a.tmp", tmp_path / "a.png"]
    gone, young, locked = (tmp_path / TEMPORARY.format(name) for name in "abc")
    for path in (*kept, gone, young):
        path.write_text("")
    replacement = Replacement(tmp_path / "c")
    replacement.temporary.rename(locked)
    replacement.temporary = locked
    for path in (*kept, gone, locked):
        os.utime(path, (0, 0))
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([*kept, young, locked])
    replacement.discard()
    assert not locked.exists()
    remove_leftovers(tmp_path / "absent")


def test_a_line_is_added_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.jsonl"
    append(path, "ü\n")
    append(path, "two\n")
    assert path.read_text(encoding="utf-8") == "ü\ntwo\n"
    told = "cannot write .*a.jsonl: File too large .*are free"
    with pytest.raises(UserError, match=told), largest_file(10):
        append(path, "three\n")
    assert path.read_text(encoding="utf-8") == "ü\ntwo\n"
    with pytest.raises(UserError, match="cannot write .*absent"):
        append(tmp_path / "absent" / "a", "text")
