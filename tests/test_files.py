import os

import pytest

from cosa.errors import UserError
from cosa.files import replacing, write_atomically


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
